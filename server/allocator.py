"""What the process asks of the C library's allocator: to keep the memory of an upload for the next, but not that of a flood."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
LARGEST_MMAP_THRESHOLD: Final = 32 * 1024 * 1024
"""Half of what an arena of a thread may hold; glibc refuses more."""
KEPT: Final = 256 * 1024 * 1024
"""Bytes of freed memory at the top of the heap that are not given back."""
TRIM_SECONDS: Final = 60.0
STATM: Final = "/proc/self/statm"


def keep_freed_memory() -> bool:
    """Whether the C library could be told to reuse the memory of chunks; without, every large one is mapped and unmapped anew.

    True with glibc alone. Other allocators (musl, macOS, jemalloc put in front) do not have the setting, or do not need it.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # not glibc where this is missing
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    settings = ((M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD), (M_TRIM_THRESHOLD, KEPT))
    taken = [mallopt(name, value) == 1 for name, value in settings]
    return all(taken)


class Trimmer(threading.Thread):
    """Gives freed memory back, now and then, while the process has much more than it once had.

    Without, what strangers made gRPC hold would stay for good: it lies between what is in use, where nothing trims by itself; and
    calls that are over keep their metadata until Python collects them, which a server that idles does not do.
    What uploads need again costs a few hundredths of a second each minute to fetch.
    """

    def __init__(self, seconds: float = TRIM_SECONDS, growth: int = KEPT) -> None:
        super().__init__(name="trimmer", daemon=True)
        self._seconds = seconds
        self._growth = growth
        self._over = threading.Event()

    def run(self) -> None:
        trim = ctypes.CDLL(None).malloc_trim
        lowest = resident()
        while not self._over.wait(self._seconds):
            if resident() > lowest + self._growth:
                gc.collect()
                trim(0)
            lowest = min(lowest, resident())

    def end(self) -> None:
        self._over.set()
        self.join()


@contextmanager
def trimmed() -> Iterator[None]:
    """While the block runs, with glibc on Linux; elsewhere nothing happens."""
    if not (hasattr(_library(), "malloc_trim") and os.path.exists(STATM)):
        yield
        return
    trimmer = Trimmer()
    trimmer.start()
    try:
        yield
    finally:
        trimmer.end()


def resident() -> int:
    """Bytes of memory that the process has now."""
    with open(STATM, encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
