"""The Mechanism contract: clip norm, noise and price in one value.

Every mechanism here publishes, step by step, x_t + (C^-1 Z)_t for a lower-triangular C and Gaussian Z: the exact sum of the
step plus noise that does not depend on any data. So a mechanism is its noise sequence and its sensitivity; adding the noise
to the sum happens once, in `release`, for all of them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.noise import KeptVector, NoiseNode, NoiseSource
from fedrho.privacy.participation import Participation
from fedrho.privacy.vectors import ClippedSum, Grid, IntVector, Released, add_noise
from fedrho.privacy.zcdp import Rho, gaussian_rho


class NoiseState(Protocol):
    """What a mechanism remembers between steps."""

    @property
    def step(self) -> int:
        """Steps released so far."""

    @property
    def size(self) -> int:
        """Length of the vectors."""

    @property
    def drawn(self) -> tuple[NoiseNode, ...]:
        """The nodes whose noise was first drawn by the latest step; to be stored before that step is published."""

    @property
    def live(self) -> tuple[NoiseNode, ...]:
        """Every node that a later step or a replay still needs; the seeds of all others can be erased."""

    @property
    def kept(self) -> tuple[KeptVector, ...]:
        """Every vector that a replay needs beside the live nodes; to be stored before the latest step is published."""


LARGEST_NODE_STDDEV = 2.0**40
"""In grid units, of one node: sums of all nodes below a tree of 2**18 steps still fit into int64."""

SHOWN_NUMBERS = 8
"""Of a strategy, in a statement."""

State = TypeVar("State", bound=NoiseState)


@dataclass(frozen=True)
class Sensitivity:
    """Squared L2 sensitivity of everything that is released to one client, in units of the squared clip norm.

    `exact` says whether it is the worst case itself, or a proven bound above it.
    """

    squared: float
    exact: bool = True


@dataclass(frozen=True)
class Mechanism(ABC, Generic[State]):
    """Clip norm, noise and price in one value, so that they cannot disagree.

    `noise_multiplier` is the standard deviation of one node's noise per unit of clip norm, on the *sum* of a step.

    Guarantees: `steps` releases, however adaptively the sums were chosen, cost `cost(steps, participation)` in zCDP when each
    client's vectors are replaced by zero vectors (Denisov et al. 2022, arXiv 2202.08312, Theorem 2.1).
    Assumes: each client adds at most one `Clipped` a step, and takes part as `participation` allows.
    """

    name: ClassVar[str]
    words: ClassVar[str] = "of a mechanism of its own"
    """Of what kind the noise is, in plain words behind "noise", for statements."""
    counts: ClassVar[int] = 0
    """Coordinates of a sum behind those of the weights: what the mechanism itself asks of the clients."""
    grid: Grid
    noise_multiplier: float

    def __post_init__(self) -> None:
        gaussian_rho(1.0, self.noise_multiplier)
        if self.stddev > LARGEST_NODE_STDDEV:
            most = LARGEST_NODE_STDDEV / self.grid.radius
            raise ValueError(
                f"noise_multiplier must be at most {most:g} on a grid of {self.grid.bits} bits, not {self.noise_multiplier}"
            )

    @property
    def stddev(self) -> float:
        """Standard deviation of one node's noise, in grid units."""
        return self.noise_multiplier * self.grid.radius

    @abstractmethod
    def init(self, size: int) -> State:
        """The state before the first step, for vectors of shape (size,)."""

    @abstractmethod
    def next_noise(self, state: State, source: NoiseSource) -> tuple[IntVector, State]:
        """The noise that the next step adds to its sum, int64 in grid units, shape (size + counts,), and the state after it."""

    @abstractmethod
    def sensitivity(self, steps: int, participation: Participation) -> Sensitivity:
        """Of `steps` releases to one client who takes part as `participation` allows; raises ValueError where it cannot tell."""

    @abstractmethod
    def prefix_variances(self, steps: int) -> NDArray[np.float64]:
        """Variance of the noise in the sum of the first t releases, t = 1 ... steps, when a node's noise has variance 1."""

    @abstractmethod
    def restore(self, size: int, step: int, replayed: NoiseSource, kept: Sequence[KeptVector] = ()) -> State:
        """The state after `step` steps, from its live nodes and kept vectors; raises NoiseMismatch when they are not those."""

    def described(self) -> str:
        """In plain words, with every number that the price depends on beside steps and participation, for statements."""
        return ", ".join([f"{self.words} ({self.name})", f"noise multiplier {self.noise_multiplier!r}", *self.details()])

    def details(self) -> Iterator[str]:
        """What else the price depends on: each field that a mechanism adds, unless it has better words."""
        for part in fields(self):
            if part.name not in ("grid", "noise_multiplier"):
                yield f"{part.name.replace('_', ' ')} {shown(getattr(self, part.name))}"

    def cost(self, steps: int, participation: Participation) -> Rho:
        return gaussian_rho(self.sensitivity(steps, participation).squared, self.noise_multiplier)

    def grid_at(self, state: State) -> Grid:
        """The grid of the next step's sum; another one at every step only where the clip norm adapts."""
        return self.grid

    def release(self, total: ClippedSum, state: State, source: NoiseSource) -> tuple[Released, State]:
        """One step's noisy sum, shape (size,); raises ValueError when the sum was clipped for another mechanism."""
        self.check_sum(total, state)
        noise, after = self.next_noise(state, source)
        return add_noise(total, noise), after

    def check_sum(self, total: ClippedSum, state: State) -> None:
        """Raises ValueError unless `total` is a sum of what this mechanism asks of clients at the next step."""
        if total.grid != self.grid_at(state) or total.size != state.size + self.counts:
            raise ValueError("the sum does not lie on this mechanism's grid, or has another length")


def shown(value: object) -> str:
    """Short, but for different values different: of long tuples the first numbers, and a digest of all."""
    if not isinstance(value, tuple) or len(value) <= SHOWN_NUMBERS:
        return "none" if value in ((), None) else str(value)
    first = ", ".join(map(str, value[:SHOWN_NUMBERS]))
    return f"({first}, ... {len(value)} in all, SHA-256 {hashlib.sha256(repr(value).encode()).hexdigest()[:16]})"
