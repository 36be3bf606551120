"""A workload without a model: what a device sends follows from its number, the step and the weights; it costs microseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedrho.privacy.clipping import clip
from fedrho.privacy.vectors import Clipped, FloatVector, Grid, Update
from fedrho.server.aggregation import RunningSum
from fedrho.server.tasks import Task, TaskFile, build_task
from fedrho.simulations.engines.base import Tested, Told, Trained

SIZE = 12


def update(step: int, weights: FloatVector, device: int) -> Update:
    """Towards a point of the device's own, and a little of the step's."""
    goal = np.random.default_rng((device, 7)).normal(size=len(weights))
    return Update((0.1 * (goal - weights) + 0.01 * step).astype(np.float32))


def sent(step: int, weights: FloatVector, device: int, grid: Grid) -> Clipped:
    return clip(update(step, weights, device), grid)


class ToyEngine:
    """Notes every cohort that it trains."""

    name = "toy"

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.cohorts: list[tuple[int, tuple[int, ...]]] = []

    def train(self, step: int, weights: FloatVector, devices: Sequence[int]) -> Trained:
        self.cohorts.append((step, tuple(devices)))
        total = RunningSum(len(weights), self._grid)
        for device in devices:
            total.add(sent(step, weights, device, self._grid))
        norms = np.array([np.linalg.norm(update(step, weights, device).vector) for device in devices])
        count = len(devices)
        told = Told(norms / 2.0, norms.astype(np.float64), np.full(count, 5), np.zeros(count, dtype=np.bool_))
        return Trained(total.close(), told)

    def test(self, weights: FloatVector) -> Tested:
        return Tested(0, 1, 0.0, 1)

    def close(self) -> None:
        pass


class FreeEngine(ToyEngine):
    """Sends zeros: what is left is the cost of the simulation itself."""

    def train(self, step: int, weights: FloatVector, devices: Sequence[int]) -> Trained:
        self.cohorts.append((step, tuple(devices)))
        nothing = np.zeros(len(devices))
        told = Told(nothing, nothing, nothing.astype(np.int64), nothing.astype(np.bool_))
        return Trained(RunningSum(len(weights), self._grid).close(), told)


def toy_values(**changes: Any) -> dict[str, Any]:
    """The values of a task file; `changes` are sections, key by key, or top keys."""
    values: dict[str, Any] = {
        "name": "toy",
        "algorithm": "dp-ftrl",
        "model": "digits-logistic",
        "steps": 8,
        "population": 200,
        "round": {"goal": 10, "deadline_seconds": 100.0},
        "privacy": {"clip_norm": 0.5, "rho": 1.0, "delta": 1e-7},
        "participation": {"max_times": 3, "min_separation": 2},
        "server": {"learning_rate": 0.5, "momentum": 0.9},
    }
    for key, change in changes.items():
        values[key] = {**values[key], **change} if isinstance(change, dict) else change
    return values


def toy_task(**changes: Any) -> Task:
    return build_task(TaskFile.model_validate(toy_values(**changes)))


def zeros(size: int = SIZE) -> FloatVector:
    return np.zeros(size, dtype=np.float32)


MECHANISMS: dict[str, dict[str, Any]] = {
    "tree": {},
    "restarts": {"privacy": {"restarts": [3], "completed": True}},
    "banded": {"privacy": {"mechanism": "banded", "coefficients": [1.0, 0.5]}},
    "blt": {"privacy": {"mechanism": "blt", "decay": [0.5], "scale": [0.25]}},
    "independent": {"algorithm": "dp-fedavg"},
}
"""Changes of a task file, for each way to make noise."""


def poisson_values(**changes: Any) -> dict[str, Any]:
    """The values of a task for Poisson sampling."""
    values = toy_values(algorithm="dp-fedavg", round={"goal": 10}, privacy={"clip_norm": 0.5, "delta": 1e-7})
    del values["participation"], values["privacy"]["rho"], values["round"]["deadline_seconds"]
    for key, change in changes.items():
        values[key] = {**values[key], **change} if isinstance(change, dict) else change
    return values
