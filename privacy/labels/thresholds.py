"""Probabilities as integer thresholds of 64-bit words, and whether coins fall below them; exact, and never on the wrong side.

A float64 probability has steps of 2**-53 near 1, and one computed from exp(epsilon) overflows; either makes outputs impossible
that the claim needs to be possible (Mironov 2012). So thresholds are computed from exp(-epsilon) in 60-digit decimals and rounded
down, and a coin is one word of `Chance` compared with an integer. A threshold of 2**64 occurs for an infinite epsilon alone.
"""

from __future__ import annotations

import math
from decimal import ROUND_FLOOR, Context, Decimal
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.labels.chance import Chance

WHOLE: Final = 2**64
LARGEST: Final = 700.0
"""Larger finite epsilons are answered as this one: exp(-epsilon) stays a float64, and outputs stay possible."""
DECIMALS: Final = Context(prec=60)
GUARD: Final = Decimal("1e-30")
"""More than the rounding errors of a threshold in 60 digits, less than would show."""


def checked_epsilon(epsilon: float) -> None:
    """Raises ValueError unless it lies in [0, inf]."""
    if not epsilon >= 0:
        raise ValueError(f"epsilon is not negative, and not {epsilon}")


def decay(epsilon: float) -> float:
    """exp(-epsilon) in float64; above 0 for every finite epsilon."""
    return 0.0 if math.isinf(epsilon) else math.exp(-min(epsilon, LARGEST))


@lru_cache(maxsize=2**16)
def truth_threshold(epsilon: float, size: int) -> int:
    """floor(2**64 r) with r = (1 - e) / (1 + (size - 1) e), e = exp(-epsilon): tell the truth with r, else any of `size`.

    Then the truth is told with exp(epsilon) / (exp(epsilon) + size - 1) in all, every other with 1 / (exp(epsilon) + size - 1);
    to round r down makes every ratio smaller, and none below 1.
    """
    if math.isinf(epsilon):
        return WHOLE
    e = _decay(epsilon)
    c = DECIMALS
    return _floor(c.divide(c.subtract(Decimal(1), e), c.add(Decimal(1), c.multiply(Decimal(size - 1), e))))


@lru_cache(maxsize=2**10)
def keep_threshold(epsilon: float) -> int:
    """floor(2**64 / (1 + exp(-epsilon))), for randomized response of one bit; at least 2**63, so that none is rather flipped."""
    if math.isinf(epsilon):
        return WHOLE
    return max(WHOLE // 2, _floor(DECIMALS.divide(Decimal(1), DECIMALS.add(Decimal(1), _decay(epsilon)))))


def heads(words: NDArray[np.uint64], threshold: int) -> NDArray[np.bool_]:
    """Which words are below a threshold from 0 to 2**64."""
    return words <= np.uint64(threshold - 1) if threshold > 0 else np.zeros(words.shape, dtype=bool)


def told_truth(chance: Chance, epsilon: float, sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """One coin for each size, with `truth_threshold`."""
    distinct, where = np.unique(sizes, return_inverse=True)
    thresholds = np.array([truth_threshold(epsilon, int(size)) for size in distinct], dtype=object)
    last = np.array([max(one, 1) - 1 for one in thresholds], dtype=np.uint64)
    possible = np.array([one > 0 for one in thresholds], dtype=bool)
    told: NDArray[np.bool_] = (chance.words(len(sizes)) <= last[where]) & possible[where]
    return told


def exp_decimal(value: float) -> Decimal:
    """exp(value) in 60 digits; the float is taken for exactly what it is."""
    return DECIMALS.exp(Decimal(value))


def _decay(epsilon: float) -> Decimal:
    return exp_decimal(-min(float(epsilon), LARGEST))


def _floor(probability: Decimal) -> int:
    scaled = DECIMALS.subtract(DECIMALS.multiply(Decimal(WHOLE), probability), GUARD)
    return min(max(0, int(scaled.to_integral_value(rounding=ROUND_FLOOR))), WHOLE - 1)
