"""The running clipped sum of one attempt: it lives in memory, and goes to the mechanism once or to nobody."""

from __future__ import annotations

import numpy as np

from fedrho.privacy.vectors import Clipped, ClippedSum, Grid


class RunningSum:
    """int64, exact, the same in any order. Assumes fewer than 2**39 vectors, so that no coordinate overflows."""

    def __init__(self, size: int, grid: Grid) -> None:
        self._size = size
        self._grid = grid
        self._total = np.zeros(size, dtype=np.int64)

    def add(self, clipped: Clipped) -> None:
        """Raises ValueError when the vector was clipped for another grid or has another length."""
        if clipped.grid != self._grid or clipped.vector.size != self._size:
            raise ValueError("the vector does not belong to this sum")
        self._total += clipped.vector

    def close(self) -> ClippedSum:
        """Hands the sum over; this object then holds nothing."""
        total, self._total = self._total, np.zeros(0, dtype=np.int64)
        return ClippedSum(total, self._grid)

    def destroy(self) -> None:
        """Overwrites the sum; an abandoned attempt leaves nothing behind."""
        self._total.fill(0)
        self._total = np.zeros(0, dtype=np.int64)
