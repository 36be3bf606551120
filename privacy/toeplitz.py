"""Toeplitz strategies: C[t, s] = c[t - s], a power series c(x), so that inverse, errors and sensitivity are sums over it.

With d = 1 / c(x), row t of C^-1 Z is sum_i d[i] Z[t - i], and the noise of the prefix sum at t has the variance
sum of beta[i]**2 over i < t, with beta = cumsum(d). The sensitivity to a client that takes part k times, b or more apart, over n
steps, is the largest norm of a sum of k columns, where

    bands <= b, or k = 1     the columns do not overlap, and the earliest are the longest: sum of their norms, any signs
    c falls and c >= 0       the columns 0, b, 2b, ... are the worst (Kalinin & Lampert 2024, arXiv 2405.13763, Theorem 2):
                             sum over t of (sum over j < k, jb <= t of c[t - jb])**2
    otherwise                that of the least falling series above |c|: all entries of C^T C can only grow

The second formula without its condition is false: c = (1, .1, .1, .9), n = 12, b = 2, k = 3 gives 6.25, and the truth is 9.09.
The three sets of steps are allowed when the participation is cyclic, too, so that is no cheaper.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from fedrho.privacy.mechanism import Sensitivity
from fedrho.privacy.participation import Participation

Series = NDArray[np.float64]
Objective = Literal["rmse", "max"]
"""What an optimised strategy makes small: the root of the mean squared prefix error, or the largest one (the last)."""

GRAIN = 2.0**-16
"""Series of multiples of this are added and squared without any rounding below `CLEAN`."""
CLEAN = 2.0**21
"""A sum of squares of such series below this has less than 53 bits."""
ROUNDING = 1e-12
"""Relative: above the rounding of every other sum here, of some 2**8 halves of 2**-52; added so that no price is too low."""


def square_root_coefficients(count: int) -> Series:
    """c[j] = binomial(2j, j) / 4**j, whose square is the series 1, 1, 1, ... (Fichtenberger et al. 2023, arXiv 2202.11205)."""
    j = np.arange(1.0, count)
    return np.concatenate(([1.0], np.cumprod((2 * j - 1) / (2 * j))))[:count]


def inverse_series(coefficients: ArrayLike, steps: int) -> Series:
    """The first `steps` coefficients of 1 / c(x)."""
    impulse = np.zeros(steps)
    impulse[:1] = 1.0
    inverse: Series = scipy.signal.lfilter([1.0], np.asarray(coefficients, dtype=np.float64)[: max(steps, 1)], impulse)
    return inverse


def prefix_variances(inverse: Series) -> Series:
    """Variance of the noise of the prefix sums 1 ... len(inverse), at variance 1 of a row of Z."""
    return np.cumsum(np.cumsum(inverse) ** 2)


def error_weights(steps: int, objective: Objective) -> Series:
    """w with error = sum of w[i] * beta[i]**2: the sum of all prefix variances, or the last one, which is the largest."""
    return np.arange(steps, 0.0, -1.0) if objective == "rmse" else np.ones(steps)


def toeplitz_sensitivity(coefficients: ArrayLike, steps: int, participation: Participation) -> Sensitivity:
    """Of the strategy with these coefficients (zero beyond them) over `steps` steps; exact but for a bound in the last case.

    Guarantees: never below the truth, rounding included. Raises ValueError when c[0] is not positive, or something not finite.
    """
    series = np.trim_zeros(np.asarray(coefficients, dtype=np.float64), "b")
    if not (np.isfinite(series).all() and series.size and series[0] > 0):
        raise ValueError("a Toeplitz strategy has finite coefficients, the first of them positive")
    if steps <= 0:
        return Sensitivity(0.0)
    series, times = series[:steps], participation.most_times(steps)
    if times == 1 or series.size <= participation.min_separation:
        return Sensitivity(_upward(column_counts(series.size, steps, participation) * series**2, series))
    majorant = np.maximum.accumulate(np.abs(series)[::-1])[::-1]
    sums = _sum_of_columns(majorant, steps, times, participation.min_separation)
    return Sensitivity(_upward(sums**2, sums), exact=bool(np.array_equal(majorant, series)))


def column_counts(bands: int, steps: int, participation: Participation) -> Series:
    """How many of the columns 0, b, 2b, ... of at most k participations reach down to their t-th entry, t < bands."""
    fitting = 1 + (steps - 1 - np.arange(bands)) // participation.min_separation
    return np.minimum(float(participation.most_times(steps)), fitting)


def _sum_of_columns(series: Series, steps: int, times: int, separation: int) -> Series:
    """sum over j < times of series[t - j * separation], t < steps, by doubling: sums of non-negative numbers, nothing cancels."""
    doubled, total = np.zeros(steps), np.zeros(steps)
    doubled[: series.size] = series
    start, width = 0, separation
    while times and start < steps:
        if times & 1:
            total[start:] += doubled[: steps - start]
            start += width
        doubled[width:] += doubled[:-width].copy()
        times, width = times >> 1, 2 * width
    return total


def _upward(squares: Series, roots: Series) -> float:
    """The sum of the squares of these roots, perhaps several times each: exact where that is certain, else rounded up."""
    total = math.fsum(squares)
    grains = roots / GRAIN
    clean = total < CLEAN and np.array_equal(grains, np.rint(grains))
    return total if clean else total * (1 + ROUNDING)
