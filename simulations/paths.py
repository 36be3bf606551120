"""The way of the weights under DP-FTRL's noise, under DP-SGD's, and under none: one task, equal privacy, the real mechanisms.

The task is a quadratic in two dimensions, so that the way can be drawn. Each device holds one point, normal around (2.2, 2.5),
and pulls the weights toward it, more along the first axis than along the second; it clips its update and takes part once at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.calibration import calibrated
from fedrho.privacy.clipping import clip
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.noise import NoiseSource
from fedrho.privacy.participation import Participation
from fedrho.privacy.progress import Progress, unwatched
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import FloatVector, Grid, Update
from fedrho.privacy.zcdp import Rho
from fedrho.server.aggregation import RunningSum
from fedrho.server.optimizers import ServerSgd
from fedrho.simulations.seeded import NoNoise, SeededNoise, generator

START = (-1.0, -0.4)
CENTRE = (2.2, 2.5)
PULL = (0.04, 0.013)
SPREAD = 0.3


@dataclass(frozen=True)
class Walk:
    """What all ways have in common. `rho` is the price of all steps, of each noisy way."""

    steps: int = 256
    cohort: int = 10
    rho: float = 0.01
    clip_norm: float = 0.15
    learning_rate: float = 0.1
    seed: int = 0

    @property
    def participation(self) -> Participation:
        return Participation(max_times=1)


@dataclass(frozen=True, eq=False)
class Way:
    """Weights of shape (steps + 1, 2) from the start on, and the noise multiplier that led there."""

    name: str
    weights: NDArray[np.float64]
    noise_multiplier: float

    def away(self, other: Way) -> float:
        """Root mean square distance over the steps."""
        return float(np.sqrt(np.mean(np.sum((self.weights - other.weights) ** 2, axis=1))))


def ways(walk: Walk, progress: Progress = unwatched) -> tuple[Way, Way, Way]:
    """Without noise, with DP-SGD's and with DP-FTRL's."""
    return _ways(walk, _Pace(3 * walk.steps, progress))


def ways_and_distances(walk: Walk, seeds: int, progress: Progress = unwatched) -> tuple[tuple[Way, Way, Way], dict[str, float]]:
    """The ways, and how far each noisy one is from the true one, as the mean over this seed and those after it."""
    pace = _Pace(seeds * 3 * walk.steps, progress)
    found = [_ways(replace(walk, seed=walk.seed + more), pace) for more in range(seeds)]
    far = {noisy.name: float(np.mean([three[place].away(three[0]) for three in found])) for place, noisy in _noisy(found[0])}
    return found[0], far


class _Pace:
    """Counts the steps of all ways."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total, self._progress, self._done = total, progress, 0

    def step(self, name: str) -> None:
        self._done += 1
        self._progress("step", self._done, self._total, f"walking with {name}")


def _ways(walk: Walk, pace: _Pace) -> tuple[Way, Way, Way]:
    grid = Grid(walk.clip_norm, 20)
    independent, tree = (
        calibrated(kind(grid, 1.0), walk.steps, walk.participation, Rho(walk.rho)) for kind in (IndependentGaussian, BinaryTree)
    )
    true = Way("no noise", _walked(walk, independent, NoNoise(), lambda: pace.step("no noise")), 0.0)
    return true, _way("DP-SGD", walk, independent, pace), _way("DP-FTRL", walk, tree, pace)


def _noisy(three: tuple[Way, Way, Way]) -> list[tuple[int, Way]]:
    return [(place, way) for place, way in enumerate(three) if place]


def _way(name: str, walk: Walk, mechanism: Mechanism[Any], pace: _Pace) -> Way:
    walked = _walked(walk, mechanism, SeededNoise(walk.seed, name), lambda: pace.step(f"the noise of {name}"))
    return Way(name, walked, mechanism.noise_multiplier)


def _walked(walk: Walk, mechanism: Mechanism[Any], source: NoiseSource, stepped: Callable[[], None]) -> NDArray[np.float64]:
    weights, state = np.array(START, dtype=np.float32), mechanism.init(2)
    optimizer = ServerSgd(walk.learning_rate)
    velocity, way = optimizer.init(2), [weights]
    for step in range(1, walk.steps + 1):
        total = RunningSum(2, mechanism.grid)
        for update in _updates(walk, step, weights):
            total.add(clip(Update(update), mechanism.grid))
        released, state = mechanism.release(total.close(), state, source)
        weights, velocity = optimizer.apply(released, walk.cohort, weights, velocity)
        way.append(weights)
        stepped()
    return np.array(way, dtype=np.float64)


def _updates(walk: Walk, step: int, weights: FloatVector) -> NDArray[np.float32]:
    """Of the devices of this step, each with a point of its own: shape (cohort, 2)."""
    points = np.array(CENTRE) + SPREAD * generator(walk.seed, "points", step).standard_normal((walk.cohort, 2))
    updates: NDArray[np.float32] = ((points - weights) * np.array(PULL)).astype(np.float32)
    return updates
