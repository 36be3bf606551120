"""Adaptive clipping: the clip norm follows a private quantile of the update norms (Andrew et al. 2021, arXiv 1905.03871).

Each client sends its clipped update and one more coordinate, +1 where its norm was within the clip norm C_t, else -1. The sum of
that coordinate is twice the centred count, sum of (bit - 1/2), whose sensitivity is 1/2. Both sums get Gaussian noise, and then

    fraction = 1/2 + noisy centred count / goal        C_{t+1} = C_t * exp(-learning_rate * (fraction - quantile))

The two queries together cost what one Gaussian of multiplier z costs (ibid., Theorem 1), because the noise is split as

    1 / z**2 = 1 / vector_multiplier**2 + 1 / (2 * count_stddev)**2

The grid scales with C_t, so in grid units the noise is the same at every step. C_{t+1} is a function of what was released.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.mechanism import Mechanism, Sensitivity
from fedrho.privacy.noise import KeptVector, NoiseMismatch, NoiseNode, NoiseSource, find_kept
from fedrho.privacy.participation import Participation
from fedrho.privacy.vectors import LARGEST_CLIP_NORM, SMALLEST_CLIP_NORM, ClippedSum, Grid, IntVector, Released
from fedrho.privacy.zcdp import gaussian_rho

DEFAULT_COUNT_NOISE = 1 / 20
"""Standard deviation of the count's noise per report (Andrew et al. 2021, section 3.1)."""


@dataclass(frozen=True)
class AdaptiveState:
    """`fraction` is the latest noisy share of clients within the clip norm; it and `clip_norm` are public."""

    step: int
    size: int
    clip_norm: float
    fraction: float
    drawn: tuple[NoiseNode, ...] = ()
    live: tuple[NoiseNode, ...] = ()
    kept: tuple[KeptVector, ...] = ()


@dataclass(frozen=True)
class AdaptiveGaussian(Mechanism[AdaptiveState]):
    """Independent Gaussian noise whose clip norm adapts, for DP-FedAvg; `grid` is that of the first step.

    `noise_multiplier` is the price of both queries together. `goal` is the public number of reports of a step. `count_stddev` is
    the standard deviation of the noise on the count of clients within the clip norm; goal / 20 where it is None.

    Assumes: each client's vector was made by `clipping.clip_with_count`, and its last coordinate is +1 or -1.
    """

    goal: int
    quantile: float = 0.5
    learning_rate: float = 0.2
    count_stddev: float | None = None

    name = "adaptive-gaussian"
    words = "that is drawn anew for each step, at a clip norm that adapts"
    counts = 1

    def __post_init__(self) -> None:
        if self.goal < 1:
            raise ValueError(f"goal must be at least 1, not {self.goal}")
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"quantile must lie between 0 and 1, not {self.quantile}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a finite number above 0, not {self.learning_rate}")
        gaussian_rho(1.0, self.noise_multiplier)
        if not (math.isfinite(self.count_multiplier) and self.count_multiplier > self.noise_multiplier):
            raise ValueError(
                f"count_stddev must be above half the noise_multiplier, {self.noise_multiplier / 2:g}, not "
                f"{self.count_multiplier / 2:g}: the count alone would cost more than both together may"
            )
        super().__post_init__()

    @property
    def count_multiplier(self) -> float:
        """Noise multiplier of the count: its standard deviation over its sensitivity of 1/2."""
        return 2.0 * (self.goal * DEFAULT_COUNT_NOISE if self.count_stddev is None else self.count_stddev)

    @property
    def vector_multiplier(self) -> float:
        """Noise multiplier of the vectors, above `noise_multiplier` by what the count costs."""
        ratio = self.noise_multiplier / self.count_multiplier
        return self.noise_multiplier / math.sqrt((1.0 - ratio) * (1.0 + ratio))

    @property
    def stddev(self) -> float:
        return self.vector_multiplier * self.grid.radius

    def grid_at(self, state: AdaptiveState) -> Grid:
        return Grid(state.clip_norm, self.grid.bits)

    def init(self, size: int) -> AdaptiveState:
        return AdaptiveState(step=0, size=size, clip_norm=self.grid.clip_norm, fraction=self.quantile)

    def next_noise(self, state: AdaptiveState, source: NoiseSource) -> tuple[IntVector, AdaptiveState]:
        """For the sum and the count behind it: shape (size + 1,)."""
        noise, row = source.draw(f"row.{state.step + 1}", state.size, self.stddev)
        count, node = source.draw(f"count.{state.step + 1}", self.counts, self.count_multiplier)
        return np.concatenate([noise, count]), replace(state, step=state.step + 1, drawn=(row, node))

    def release(self, total: ClippedSum, state: AdaptiveState, source: NoiseSource) -> tuple[Released, AdaptiveState]:
        """One step's noisy sum, shape (size,), without the count; the state after it has the next clip norm."""
        noisy, after = super().release(total, state, source)
        fraction = 0.5 + float(noisy.vector[-1]) / 2.0 / self.goal
        clip_norm = _bounded(state.clip_norm, -self.learning_rate * (fraction - self.quantile))
        kept = KeptVector(_kept_name(after.step), np.array([clip_norm, fraction]))
        released = Released(noisy.vector[: state.size], noisy.grid)
        return released, replace(after, clip_norm=clip_norm, fraction=fraction, kept=(kept,))

    def sensitivity(self, steps: int, participation: Participation) -> Sensitivity:
        return Sensitivity(participation.most_times(steps))

    def prefix_variances(self, steps: int) -> NDArray[np.float64]:
        """At a clip norm that stays as it was; relative to `noise_multiplier`, so above 1 at the first step."""
        return (self.vector_multiplier / self.noise_multiplier) ** 2 * np.arange(1.0, steps + 1.0)

    def restore(self, size: int, step: int, replayed: NoiseSource, kept: Sequence[KeptVector] = ()) -> AdaptiveState:
        """The clip norm after the latest release follows from data, not from seeds: it must have been kept."""
        if step == 0:
            return self.init(size)
        found = find_kept(kept, [_kept_name(step)], 2, "f")
        clip_norm, fraction = map(float, found[0].vector)
        if not SMALLEST_CLIP_NORM <= clip_norm <= LARGEST_CLIP_NORM:
            raise NoiseMismatch(f"{found[0].name} is not the clip norm that was kept: {clip_norm}")
        return AdaptiveState(step, size, clip_norm, fraction, kept=found)


def _kept_name(step: int) -> str:
    return f"clip_norm.{step}"


def _bounded(clip_norm: float, log_factor: float) -> float:
    """The new clip norm, kept where a grid can be laid over it."""
    log_norm = math.log(clip_norm) + log_factor
    if log_norm >= math.log(LARGEST_CLIP_NORM):
        return LARGEST_CLIP_NORM
    return max(math.exp(log_norm), SMALLEST_CLIP_NORM)
