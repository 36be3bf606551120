"""The stations of a vector: Update -> Clipped -> ClippedSum -> Released.

One way, one type a station. An `Update` is what a device computed; a `Clipped` is bounded and lies on the integer grid; a
`ClippedSum` is the exact integer sum of many; a `Released` carries noise and is the first that may leave. The sum inside a
`ClippedSum` is read by `add_noise`, and by nothing else in the repository; `merge`, `pack` and `unpack` carry it from the shards
that collected it to the coordinator that owns it, as a sum in and a sum out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy import kernels
from fedrho.privacy.kernels import squared_norm

FloatVector = NDArray[np.float32]
GridVector = NDArray[np.int32]
IntVector = NDArray[np.int64]
ArrivedVector = NDArray[np.int16] | NDArray[np.int32]

MAX_GRID_BITS: Final = 24
"""With at most 24 bits every clipped square sum is below 2**53, so a float64 dot product decides the norm exactly."""


SMALLEST_CLIP_NORM: Final = 1e-40
LARGEST_CLIP_NORM: Final = 1e40


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

    @property
    def size(self) -> int:
        return int(self.vector.size)


def within(vector: GridVector, grid: Grid) -> bool:
    """Whether the L2 norm is at most the radius, decided exactly."""
    return squared_norm(vector) <= float(grid.radius) ** 2


@dataclass(frozen=True, eq=False)
class Gathered:
    """A clipped vector as it came off the wire: int16 where every coordinate fits, else int32, that no one else holds or writes.

    Guarantees: what `Clipped` guarantees. Only `Gathering.clipped` makes one.
    """

    vector: ArrivedVector = field(repr=False)
    grid: Grid

    @property
    def size(self) -> int:
        return int(self.vector.size)


class Gathering:
    """A clipped vector of `size` coordinates that arrives in pieces, each checked and copied in one pass.

    Guarantees: `clipped` returns exactly where `Clipped` of the whole vector would, and raises where that would; `add` says no
    only where every completion would be refused: squared norms of the pieces are integers, exact where their sum could still
    be within the radius, and they only grow. Coordinates are held in int16 until one does not fit.
    """

    def __init__(self, size: int, grid: Grid) -> None:
        self.grid = grid
        self._vector: ArrivedVector = np.empty(size, dtype=np.int16)
        self._arrived = 0
        self._squared = 0.0

    def add(self, piece: ArrivedVector) -> bool:
        """False where the norm is more than twice the radius already, so that the rest is not worth waiting for.

        Raises InvalidVector for a piece that is not flat int16 or int32, or too long.
        """
        missing = self._vector.size - self._arrived
        if piece.ndim != 1 or piece.dtype not in (np.int16, np.int32) or piece.size > missing:
            raise InvalidVector(f"a piece is flat int16 or int32, at most {missing} of them, not {piece.dtype} {piece.shape}")
        there = slice(self._arrived, self._arrived + piece.size)
        squared, fits = kernels.copy(self._vector[there], piece)
        if not fits:
            self._vector = self._vector.astype(np.int32)
            self._vector[there] = piece
        self._arrived = there.stop
        self._squared += squared
        return self._squared <= 4.0 * float(self.grid.radius) ** 2

    def clipped(self) -> Gathered:
        """The vector, once; this object is empty then.

        Raises InvalidVector where pieces are missing or the norm exceeds the radius.
        """
        if self._arrived < self._vector.size:
            raise InvalidVector(f"{self._vector.size - self._arrived} of {self._vector.size} coordinates are missing")
        if self._squared > float(self.grid.radius) ** 2:
            raise InvalidVector("the L2 norm exceeds the clip norm")
        vector, self._vector, self._arrived, self._squared = self._vector, np.empty(0, dtype=np.int16), 0, 0.0
        vector.flags.writeable = False
        return Gathered(vector, self.grid)


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
        raise TypeError("an un-noised sum is never pickled or stored")


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
    _empty(total)
    return released


def merge(parts: Sequence[ClippedSum]) -> ClippedSum:
    """The sum of the parts of one attempt, exact and the same in any order; the parts are then empty.

    Raises InvalidVector when they have not all the same grid and size, or there is none.
    """
    if len({(part.grid, part.size) for part in parts}) != 1:
        raise InvalidVector("the parts are not of one sum")
    total = np.zeros(parts[0].size, dtype=np.int64)
    for part in parts:
        total += part._total
        _empty(part)
    return ClippedSum(total, parts[0].grid)


def pack(part: ClippedSum) -> bytes:
    """A part for the private channel from a shard to its coordinator, and for nothing else: little-endian int64."""
    return part._total.astype("<i8", copy=False).tobytes()


def unpack(data: bytes | bytearray | memoryview, size: int, grid: Grid) -> ClippedSum:
    """What `pack` made of `size` coordinates; raises InvalidVector."""
    if len(data) != 8 * size:
        raise InvalidVector(f"{len(data)} bytes are no sum of {size} coordinates")
    return ClippedSum(np.frombuffer(data, dtype="<i8").astype(np.int64), grid)


def _empty(total: ClippedSum) -> None:
    """Overwrites it."""
    total._total.fill(0)
    total._total = np.zeros(0, dtype=np.int64)
