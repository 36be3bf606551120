"""Where randomness comes from: the operating system, by stored seed.

Noise belongs to a *node* (a tree node, or a row of independent noise). A node's noise is drawn once, from a fresh 32-byte seed
of the operating system expanded by ChaCha20, rounded onto the integer grid, and remembered as seed and digest. Whoever needs the
same node again replays it from the seed; a digest that does not reproduce stops everything.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from randomgen import ChaCha

from fedrho.privacy.vectors import IntVector

SEED_BYTES = 32
LARGEST_STDDEV = 2.0**58
"""In grid units: 16 standard deviations still fit into int64, and float64 normals end before 16."""


class NoiseMismatch(RuntimeError):
    """Stored noise cannot be reproduced: a node is missing, or its seed no longer gives the noise that was released."""


@dataclass(frozen=True)
class NoiseNode:
    """One node's noise in short: its name, the 32-byte seed it grows from, and the SHA-256 of the vector."""

    name: str
    seed: bytes = field(repr=False)
    digest: bytes


class NoiseSource(Protocol):
    """Draws the noise of a node; the only way any mechanism gets at randomness."""

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        """int64 Gaussian noise of shape (size,), `stddev` in grid units, and what is needed to draw it again."""
        ...


class SystemNoise:
    """Fresh noise: a new seed of the operating system at every call, whatever the name."""

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        return expand(name, os.urandom(SEED_BYTES), size, stddev)


class ReplayedNoise:
    """The noise of nodes drawn earlier, from their stored seeds."""

    def __init__(self, nodes: Iterable[NoiseNode]) -> None:
        self._nodes = {node.name: node for node in nodes}

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        """Raises NoiseMismatch when the node is unknown or its vector differs from the one first drawn."""
        if name not in self._nodes:
            raise NoiseMismatch(f"noise node {name} was released but its seed is not stored")
        stored = self._nodes[name]
        vector, again = expand(name, stored.seed, size, stddev)
        if again.digest != stored.digest:
            raise NoiseMismatch(f"noise node {name} does not reproduce its digest; was the random generator's library changed?")
        return vector, stored


def expand(name: str, seed: bytes, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
    """The noise that grows from `seed`: N(0, stddev**2) in float64, rounded to integers (post-processing of the Gaussian)."""
    if not 0 <= stddev <= LARGEST_STDDEV:
        raise ValueError(f"the stddev of noise must lie between 0 and {LARGEST_STDDEV:g} grid units, not {stddev}")
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a noise seed has {SEED_BYTES} bytes, not {len(seed)}")
    generator = np.random.Generator(ChaCha(key=int.from_bytes(seed, "little"), counter=0, rounds=20))
    vector: IntVector = np.rint(generator.standard_normal(size) * stddev).astype(np.int64)
    return vector, NoiseNode(name, seed, hashlib.sha256(vector.astype("<i8", copy=False).tobytes()).digest())
