"""Randomness of a simulation: everything grows from the seed of its study, so nothing of it is secret and nobody is protected.

A key is a SHA-256 over the seed and what the randomness is for. Whatever happens once for a step or a device has its own key, so
no generator has a state that would have to be kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.noise import NoiseNode, expand
from fedrho.privacy.vectors import IntVector

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST = np.uint64(0xBF58476D1CE4E5B9)
SECOND = np.uint64(0x94D049BB133111EB)


def key(seed: int, *purpose: int | str) -> bytes:
    """32 bytes that belong to this seed and purpose alone."""
    text = "\x1f".join(["fedrho simulation", str(seed), *(f"{type(part).__name__}:{part}" for part in purpose)])
    return hashlib.sha256(text.encode()).digest()


def generator(seed: int, *purpose: int | str) -> np.random.Generator:
    """A generator of its own for one purpose, to be used up at once."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key(seed, *purpose)[:16], "little")))


def coins(devices: NDArray[np.int64], seed: int, *purpose: int | str) -> NDArray[np.float64]:
    """One number in [0, 1) for each device, the same whoever else is asked about. SplitMix64, started at a key."""
    start = np.uint64(int.from_bytes(key(seed, *purpose)[:8], "little"))
    state = start + (devices.astype(np.uint64) + np.uint64(1)) * GOLDEN
    state = (state ^ (state >> np.uint64(30))) * FIRST
    state = (state ^ (state >> np.uint64(27))) * SECOND
    state ^= state >> np.uint64(31)
    drawn: NDArray[np.float64] = (state >> np.uint64(11)).astype(np.float64)
    return drawn * 2.0**-53


@dataclass(frozen=True)
class SeededNoise:
    """The product's noise from seeds that anybody can compute, one for each node of a run: for simulations alone.

    Assumes nothing and guarantees nothing about privacy: whoever knows the study's seed can take the noise off again.
    """

    seed: int
    run: str

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        return expand(name, key(self.seed, "noise", self.run, name), size, stddev)


class NoNoise:
    """Zeros in the place of a mechanism's noise: the way that a run without privacy goes, for simulations alone."""

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        return np.zeros(size, dtype=np.int64), NoiseNode(name, bytes(32), bytes(32))
