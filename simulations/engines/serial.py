"""The serial engine: everything in this process, on one core."""

from __future__ import annotations

from collections.abc import Sequence

from fedrho.privacy.vectors import FloatVector
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.engines.base import Tested, Trained, Workload, joined, tested_units
from fedrho.simulations.engines.dispatch import checked
from fedrho.simulations.worker import Worker


class Serial:
    """Opens the workload's data set, unless one is handed in. Raises what `Worker` raises."""

    name = "serial"

    def __init__(self, work: Workload, dataset: FederatedDataset | None = None) -> None:
        self._work = work
        self._dataset = dataset or _opened(work)
        self._worker = Worker(work, self._dataset)

    def train(self, step: int, weights: FloatVector, devices: Sequence[int]) -> Trained:
        return self._worker.train(step, checked(weights, self._work), devices)

    def test(self, weights: FloatVector) -> Tested:
        units = tested_units(self._dataset)
        return joined([self._worker.test(checked(weights, self._work), places) for places in units])

    def close(self) -> None:
        """Nothing was started."""


def _opened(work: Workload) -> FederatedDataset:
    from fedrho.simulations.data.catalogue import open_data

    return open_data(work.data)
