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

FloatVector = NDArray[np.float32]
GridVector = NDArray[np.int32]
IntVector = NDArray[np.int64]
PieceOfVector = NDArray[np.int16] | NDArray[np.int32]

MAX_GRID_BITS: Final = 24
"""With at most 24 bits every clipped square sum is below 2**53, so a float64 dot product decides the norm exactly."""


SMALLEST_CLIP_NORM: Final = 1e-40
LARGEST_CLIP_NORM: Final = 1e40


NORM_BLOCK: Final = 8192
"""Coordinates whose norm is taken at once: small enough for the cache, and for one thread to be the fastest."""


ROW: Final = 1024
ROW_BLOCK: Final = 2**17
"""Coordinates turned into float32 at once: 512 KiB, so that numpy is called seldom and the cache still holds them."""
SLACK: Final = 2.0**-13
"""How far, relatively, a squared norm summed in float32 may be off; see `Gathering`."""


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
    def pieces(self) -> tuple[GridVector]:
        return (self.vector,)

    @property
    def size(self) -> int:
        return int(self.vector.size)


def within(vector: GridVector, grid: Grid) -> bool:
    """Whether the L2 norm is at most the radius, decided exactly."""
    return _square(vector) <= float(grid.radius) ** 2


def _square(vector: PieceOfVector) -> float:
    """The squared L2 norm, exact as far as 2**53; more than that is rounded to a value that is at least 2**53.

    Squares and their partial sums up to there are integers that float64 holds.
    """
    squared = 0.0
    for start in range(0, vector.size, NORM_BLOCK):
        wide = vector[start : start + NORM_BLOCK].astype(np.float64)
        squared += float(np.dot(wide, wide))
    return squared


@dataclass(frozen=True, eq=False)
class ClippedPieces:
    """A clipped vector as it came off the wire: int16 or int32 pieces in grid units, that no one can write, in their order.

    Guarantees: what `Clipped` guarantees, of the pieces laid end to end. Only `Gathering.clipped` makes one.
    """

    pieces: tuple[PieceOfVector, ...] = field(repr=False)
    grid: Grid
    size: int


class Gathering:
    """A clipped vector of `size` coordinates that arrives in pieces, checked piece by piece.

    Guarantees: `clipped` returns exactly where `Clipped` of the whole vector would, and raises where that would; `add` says no
    only where every completion would be refused. Proof: let S be the squared norm of what has arrived, and T the sum of its
    rows' squared norms, a row being at most 1024 coordinates in float32. Turning an integer into float32 changes it by at most
    u = 2**-24 relatively; 1024 products and 1023 additions, in any order, change a row by at most 1024 u / (1 - 1024 u); rows are
    added in float64. Nothing overflows, for 1024 * 2**62 < 2**127, no square is too small, and all terms are positive: so
    |T - S| < 2**-13.9 S. Hence T > (1 + 2**-13) R**2 means S > R**2, and S only grows; T <= (1 - 2**-13) R**2 means
    S <= R**2. In the band between, S is summed again, exactly.
    """

    def __init__(self, size: int, grid: Grid) -> None:
        self._size = size
        self.grid = grid
        self._pieces: list[PieceOfVector] = []
        self._missing = size
        self._squared = 0.0
        self._limit = float(grid.radius) ** 2

    def add(self, piece: PieceOfVector) -> bool:
        """Whether the vector can still be within the radius. A piece that someone could still write is copied.

        Raises InvalidVector for a piece that is not flat int16 or int32, or too long.
        """
        if piece.ndim != 1 or piece.dtype not in (np.int16, np.int32) or piece.size > self._missing:
            raise InvalidVector(
                f"a piece is flat int16 or int32, at most {self._missing} of them, not {piece.dtype} {piece.shape}"
            )
        if piece.flags.writeable:
            piece = piece.copy()
            piece.flags.writeable = False
        self._pieces.append(piece)
        self._missing -= piece.size
        self._squared += _approximate_square(piece)
        return self._squared <= self._limit * (1 + SLACK)

    def clipped(self) -> ClippedPieces:
        """Raises InvalidVector where pieces are missing or the norm exceeds the radius."""
        if self._missing:
            raise InvalidVector(f"{self._missing} of {self._size} coordinates are missing")
        if self._squared > self._limit * (1 - SLACK) and sum(map(_square, self._pieces)) > self._limit:
            raise InvalidVector("the L2 norm exceeds the clip norm")
        return ClippedPieces(tuple(self._pieces), self.grid, self._size)


def _approximate_square(piece: PieceOfVector) -> float:
    """The squared norm, off by less than SLACK relatively: float32 within rows, float64 across them."""
    squared = 0.0
    for start in range(0, piece.size, ROW_BLOCK):
        wide = piece[start : start + ROW_BLOCK].astype(np.float32)
        whole = wide.size - wide.size % ROW
        rows, rest = wide[:whole].reshape(-1, ROW), wide[whole:]
        squared += float(_row_squares(rows).sum(dtype=np.float64)) + float(np.dot(rest, rest))
    return squared


def _row_squares(rows: FloatVector) -> FloatVector:
    squares: FloatVector = np.matmul(rows[:, None, :], rows[:, :, None])
    return squares


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
    return part._total.astype("<i8").tobytes()


def unpack(data: bytes | bytearray, size: int, grid: Grid) -> ClippedSum:
    """What `pack` made of `size` coordinates; raises InvalidVector."""
    if len(data) != 8 * size:
        raise InvalidVector(f"{len(data)} bytes are no sum of {size} coordinates")
    return ClippedSum(np.frombuffer(data, dtype="<i8").astype(np.int64), grid)


def _empty(total: ClippedSum) -> None:
    """Overwrites it."""
    total._total.fill(0)
    total._total = np.zeros(0, dtype=np.int64)
