"""Which engine a study runs on, by name."""

from __future__ import annotations

from typing import Final

from fedrho.simulations.data.base import DataSource, FederatedDataset
from fedrho.simulations.engines.base import Engine, EngineError, Workload
from fedrho.simulations.engines.cores import available_cores
from fedrho.simulations.engines.member import OpenData

NAMES: Final = ("auto", "serial", "processes", "ray", "tff")


def open_data(source: DataSource) -> FederatedDataset:
    """From the catalogue, which is imported when it is needed; a function that a worker finds again by its name."""
    from fedrho.simulations.data import catalogue

    return catalogue.open_data(source)


def start_engine(
    kind: str,
    workload: Workload,
    workers: int = 0,
    *,
    dataset: FederatedDataset | None = None,
    open_data: OpenData = open_data,
    address: str = "",
) -> Engine:
    """`workers` 0: as many as the machine, or the cluster, has cores. `auto` takes `processes` where that is more than one.

    A data set that is open already need not be opened again here; workers open theirs with `open_data`. `address` is that of a
    Ray cluster. Raises EngineError for what cannot be had, and DataError for a data set that cannot be opened.
    """
    check(kind, workers, address)
    dataset = dataset or open_data(workload.data)
    if kind == "auto":
        kind = chosen(workers)
    if kind == "serial":
        from fedrho.simulations.engines.serial import Serial

        return Serial(workload, dataset)
    if kind == "processes":
        from fedrho.simulations.engines.processes import Processes

        return Processes(workload, workers, dataset=dataset, open_data=open_data)
    if kind == "ray":
        from fedrho.simulations.engines.ray import RayCluster

        return RayCluster(workload, workers, dataset=dataset, open_data=open_data, address=address)
    from fedrho.simulations.engines.tff import Federated

    return Federated(workload, dataset=dataset, open_data=open_data)


def check(kind: str, workers: int = 0, address: str = "") -> None:
    """Raises EngineError for settings that no engine takes; nothing is started or imported."""
    if kind not in NAMES:
        raise EngineError(f"engine.kind: unknown engine {kind!r}; allowed: {', '.join(NAMES)}")
    if workers < 0:
        raise EngineError(f"engine.workers: {workers}; allowed: 0, for as many as there are cores, or more")
    if kind in ("serial", "tff") and workers > 1:
        raise EngineError(f"engine.workers: {workers}, but the engine {kind!r} has one; allowed: 0 or 1")
    if address and kind != "ray":
        raise EngineError(f"engine.address: only the engine 'ray' has one, not {kind!r}")


def chosen(workers: int) -> str:
    """What `auto` means here. The results are the same bits either way."""
    return "processes" if (workers or available_cores()) > 1 else "serial"
