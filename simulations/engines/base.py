"""What an engine does: train the devices of a cohort and return their exact sum; measure weights on held-out examples.

Who takes part is decided before, by the coordinator in virtual time; an engine only computes. The work is cut into units that
depend on the workload and the cohort alone, never on how many workers there are, and every unit is computed by the same code in
the same order: so every engine returns the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.vectors import ClippedSum, FloatVector, Grid
from fedrho.protos.messages import RoundPlan
from fedrho.simulations.data.base import Answered, DataSource, Examples, FederatedDataset


class EngineError(RuntimeError):
    """An engine that cannot go on: what happened and what to do, in one line."""


@dataclass(frozen=True)
class Workload:
    """What is the same in all rounds of a study; pickled once to every worker.

    `plan` is a template: its step, attempt, run and checkpoint are replaced, and everything else is what devices are told in
    production. `model_file` is a saved Keras model, where the plan names one.
    """

    data: DataSource
    plan: RoundPlan
    grid: Grid
    model_file: Path | None = None
    vectorised: bool = False
    units_of: int = 32
    """Devices that one unit of work has at most."""
    seed: int = 0
    """Of the study: what answers for labels grow from, where the plan asks for them."""

    def told(self, device: int, examples: Examples, classes: int) -> Examples | Answered:
        """What a device trains on: its examples, or where the plan has label terms its answers."""
        if self.plan.labels is None:
            return examples
        from fedrho.simulations.labels import answered

        return answered(examples, device, self.plan.labels, classes, self.seed)


@dataclass(frozen=True, eq=False)
class Told:
    """What only a simulation can see, one number for each device, in the order of the cohort.

    `loss` is the mean training loss over the local steps, `norm` the update's L2 norm before it was clipped, `examples` how many
    there were; `failed` where a loss or the update was not finite and zeros were sent.
    """

    loss: NDArray[np.float64]
    norm: NDArray[np.float64]
    examples: NDArray[np.int64]
    failed: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Trained:
    """The exact sum of the cohort's clipped updates, and what a simulation sees beside it."""

    total: ClippedSum
    told: Told


@dataclass(frozen=True)
class Tested:
    """On the held-out examples: `correct` of `counted` labels, which are one an example unless the model says otherwise
    (`ModelSpec.label_shape`, `ignored`), and the mean loss of those.
    """

    correct: int
    examples: int
    loss: float
    counted: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.counted


class Engine(Protocol):
    """Calls do not overlap. Same workload, weights, step and devices: the same bits, on every engine but `tff`."""

    name: str

    def train(self, step: int, weights: FloatVector, devices: Sequence[int]) -> Trained:
        """Local training of every device at `step`, clipped and summed. Raises EngineError."""
        ...

    def test(self, weights: FloatVector) -> Tested: ...

    def close(self) -> None:
        """Ends every process that the engine started."""
        ...


def cut(count: int, at_most: int) -> list[range]:
    """Places of a cohort of `count`, in units of at most `at_most`."""
    return [range(start, min(start + at_most, count)) for start in range(0, count, at_most)]


def unit_size(weights: int, vectorised: bool) -> int:
    """How many devices a unit should have at most, for a model of so many weights.

    Trained together, as many as stay in the processor's cache; one after another, it is all the same to the bits and the time.
    """
    return max(1, min(128, 800_000 // weights)) if vectorised else 32


TESTED_AT_ONCE: Final = 1024
"""Held-out examples that one unit of a test has at most."""


def tested_units(dataset: FederatedDataset) -> list[range]:
    """The held-out examples in units that depend on the data set alone."""
    return cut(len(dataset.held_out), TESTED_AT_ONCE)


def joined(parts: Sequence[Tested]) -> Tested:
    """What parts of a test say together; the same bits for the same parts in any order."""
    counted = sum(part.counted for part in parts)
    loss = math.fsum(part.loss * part.counted for part in parts) / counted
    return Tested(sum(part.correct for part in parts), sum(part.examples for part in parts), loss, counted)
