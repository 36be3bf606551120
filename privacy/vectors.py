"""The stations of a vector: Update -> Clipped -> ClippedSum -> Released.

One way, one type a station. An `Update` is what a device computed; a `Clipped` is bounded and lies on the integer grid; a
`ClippedSum` is the exact integer sum of many; a `Released` carries noise and is the first that may leave. The sum inside a
`ClippedSum` is read by one function, `add_noise`, and by nothing else in the repository.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatVector = NDArray[np.float32]
GridVector = NDArray[np.int32]
IntVector = NDArray[np.int64]

MAX_GRID_BITS: Final = 24
"""With at most 24 bits every clipped square sum is below 2**53, so a float64 dot product decides the norm exactly."""


SMALLEST_CLIP_NORM: Final = 1e-40
LARGEST_CLIP_NORM: Final = 1e40


NORM_BLOCK: Final = 8192
"""Coordinates whose norm is taken at once: small enough for the cache, and for one thread to be the fastest."""


class InvalidVector(ValueError):
    """A vector that does not fulfil what its station promises."""


@dataclass(frozen=True)
class Grid:
    """The ball of radius `clip_norm` (L2, in units of the weights) and the integer grid laid over it.

    One grid unit is `clip_norm / 2**bits`, so the radius is `2**bits` grid units and integers are exact.
    """

    clip_norm: float
    bits: int = 20

    def __post_init__(self) -> None:
        if not SMALLEST_CLIP_NORM <= self.clip_norm <= LARGEST_CLIP_NORM:
            raise ValueError(f"clip_norm must lie between {SMALLEST_CLIP_NORM:g} and {LARGEST_CLIP_NORM:g}, not {self.clip_norm}")
        if not 1 <= self.bits <= MAX_GRID_BITS:
            raise ValueError(f"grid bits must be between 1 and {MAX_GRID_BITS}, not {self.bits}")

    @property
    def radius(self) -> int:
        """The clip norm in grid units."""
        return int(2**self.bits)

    @property
    def unit(self) -> float:
        """The length of one grid unit, in units of the weights."""
        return self.clip_norm / self.radius


@dataclass(frozen=True, eq=False)
class Update:
    """What local training changed: local weights minus the weights it started from, flat float32, shape (size,)."""

    vector: FloatVector = field(repr=False)

    def __post_init__(self) -> None:
        if self.vector.ndim != 1 or self.vector.dtype != np.float32:
            raise InvalidVector(f"an update is one flat float32 vector, not {self.vector.dtype} {self.vector.shape}")
        if not np.isfinite(self.vector).all():
            raise InvalidVector("an update with NaN or infinite entries cannot be clipped")


@dataclass(frozen=True, eq=False)
class Clipped:
    """An int32 vector in grid units, shape (size,).

    Guarantees: the L2 norm is at most `grid.radius`. It is checked exactly at construction, so a `Clipped` made from bytes
    of a stranger promises as much as one made by `clip`.
    """

    vector: GridVector = field(repr=False)
    grid: Grid

    def __post_init__(self) -> None:
        if self.vector.ndim != 1 or self.vector.dtype != np.int32:
            raise InvalidVector(f"a clipped vector is flat int32, not {self.vector.dtype} {self.vector.shape}")
        if not within(self.vector, self.grid):
            raise InvalidVector("the L2 norm exceeds the clip norm")


def within(vector: GridVector, grid: Grid) -> bool:
    """Whether the L2 norm is at most the radius, decided exactly.

    Squares and their partial sums up to radius**2 <= 2**48 are integers that float64 holds exactly; a sum beyond can only
    be rounded to a value that is still beyond.
    """
    squared = 0.0
    for start in range(0, vector.size, NORM_BLOCK):
        wide = vector[start : start + NORM_BLOCK].astype(np.float64)
        squared += float(np.dot(wide, wide))
    return squared <= float(grid.radius) ** 2


class ClippedSum:
    """The exact sum of clipped vectors, int64 in grid units; opaque to everything but `add_noise`, which empties it."""

    __slots__ = ("_total", "grid")

    def __init__(self, total: IntVector, grid: Grid) -> None:
        if total.ndim != 1 or total.dtype != np.int64:
            raise InvalidVector(f"a sum is flat int64, not {total.dtype} {total.shape}")
        self._total = total
        self.grid = grid

    @property
    def size(self) -> int:
        return int(self._total.size)

    def __repr__(self) -> str:
        return f"ClippedSum(size={self.size})"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("an un-noised sum is never pickled, stored or sent")


@dataclass(frozen=True, eq=False)
class Released:
    """A noisy sum, int64 in grid units, shape (size,): the output of a mechanism, free to post-process."""

    vector: IntVector = field(repr=False)
    grid: Grid

    def mean(self, goal: int) -> NDArray[np.float64]:
        """The noisy mean update over the public constant `goal` (never the number that came), in units of the weights."""
        return np.multiply(self.vector, self.grid.unit / goal, dtype=np.float64)


def add_noise(total: ClippedSum, noise: IntVector) -> Released:
    """The one door out of an un-noised sum; integers in, integers out, so no low-order bit of a float survives.

    A sum goes through once: afterwards it is overwritten and empty, and a second try raises InvalidVector.
    """
    if noise.dtype != np.int64 or noise.shape != (total.size,):
        raise InvalidVector(f"noise must be int64 of shape ({total.size},), not {noise.dtype} {noise.shape}")
    released = Released(total._total + noise, total.grid)
    total._total.fill(0)
    total._total = np.zeros(0, dtype=np.int64)
    return released
