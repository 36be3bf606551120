"""What the tests of local training share: devices whose examples are handed in, made-up examples, and plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from fedrho.client.examples import ArrayExamples
from fedrho.client.participant import TrainingFailed
from fedrho.client.trainer import LocalTrainer
from fedrho.privacy.clipping import clip
from fedrho.privacy.vectors import FloatVector, Grid, Update
from fedrho.protos.messages import Encoding, RoundPlan
from fedrho.simulations.data.base import DataSource, Examples
from fedrho.simulations.engines.base import Workload

GRID = Grid(0.5, 20)
LOGISTIC = RoundPlan(bytes(16), 1, 1, "digits-logistic", bytes(32), 650, 0.5, 20, Encoding.INT32_LE, 1, 5, 0.1, 1, 0)
MLP = replace(LOGISTIC, model="digits-mlp", size=2410)
NOWHERE = DataSource("handed in")


class Held:
    """Devices that hold what they are given; remembers whose examples were loaded."""

    def __init__(self, devices: Sequence[Examples], held_out: Examples) -> None:
        self._devices = devices
        self.size = len(devices)
        self.held_out = held_out
        self.loaded: list[int] = []

    def count(self, device: int) -> int:
        return len(self._devices[device])

    def examples(self, device: int) -> Examples:
        self.loaded.append(device)
        return self._devices[device]


def digits_like(count: int, seed: int) -> Examples:
    generator = np.random.default_rng((seed, 77))
    return Examples(generator.random((count, 64), dtype=np.float32), generator.integers(0, 10, count, dtype=np.int32))


COUNTS = (3, 17, 1, 5, 10, 12, 5)
DEVICES = tuple(digits_like(count, seed) for seed, count in enumerate(COUNTS))
HELD_OUT = digits_like(2100, 1000)


def held(devices: Sequence[Examples] = DEVICES) -> Held:
    return Held(devices, HELD_OUT)


def workload(plan: RoundPlan, vectorised: bool = False, units_of: int = 32) -> Workload:
    return Workload(NOWHERE, plan, GRID, None, vectorised, units_of)


def some_weights(size: int) -> FloatVector:
    return np.random.default_rng(2).normal(0.0, 0.3, size).astype(np.float32)


@cache
def trainer() -> LocalTrainer:
    return LocalTrainer()


def as_a_device(plan: RoundPlan, weights: FloatVector, examples: Examples, grid: Grid = GRID) -> np.ndarray:
    """The integers that a real device would upload."""
    try:
        update = trainer().train(plan, weights, ArrayExamples(examples.features, examples.labels))
    except TrainingFailed:
        update = Update(np.zeros(plan.size, dtype=np.float32))
    return clip(update, grid).vector
