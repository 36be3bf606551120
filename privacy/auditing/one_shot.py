"""One-shot empirical privacy estimation (Andrew et al. 2023, arXiv 2302.03098).

c canary clients send random directions at the clip norm. The cosine of a direction that took part with the change of the model is
about N(mean, stddev**2); that of one that did not is N(0, 1/d), as between any two directions in d dimensions. Epsilon is the one
between those two Gaussians. It is an estimate under this model of the attacker, not a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.auditing.limits import epsilon_between

Matrix = NDArray[np.float64]
SMALLEST_SIZE = 1000
"""From here on the cosine of random directions is N(0, 1/d) to all digits that matter."""
FEWEST_CANARIES = 10


@dataclass(frozen=True)
class OneShotEstimate:
    """Mean and standard deviation of the cosines of those who took part, and the epsilon that they suggest."""

    mean: float
    stddev: float
    epsilon: float


def random_directions(count: int, size: int, random: np.random.Generator) -> Matrix:
    """Unit vectors, uniform on the sphere and independent, shape (count, size)."""
    drawn = random.standard_normal((count, size))
    directions: Matrix = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return directions


def cosines(directions: Matrix, vector: Matrix) -> Matrix:
    """Of unit vectors, shape (c, d), with one vector, shape (d,)."""
    norm = float(np.linalg.norm(vector))
    if not 0 < norm < np.inf:
        raise ValueError(f"the released vector must be finite and not zero; its norm is {norm}")
    return np.asarray(directions @ vector / norm)


def largest_cosines(directions: Matrix, released: Matrix) -> Matrix:
    """For each direction the largest cosine over the steps; `released` has shape (steps, d)."""
    return np.asarray(np.max([cosines(directions, step) for step in released], axis=0))


def estimate_from_final_model(directions: Matrix, released: Matrix, delta: float) -> OneShotEstimate:
    """For an attacker who sees only the last model: directions (c, d) that took part, released updates (steps, d)."""
    _check(directions, released)
    seen = cosines(directions, released.sum(axis=0))
    return _estimate(seen, 0.0, released.shape[1] ** -0.5, delta)


def estimate_from_all_steps(directions: Matrix, unseen: Matrix, released: Matrix, delta: float) -> OneShotEstimate:
    """For one who takes the largest cosine over the steps; `unseen` directions (c', d) show how large chance alone makes it."""
    _check(directions, released)
    _check(unseen, released)
    chance = largest_cosines(unseen, released)
    return _estimate(largest_cosines(directions, released), float(chance.mean()), float(chance.std(ddof=1)), delta)


def _estimate(seen: Matrix, mean_unseen: float, stddev_unseen: float, delta: float) -> OneShotEstimate:
    mean, stddev = float(seen.mean()), float(seen.std(ddof=1))
    return OneShotEstimate(mean, stddev, epsilon_between(mean - mean_unseen, stddev_unseen, stddev, delta))


def _check(directions: Matrix, released: Matrix) -> None:
    if directions.ndim != 2 or released.ndim != 2 or directions.shape[1] != released.shape[1]:
        raise ValueError(f"need directions (c, d) and released (steps, d), not {directions.shape} and {released.shape}")
    if directions.shape[1] < SMALLEST_SIZE:
        raise ValueError(
            f"cosines of random directions are Gaussian from {SMALLEST_SIZE} dimensions on, not {directions.shape[1]}"
        )
    if len(directions) < FEWEST_CANARIES:
        raise ValueError(f"at least {FEWEST_CANARIES} canaries are needed to fit a Gaussian, not {len(directions)}")
