"""Memory that a process shares with its workers by descriptor. It has no name, so that nothing of it can be left behind."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fedrho.privacy.vectors import FloatVector


class Shared:
    """`size` bytes, zero at first; `descriptor` is for a child, which makes its own view of the same bytes from it."""

    def __init__(self, size: int, descriptor: int | None = None) -> None:
        self.descriptor = _anonymous(size) if descriptor is None else descriptor
        self._map = mmap.mmap(self.descriptor, size)

    @classmethod
    def of_parent(cls, descriptor: int) -> Shared:
        return cls(os.fstat(descriptor).st_size, descriptor)

    def write(self, data: bytes) -> None:
        """All of it at once; raises ValueError for another length."""
        with memoryview(self._map) as view:
            view[:] = data

    @contextmanager
    def taken(self) -> Iterator[memoryview]:
        """What lies here, overwritten at the end of the block, which no view may outlive."""
        with memoryview(self._map) as view:
            yield view
            view[:] = bytes(len(view))

    def floats(self) -> FloatVector:
        """The same bytes as a vector that cannot be written; it keeps the memory alive."""
        vector = np.frombuffer(self._map, dtype=np.float32)
        vector.flags.writeable = False
        return vector

    def close(self) -> None:
        self._map.close()
        os.close(self.descriptor)


def _anonymous(size: int) -> int:
    """Of a file in memory, where the system has such files, else of one that is deleted already."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("fedrho")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
