"""Canary clients on the real way: Update -> clip -> exact sum -> ClippedSum -> release, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.auditing.attacker import Matrix, Signal, strength
from fedrho.privacy.clipping import clip
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.noise import NoiseSource
from fedrho.privacy.progress import Progress, unwatched, watched
from fedrho.privacy.vectors import ClippedSum, Grid, IntVector, Update

Contribution = Callable[[Update, Grid], IntVector]
"""What one client's update adds to the sum of a step, in grid units."""
LOUDNESS = 10.0
"""Canaries send this many clip norms, so that a clip that is missing or scaled up shows."""


def clipped(update: Update, grid: Grid) -> IntVector:
    """What an honest server adds."""
    return clip(update, grid).vector.astype(np.int64)


def run_with_canaries(
    mechanism: Mechanism[Any],
    signal: Signal,
    directions: Iterable[Matrix],
    size: int,
    source: NoiseSource,
    contribute: Contribution = clipped,
    progress: Progress = unwatched,
) -> Matrix:
    """What is released, in units of the clip norm, shape (steps, size).

    `directions`: of each canary that is included, unit vectors of shape (size,); all of them take part as `signal` says. Where a
    mechanism asks for counts beside the weights, canaries keep silent there.
    """
    totals = _Totals(mechanism, list(directions), size, contribute, progress)
    state, released = mechanism.init(size), []
    for sign in watched(signal, "round", progress, "releasing rounds"):
        grid = mechanism.grid_at(state)
        out, state = mechanism.release(ClippedSum(totals.at(float(sign), grid), grid), state, source)
        released.append(out.vector / out.grid.radius)
    return np.array(released)


class _Totals:
    """The exact sum of all canaries; it is the same wherever they send the same, and then it is computed once."""

    def __init__(
        self, mechanism: Mechanism[Any], directions: list[Matrix], size: int, contribute: Contribution, progress: Progress
    ) -> None:
        self._counts = mechanism.counts
        self._loud = LOUDNESS * mechanism.grid.clip_norm
        self._directions, self._size, self._contribute = directions, size, contribute
        self._progress = progress
        self._known: dict[tuple[float, Grid], IntVector] = {}

    def at(self, sign: float, grid: Grid) -> IntVector:
        if (sign, grid) not in self._known:
            total = np.zeros(self._size + self._counts, dtype=np.int64)
            for direction in watched(self._directions, "canary", self._progress, "clipping canaries") if sign else ():
                update = Update((sign * self._loud * direction).astype(np.float32))
                total[: self._size] += self._contribute(update, grid)
            self._known[sign, grid] = total
        return self._known[sign, grid].copy()


class Stripes:
    """Random unit directions without a coordinate in common, so that canaries never stand in each other's light.

    Canary i owns the coordinates i, i + count, i + 2 * count, ...; on them its direction is uniform on the sphere.
    """

    def __init__(self, count: int, size: int, random: np.random.Generator) -> None:
        if not 1 <= count <= size:
            raise ValueError(f"{count} canaries do not fit into {size} coordinates without touching each other")
        drawn = random.standard_normal((size // count, count))
        self._parts = drawn / np.linalg.norm(drawn, axis=0)
        self._size = size

    def direction(self, canary: int) -> Matrix:
        """Shape (size,)."""
        length, count = self._parts.shape
        vector = np.zeros(self._size)
        vector[canary : length * count : count] = self._parts[:, canary]
        return vector

    def project(self, released: Matrix) -> Matrix:
        """Of vectors (steps, size) on every direction: (steps, count)."""
        length, count = self._parts.shape
        parts = released[:, : length * count].reshape(len(released), length, count)
        return np.asarray(np.einsum("tlc,lc->tc", parts, self._parts))


def whitened_scores(projections: Matrix, signal: Signal, inverse: Matrix, noise_multiplier: float) -> NDArray[np.float64]:
    """The best linear test of each canary, from projections (steps, count) in units of the clip norm, shape (count,).

    Against the noise that `inverse` describes: N(0, 1) without the canary, N(separation, 1) with it.
    """
    weights = inverse @ signal / np.sqrt(strength(inverse, signal))
    return np.asarray(weights @ projections / noise_multiplier)
