"""The running clipped sum of one attempt: it lives in memory, and goes to the mechanism once or to nobody."""

from __future__ import annotations

from typing import Final

import numpy as np

from fedrho.privacy import kernels
from fedrho.privacy.vectors import ArrivedVector, Clipped, ClippedSum, Gathered, Grid, IntVector

LANE_LIMIT: Final = 2**31 - 1
ADDED_AT_ONCE: Final = 4
"""Vectors that wait to be added in one pass over the lane; a pass costs memory traffic, which is what limits a server."""


class RunningSum:
    """int64, exact, the same in any order. Assumes fewer than 2**39 vectors, so that no coordinate overflows.

    Vectors are added into an int32 lane, which is three times as fast as adding them into int64, and the lane goes into the
    int64 sum before it could overflow: no coordinate of a clipped vector exceeds the radius, so that many vectors fit as the
    radius fits into the lane's largest number. Of those that nobody else can write, a few wait to be added together; they
    belong to the sum from the moment they were handed over.
    """

    def __init__(self, size: int, grid: Grid) -> None:
        self._size = size
        self._grid = grid
        self._wide = np.zeros(size, dtype=np.int64)
        self._lane = np.zeros(size, dtype=np.int32)
        self._fit = LANE_LIMIT // grid.radius
        self._in_lane = 0
        self._waiting: list[ArrivedVector] = []

    def add(self, clipped: Clipped | Gathered) -> None:
        """Raises ValueError when the vector was clipped for another grid or has another length."""
        if clipped.grid != self._grid or clipped.size != self._size:
            raise ValueError("the vector does not belong to this sum")
        if self._in_lane == self._fit:
            self._flush()
        self._in_lane += 1
        if isinstance(clipped, Clipped):
            kernels.add(self._lane, [clipped.vector])
            return
        self._waiting.append(clipped.vector)
        if len(self._waiting) == ADDED_AT_ONCE:
            self._add_waiting()

    def close(self) -> ClippedSum:
        """Hands the sum over; this object then holds nothing."""
        total = ClippedSum(self._total, self._grid)
        self._wide = np.zeros(0, dtype=np.int64)
        self._lane = np.zeros(0, dtype=np.int32)
        return total

    def destroy(self) -> None:
        """Overwrites the sum; an abandoned attempt leaves nothing behind."""
        self._waiting.clear()
        self._wide.fill(0)
        self._lane.fill(0)
        self.close()

    @property
    def _total(self) -> IntVector:
        self._flush()
        return self._wide

    def _add_waiting(self) -> None:
        kernels.add(self._lane, self._waiting)
        self._waiting.clear()

    def _flush(self) -> None:
        self._add_waiting()
        self._wide += self._lane
        self._lane.fill(0)
        self._in_lane = 0
