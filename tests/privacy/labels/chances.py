"""Chances for tests: seeded, written down in advance, and one that must not be asked."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Seeded:
    """Repeatable, as answers in earnest must never be; it counts its words."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self.drawn = 0

    def words(self, count: int) -> NDArray[np.uint64]:
        self.drawn += count
        return self._generator.integers(0, 2**64, count, dtype=np.uint64)


class Written:
    """These words, in this order, and no more."""

    def __init__(self, *words: int) -> None:
        self._words = list(words)

    def words(self, count: int) -> NDArray[np.uint64]:
        assert count <= len(self._words), "more words were drawn than are written"
        drawn, self._words = self._words[:count], self._words[count:]
        return np.array(drawn, dtype=np.uint64)


class Untouched:
    """Fails where any randomness is drawn."""

    def words(self, count: int) -> NDArray[np.uint64]:
        assert count == 0, f"{count} words were drawn"
        return np.zeros(0, dtype=np.uint64)
