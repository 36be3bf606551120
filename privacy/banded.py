"""Banded Toeplitz noise: C[t, s] = c[t - s] for fewer than `bands` steps back; the last bands - 1 noise vectors are kept.

Everything is an integer. The coefficients are multiples C_j / 2**16 of 2**-16 with C_0 = 2**16, Z is drawn on a grid 2**16 times
finer than the sums, and the noise of step t is

    n_t = floor((z_t - sum over 1 <= j < bands of C_j * n_{t-j} + 2**15) / 2**16)

The rounding costs no privacy. Let G_t be the exact sums and y = G + n what is published. Then 2**16 * (CG)_t = sum over j of
C_j G_{t-j} is an integer, and adding G_t to both sides of the line above gives

    y_t = floor((2**16 * (CG)_t + z_t - sum over 1 <= j < bands of C_j * y_{t-j} + 2**15) / 2**16)

so y is a function of 2**16 * CG + z alone: of the Gaussian mechanism's output for CG, itself rounded to integers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from fedrho.privacy.blocks import each_block
from fedrho.privacy.mechanism import Mechanism, Sensitivity
from fedrho.privacy.noise import NORMALS_END, KeptVector, NoiseNode, NoiseSource, find_kept
from fedrho.privacy.participation import Participation
from fedrho.privacy.progress import Progress, unwatched
from fedrho.privacy.toeplitz import (
    Objective,
    Series,
    column_counts,
    error_weights,
    inverse_series,
    prefix_variances,
    square_root_coefficients,
    toeplitz_sensitivity,
)
from fedrho.privacy.vectors import IntVector

FINE_BITS = 16
"""Z lies on a grid 2**16 times finer than the sums, and coefficients are multiples of 2**-16."""
MOST_STEPS = 2**18
"""Noise of so many steps is proved to fit into int64; a stream that goes further is refused."""
MOST_SINGLE_BANDS = 512
"""Of `optimal_bands` for one participation, where nothing else limits the memory of one vector a band."""
MOST_BAND_STEPS = 500_000_000
"""Steps times bands that `optimal_bands` chooses by itself: what it takes about a minute for."""


@dataclass(frozen=True, eq=False)
class BandedState:
    """The last bands - 1 noise vectors, newest first; they say all that later noise depends on, so no seed is live."""

    step: int
    size: int
    kept: tuple[KeptVector, ...] = ()
    drawn: tuple[NoiseNode, ...] = ()
    live: tuple[NoiseNode, ...] = ()


@dataclass(frozen=True)
class BandedToeplitz(Mechanism[BandedState]):
    """C^-1 Z for a Toeplitz C of few bands (Choquette-Choo et al. 2023, arXiv 2306.08153), rounded to integers.

    `coefficients` are c_0 = 1, c_1, ... and are rounded to multiples of 2**-16 at construction, so that what is priced is what is
    streamed. Raises ValueError for noise so large that int64 could overflow within 2**18 steps.
    """

    name = "banded-toeplitz"
    words = "that is correlated within a band of steps"
    coefficients: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.coefficients and self.coefficients[0] == 1.0 and all(map(math.isfinite, self.coefficients))):
            raise ValueError("coefficients must be finite, and the first of them 1")
        rounded = np.trim_zeros(np.rint(np.ldexp(self.coefficients, FINE_BITS)), "b")
        object.__setattr__(self, "coefficients", tuple(np.ldexp(rounded, -FINE_BITS).tolist()))
        reach = self._reach * sum(map(abs, self.scaled))
        if reach == math.inf:
            raise ValueError("the noise of these coefficients would grow without end: 1 / c(x) does")
        if not reach < 2.0**63:
            most = self.noise_multiplier * 2.0**63 / reach
            raise ValueError(f"noise_multiplier must be less than {most:g} with these coefficients, not {self.noise_multiplier}")

    @property
    def bands(self) -> int:
        return len(self.coefficients)

    @property
    def scaled(self) -> tuple[int, ...]:
        """C_j = 2**16 * c_j."""
        return tuple(int(coefficient * 2**FINE_BITS) for coefficient in self.coefficients)

    @property
    def _reach(self) -> float:
        """No noise of a step is larger, in grid units: sum of |1 / c(x)| times the largest z_t / 2**16, and its rounding."""
        return _inverse_norm(self.coefficients) * (NORMALS_END * self.stddev + 1)

    def init(self, size: int) -> BandedState:
        return BandedState(step=0, size=size)

    def next_noise(self, state: BandedState, source: NoiseSource) -> tuple[IntVector, BandedState]:
        if state.step >= MOST_STEPS:
            raise ValueError(f"banded noise ends after {MOST_STEPS} steps")
        fresh, node = source.draw(f"row.{state.step + 1}", state.size, math.ldexp(self.stddev, FINE_BITS))
        noise = np.empty(state.size, dtype=np.int64)
        newest: NDArray[Any] = np.empty(state.size, dtype=np.int32 if self._reach < 2.0**31 else np.int64)
        echoes = [(scaled, one.vector) for scaled, one in zip(self.scaled[1:], state.kept, strict=False)]  # fewer at first

        def work(part: slice) -> None:
            left = fresh[part] + 2 ** (FINE_BITS - 1)
            for coefficient, earlier in echoes:
                left -= np.multiply(earlier[part], coefficient, dtype=np.int64)
            np.right_shift(left, FINE_BITS, out=noise[part])
            newest[part] = noise[part]

        each_block(state.size, work)
        kept = (KeptVector(_kept_name(state.step + 1), newest), *state.kept)[: self.bands - 1]
        return noise, BandedState(state.step + 1, state.size, kept, (node,))

    def sensitivity(self, steps: int, participation: Participation) -> Sensitivity:
        """Exact; raises ValueError for more bands than the separation of two participations."""
        if participation.most_times(steps) > 1:
            _refuse_overlap(self.bands, participation)
        return toeplitz_sensitivity(self.coefficients, steps, participation)

    def prefix_variances(self, steps: int) -> NDArray[np.float64]:
        """Without the rounding, which adds up to 1/12 of a squared grid unit to each row of Z."""
        return prefix_variances(inverse_series(self.coefficients, steps))

    def restore(self, size: int, step: int, replayed: NoiseSource, kept: Sequence[KeptVector] = ()) -> BandedState:
        names = [_kept_name(earlier) for earlier in range(step, max(0, step - self.bands + 1), -1)]
        return BandedState(step, size, find_kept(kept, names, size, "i"))


def _kept_name(step: int) -> str:
    return f"noise.{step}"


def optimal_bands(
    steps: int,
    participation: Participation,
    bands: int | None = None,
    objective: Objective = "rmse",
    progress: Progress = unwatched,
) -> tuple[float, ...]:
    """Coefficients that minimise the loss over `steps` steps, by L-BFGS from the square root; the same on every call.

    By default as many bands as the separation allows, but no more than keep steps * bands within 5e8, or it would take hours; for
    one participation at most 512, which cost 13 % of the largest error, or 5 % of the mean one, at 2,048 steps; a BLT does better
    in less memory.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    repeated = participation.most_times(steps) > 1
    affordable = max(1, MOST_BAND_STEPS // steps)
    chosen = bands or (min(participation.min_separation, affordable) if repeated else MOST_SINGLE_BANDS)
    chosen = min(chosen, steps)
    if repeated:
        _refuse_overlap(chosen, participation)
    start = square_root_coefficients(chosen)[1:]
    if not start.size:
        return (1.0,)
    counts, weights = column_counts(chosen, steps, participation), error_weights(steps, objective)
    options = {"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-8}
    iterations = itertools.count(1)

    def told(tail: Series) -> None:
        progress("iteration", next(iterations), None, f"finding the best {chosen} bands")

    found = scipy.optimize.minimize(_log_loss, start, (counts, weights), "L-BFGS-B", jac=True, options=options, callback=told)
    return (1.0, *map(float, found.x))


def _log_loss(tail: Series, counts: Series, weights: Series) -> tuple[float, Series]:
    """log(squared sensitivity * squared error) of c = (1, *tail), and its gradient.

    d = 1 / c(x) changes by -d * d times the change of c, products of series; the gradient is their correlation with that of d.
    """
    coefficients = np.concatenate(([1.0], tail))
    inverse = inverse_series(coefficients, weights.size)
    prefixes = np.cumsum(inverse)
    squared, error = counts @ coefficients**2, weights @ prefixes**2
    by_inverse = np.cumsum((2 / error * weights * prefixes)[::-1])[::-1]
    square = scipy.signal.fftconvolve(inverse, inverse)[: weights.size]
    by_error = -scipy.signal.fftconvolve(by_inverse, square[::-1])[weights.size - 1 :][: coefficients.size]
    return math.log(squared * error), (2 / squared * counts * coefficients + by_error)[1:]


def _refuse_overlap(bands: int, participation: Participation) -> None:
    if bands > participation.min_separation:
        raise ValueError(f"bands must be at most the separation, {participation.min_separation}, not {bands}")


@lru_cache(maxsize=256)
def _inverse_norm(coefficients: tuple[float, ...]) -> float:
    """sum of |d[t]| over t < 2**18, d = 1 / c(x); infinite where d grows without bounds. It stops where d has died away."""
    chunk, total = max(4096, len(coefficients)), 0.0
    impulse, memory = np.zeros(chunk), np.zeros(max(len(coefficients) - 1, 0))
    impulse[0] = 1.0
    for _ in range(0, MOST_STEPS, chunk):
        inverse, memory = scipy.signal.lfilter([1.0], coefficients, impulse, zi=memory)
        impulse[0] = 0.0
        with np.errstate(over="ignore"):
            added = float(np.abs(inverse).sum())
        total += added
        if not math.isfinite(added):
            return math.inf
        if added <= 1e-18 * total:
            break
    return total
