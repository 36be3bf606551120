"""Where randomness comes from: the operating system, by stored seed.

Noise belongs to a *node* (a tree node, or a row of independent noise). A node's noise is drawn once, from a fresh 32-byte seed
of the operating system expanded by AES-128 in counter mode, rounded onto the integer grid, and remembered as seed and digest.
Whoever needs the same node again replays it from the seed; a digest that does not reproduce stops everything.

A vector grows in segments, each with a stretch of the counter of its own, on as many threads as there are processors: what
comes out depends on the seed alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.vectors import IntVector

SEED_BYTES = 32
"""16 of the AES key, then 16 of the counter's start."""
SEGMENT = 2**16
"""Coordinates that grow from one stretch of the counter."""
STRETCH = 2**64
"""Blocks of the counter between the starts of two segments; a segment uses some 2**16."""
NORMALS_END = 16
"""No float64 normal is as many standard deviations away from 0."""
LARGEST_STDDEV = 2.0**58
"""In grid units: 16 standard deviations still fit into int64."""


class NoiseMismatch(RuntimeError):
    """Stored noise cannot be reproduced: a node is missing, or its seed no longer gives the noise that was released."""


@dataclass(frozen=True)
class NoiseNode:
    """One node's noise in short: its name, the 32-byte seed it grows from, and the SHA-256 of its segments' SHA-256."""

    name: str
    seed: bytes = field(repr=False)
    digest: bytes


@dataclass(frozen=True, eq=False)
class KeptVector:
    """A vector that later noise depends on, kept as it is instead of being replayed; as secret as a seed.

    Its name never means another vector.
    """

    name: str
    vector: NDArray[Any] = field(repr=False)


def find_kept(kept: Iterable[KeptVector], names: Iterable[str], size: int, kind: str) -> tuple[KeptVector, ...]:
    """Those with these names, in that order; raises NoiseMismatch when one is missing, or no such vector at all.

    `kind` is of their numbers, "i" or "f". Whoever stores them keeps their digests too: numbers alone do not look wrong.
    """
    by_name = {one.name: one for one in kept}
    wanted = tuple(names)
    for name in wanted:
        if name not in by_name:
            raise NoiseMismatch(f"noise after the latest release depends on {name}, which is not stored")
        vector = by_name[name].vector
        if vector.shape != (size,) or vector.dtype.kind != kind or not np.isfinite(vector).all():
            raise NoiseMismatch(f"{name} is not the vector that was kept: {vector.dtype} of shape {vector.shape}, or not finite")
    return tuple(by_name[name] for name in wanted)


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
    vector = np.empty(size, dtype=np.int64)
    hashed = "<i4" if stddev * NORMALS_END < 2.0**31 else "<i8"

    def fill(start: int) -> bytes:
        segment = vector[start : start + SEGMENT]
        normals = _generator(seed, start // SEGMENT).standard_normal(segment.size)
        normals *= stddev
        whole = np.rint(normals, out=normals).astype(hashed)
        segment[:] = whole
        return hashlib.sha256(whole.data).digest()

    starts = range(0, size, SEGMENT)
    if len(starts) < 2:
        digests = [fill(start) for start in starts]
    else:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            digests = list(threads.map(fill, starts))
    return vector, NoiseNode(name, seed, hashlib.sha256(b"".join(digests)).digest())


def _generator(seed: bytes, segment: int) -> np.random.Generator:
    """Normals from AES-128 in counter mode, from the start of this segment's stretch of the counter."""
    from randomgen import AESCounter  # only who draws noise needs it; accounting does without

    start = (int.from_bytes(seed[16:], "little") + segment * STRETCH) % 2**128
    return np.random.Generator(AESCounter(key=int.from_bytes(seed[:16], "little"), counter=start))
