"""The running clipped sum of one attempt: it lives in memory, and goes to the mechanism once or to nobody."""

from __future__ import annotations

from typing import Final

import numpy as np

from fedrho.privacy.vectors import Clipped, ClippedPieces, ClippedSum, Grid, IntVector

LANE_LIMIT: Final = 2**31 - 1


class RunningSum:
    """int64, exact, the same in any order. Assumes fewer than 2**39 vectors, so that no coordinate overflows.

    Vectors are added into an int32 lane, which is three times as fast as adding them into int64, and the lane goes into the
    int64 sum before it could overflow: no coordinate of a `Clipped` exceeds the radius, so that many vectors fit as the radius
    fits into the lane's largest number.
    """

    def __init__(self, size: int, grid: Grid) -> None:
        self._size = size
        self._grid = grid
        self._wide = np.zeros(size, dtype=np.int64)
        self._lane = np.zeros(size, dtype=np.int32)
        self._fit = LANE_LIMIT // grid.radius
        self._in_lane = 0

    def add(self, clipped: Clipped | ClippedPieces) -> None:
        """Raises ValueError when the vector was clipped for another grid or has another length."""
        if clipped.grid != self._grid or clipped.size != self._size:
            raise ValueError("the vector does not belong to this sum")
        if self._in_lane == self._fit:
            self._flush()
        self._in_lane += 1
        start = 0
        for piece in clipped.pieces:
            self._lane[start : start + piece.size] += piece
            start += piece.size

    def close(self) -> ClippedSum:
        """Hands the sum over; this object then holds nothing."""
        total = ClippedSum(self._total, self._grid)
        self._wide = np.zeros(0, dtype=np.int64)
        self._lane = np.zeros(0, dtype=np.int32)
        return total

    def destroy(self) -> None:
        """Overwrites the sum; an abandoned attempt leaves nothing behind."""
        self._wide.fill(0)
        self._lane.fill(0)
        self.close()

    @property
    def _total(self) -> IntVector:
        self._flush()
        return self._wide

    def _flush(self) -> None:
        self._wide += self._lane
        self._lane.fill(0)
        self._in_lane = 0
