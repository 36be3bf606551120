"""Counts of labels with discrete Laplace noise, sampled exactly (Canonne, Kamath & Steinke 2020, algorithms 1 and 2).

    P[Z = z] = tanh(a / 2) exp(-a |z|),  a = epsilon / 2

because to replace one label moves two counts by one each: the L1 sensitivity is 2. All draws are of whole numbers
against whole numbers; epsilon is taken for the fraction that its float64 is.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.labels.chance import Chance

FURTHEST: Final = 2**62
"""Noisy counts beyond are told as this: post-processing that keeps them in int64."""
SMALLEST: Final = 2.0**-40
"""No epsilon below is accepted: such counts are noise alone."""


def noisy_histogram(counts: NDArray[np.int64], epsilon: float, chance: Chance) -> NDArray[np.int64]:
    """Guarantees: epsilon-DP under the replacement of one label, for counts that one label is in once; they may be negative.

    Raises ValueError for an epsilon that `checked_histogram_epsilon` refuses.
    """
    checked_histogram_epsilon(epsilon)
    if math.isinf(epsilon):
        return counts.astype(np.int64)
    laplace = DiscreteLaplace(Fraction(epsilon) / 2, chance)
    noisy = [_within(int(count) + laplace.draw()) for count in counts.ravel()]
    return np.array(noisy, dtype=np.int64).reshape(counts.shape)


def checked_histogram_epsilon(epsilon: float) -> None:
    """Raises ValueError for one below 2**-40, and for 0, whose noise would have to be infinite."""
    if not epsilon >= SMALLEST:
        raise ValueError(f"the epsilon of a histogram is at least {SMALLEST:g}, not {epsilon}")


def laplace_pmf(values: NDArray[np.int64], a: float) -> NDArray[np.float64]:
    """tanh(a / 2) exp(-a |z|)."""
    chances: NDArray[np.float64] = math.tanh(a / 2) * np.exp(-a * np.abs(values))
    return chances


class DiscreteLaplace:
    """Whole numbers z with chance proportional to exp(-a |z|), for a fraction a above 0; exact."""

    def __init__(self, a: Fraction, chance: Chance) -> None:
        if a <= 0:
            raise ValueError(f"a is above 0, and not {a}")
        self._s, self._t = a.numerator, a.denominator
        self._chance = chance

    def draw(self) -> int:
        """Algorithm 2: |z| = floor(X / s) of a geometric X with exp(-1 / t); a sign, and no second zero."""
        while True:
            whole = self._geometric() // self._s
            negative = self._below(2) == 1
            if not (negative and whole == 0):
                return -whole if negative else whole

    def _geometric(self) -> int:
        """X = U + t V: U below t is kept with exp(-U / t), V counts successes of exp(-1)."""
        while True:
            u = self._below(self._t)
            if self._exp_coin(u, self._t):
                break
        v = 0
        while self._exp_coin(1, 1):
            v += 1
        return u + self._t * v

    def _exp_coin(self, numerator: int, denominator: int) -> bool:
        """Heads with exp(-numerator / denominator), which lies in [0, 1] (algorithm 1): is the first tail at an odd toss?"""
        toss = 1
        while self._below(denominator * toss) < numerator:
            toss += 1
        return toss % 2 == 1

    def _below(self, bound: int) -> int:
        """A whole number from 0 up to but without `bound`, by rejection of as many bits as it has."""
        bits = (bound - 1).bit_length()
        while True:
            drawn = 0
            for word in self._chance.words(-(-bits // 64)).tolist():
                drawn = drawn << 64 | word
            drawn >>= -bits % 64
            if drawn < bound:
                return drawn


def _within(value: int) -> int:
    return max(-FURTHEST, min(FURTHEST, value))
