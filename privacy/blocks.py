"""Long vectors, a block of coordinates at a time: small enough for the cache, on as many threads as there are processors."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

BLOCK = 2**15
"""Coordinates; 256 KiB of int64 or float64."""


def each_block(size: int, work: Callable[[slice], None]) -> None:
    """Calls `work` once for every block of the coordinates 0 ... size - 1, in any order, perhaps at the same time."""
    parts = [slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]
    if len(parts) < 2:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor() as threads:
        for _ in threads.map(work, parts):  # raises what `work` raised
            pass
