"""Running a study in its folder: step by step, with a row for each, and a checkpoint now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedrho.privacy.vectors import FloatVector
from fedrho.privacy.zcdp import Rho, epsilon
from fedrho.simulations import records
from fedrho.simulations.claim import SimulatedStatement
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.engines.base import Engine
from fedrho.simulations.folder import DiskFull, FolderError, StudyFolder
from fedrho.simulations.records import Clients, Measured, Row
from fedrho.simulations.seeded import generator
from fedrho.simulations.state import State, StepRecord
from fedrho.simulations.study import Study


class Steps(Protocol):
    """What this file asks of a `Simulation`."""

    @property
    def finished(self) -> bool: ...

    @property
    def weights(self) -> FloatVector: ...

    def step(self) -> StepRecord: ...

    def state(self) -> State: ...

    def statement(self) -> SimulatedStatement: ...


Start = Callable[[State | None], Steps]
"""Makes the simulation, from its beginning or from a state."""
ClientTest = Callable[[FloatVector, int], float]
"""The share of a device's own examples that weights recognise."""


@dataclass(frozen=True, eq=False)
class Run:
    """How a run ended: every row, the last weights and what may be claimed, and whether it was told to stop before its end."""

    rows: list[Row]
    weights: FloatVector
    statement: SimulatedStatement
    stopped: bool
    steps_here: int
    seconds: float


class Watch(Protocol):
    """Who looks on while a study runs, and may ask it to stop."""

    def shown(self, row: Row) -> None: ...

    @property
    def told_to_stop(self) -> bool: ...


@dataclass(frozen=True)
class Parts:
    """What a study runs on."""

    study: Study
    dataset: FederatedDataset
    engine: Engine
    start: Start
    client_test: ClientTest
    vectorised: bool = False


def run(parts: Parts, folder: StudyFolder, watch: Watch) -> Run:
    """From the latest checkpoint to the last step, or to where `watch` says stop. Raises FolderError before anything is trained,
    DiskFull in the middle.
    """
    checkpoint = folder.latest()
    simulation = parts.start(checkpoint.state if checkpoint else None)
    try:
        rows = folder.begin(checkpoint)
        folder.check_room(simulation.state())
        if checkpoint is None:
            folder.keep(simulation.state())
    except OSError as error:
        raise FolderError(f"{folder.path}: cannot be written ({error.strerror or error})") from error
    began, first = time.monotonic(), len(rows)
    try:
        while not simulation.finished and not watch.told_to_stop:
            rows.append(_one(parts, simulation))
            folder.append(rows[-1])
            if rows[-1]["step"] % parts.study.checkpoint_every == 0 or simulation.finished:
                folder.keep(simulation.state())
            watch.shown(rows[-1])
        if not simulation.finished:
            folder.keep(simulation.state())
    except OSError as error:
        raise _full(folder, error) from error
    seconds = time.monotonic() - began
    return Run(rows, simulation.weights, simulation.statement(), not simulation.finished, len(rows) - first, seconds)


def _full(folder: StudyFolder, error: OSError) -> DiskFull:
    last = next(iter(folder.kept_steps()), None)
    left = "no checkpoint is left" if last is None else f"the checkpoint of step {last} is whole"
    return DiskFull(f"{folder.path}: cannot be written any more ({error.strerror or error}); {left}")


def _one(parts: Parts, simulation: Steps) -> Row:
    """The next step, measured where it is due."""
    record = simulation.step()
    due, delta = parts.study.due(record.step), parts.study.delta
    if record.rho is not None:
        price = epsilon(Rho(record.rho), delta) if delta is not None else None
    else:  # an accountant that takes a second or more
        price = simulation.statement().epsilon_if_deployed(delta) if due else None
    if not due:
        return records.row(record, price)
    tested = parts.engine.test(simulation.weights)
    measured = Measured(tested.accuracy, tested.loss, tested.examples)
    return records.row(record, price, measured, _clients(parts, simulation.weights))


def _clients(parts: Parts, weights: FloatVector) -> Clients | None:
    """Over the same few devices in every step, chosen by the seed."""
    count = min(parts.study.file.record.clients, parts.dataset.size)
    if not count:
        return None
    chosen = generator(parts.study.seed, "clients that are measured").choice(parts.dataset.size, count, replace=False)
    shares = np.sort([parts.client_test(weights, int(device)) for device in np.sort(chosen)])
    shares = shares[~np.isnan(shares)]  # of a device without a label that counts there is nothing to say
    if not len(shares):
        return None
    low, high = np.quantile(shares, [0.1, 0.9], method="nearest")
    return Clients(float(shares.mean()), float(low), float(high))
