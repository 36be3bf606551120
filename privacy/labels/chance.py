"""Where the randomness of answers comes from, and exact draws from it: integers against integer thresholds, no float."""

from __future__ import annotations

import os
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


class Chance(Protocol):
    """Words of 64 independent, fair bits; the only way any randomizer of labels gets at randomness."""

    def words(self, count: int) -> Words:
        """uint64 of shape (count,)."""
        ...


class SystemChance:
    """From the operating system. There is no seed: who knew one could tell labels from answers with certainty."""

    def words(self, count: int) -> Words:
        return np.frombuffer(os.urandom(8 * count), dtype=np.uint64)


def below(chance: Chance, bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each bound a whole number from 0 up to but without it, all equally likely (by rejection); bounds are at least 1."""
    wanted = bounds.astype(np.uint64)
    remainder = (np.uint64(2**64 - 1) % wanted + np.uint64(1)) % wanted
    last = np.uint64(2**64 - 1) - remainder
    drawn = np.zeros(len(bounds), dtype=np.int64)
    missing = np.arange(len(bounds))
    while len(missing):
        words = chance.words(len(missing))
        kept = words <= last[missing]
        chosen = missing[kept]
        drawn[chosen] = (words[kept] % wanted[chosen]).astype(np.int64)
        missing = missing[~kept]
    return drawn
