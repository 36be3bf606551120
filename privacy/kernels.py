"""The two loops over an update that a server makes for every device, in C where it could be compiled, in numpy otherwise.

Both give the same numbers; numpy makes more passes over memory and takes three times as long.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SQUARED_AT_ONCE: Final = 8192
"""Coordinates whose squares numpy sums at once: small enough for the cache, and for one thread to be the fastest."""


def squared_norm(vector: NDArray[Any]) -> float:
    """The squared L2 norm of integers, exact as far as 2**53; more than that is never below 2**53.

    The sums are float64, and up to there all of them are integers that float64 holds, in whatever order they are added.
    """
    squared = 0.0
    for start in range(0, vector.size, SQUARED_AT_ONCE):
        wide = vector[start : start + SQUARED_AT_ONCE].astype(np.float64)
        squared += float(np.dot(wide, wide))
    return squared


def squared_length(vector: NDArray[np.float32]) -> float:
    """The squared L2 norm of numbers, the same to the last bit on every machine.

    A float32 squared is exact in float64. The squares are added in an order of our own, the second half onto the first until one
    is left: a library's dot product takes an order that depends on the processor and on the number of threads.
    """
    if vector.size == 0:
        return 0.0
    squares = np.multiply(vector, vector, dtype=np.float64)
    count = squares.size
    while count > 1:
        half = (count + 1) // 2
        squares[: count - half] += squares[half:count]
        count = half
    return float(squares[0])


def copy_by_numpy(target: NDArray[Any], source: NDArray[Any]) -> tuple[float, bool]:
    np.copyto(target, source, casting="unsafe")
    return squared_norm(source), np.array_equal(target, source)


def add_by_numpy(lane: NDArray[np.int32], vectors: list[NDArray[Any]]) -> None:
    for vector in vectors:
        lane += vector


try:
    from fedrho.privacy import _compiled
except ImportError:  # installed without a C compiler
    COMPILED, _copy, _add = False, copy_by_numpy, add_by_numpy
else:
    COMPILED, _copy, _add = True, _compiled.copy, _compiled.add


def copy(target: NDArray[Any], source: NDArray[Any]) -> tuple[float, bool]:
    """Writes `source` into `target`, flat int16 or int32 of one length; its `squared_norm`, and whether every number fitted."""
    return _copy(target, source)


def add(lane: NDArray[np.int32], vectors: list[NDArray[Any]]) -> None:
    """Adds up to 64 vectors, flat int16 or int32, onto `lane`, all of one length. The caller knows that nothing overflows."""
    _add(lane, vectors)
