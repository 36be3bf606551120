"""Any mechanism of few outputs, sampled exactly: its matrix as whole-number weights whose ratios are proven, not rounded.

A matrix in float64, of a formula or of a linear program, satisfies epsilon only up to rounding, and a probability that is rounded
to 0 under one label alone is an infinite epsilon. So each row becomes whole numbers of one sum, and then to each column the same
whole number is added in every row, the least with which no ratio in it is above exp(epsilon); all rows still have one sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.labels.chance import Chance, below
from fedrho.privacy.labels.thresholds import DECIMALS, exp_decimal

BITS = 61
"""Weights of a row add up to a little more than 2**61; an epsilon above 42 is answered as at most 42, that no weight is 0."""
ONE_SIDED = Decimal("1e-40")
"""Relative, on an exp(epsilon) of 60 digits: taken off, it is below the true one."""


@dataclass(frozen=True, eq=False)
class ExactTable:
    """`weights` of shape (Y, O), int64, rows of one sum; the probability of an output is its weight over that sum."""

    weights: NDArray[np.int64]

    @property
    def total(self) -> int:
        return int(self.weights[0].sum())

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The sampler's own probabilities; rows add up to 1 but for float64's rounding."""
        shares: NDArray[np.float64] = self.weights / self.total
        return shares

    def draw(self, rows: NDArray[np.int64], chance: Chance) -> NDArray[np.int64]:
        """One output for each of the given rows of the table; one word each, but for rejections, whatever the rows."""
        marks = below(chance, np.full(len(rows), self.total, dtype=np.int64))
        ends = np.cumsum(self.weights, axis=1)
        drawn = np.empty(len(rows), dtype=np.int64)
        for row in range(len(self.weights)):
            mine = rows == row
            drawn[mine] = np.searchsorted(ends[row], marks[mine], side="right")
        return drawn


def exact_table(matrix: NDArray[np.float64], epsilon: float) -> ExactTable:
    """Guarantees: each ratio of two weights of one column is exp(epsilon) at most, in exact arithmetic.

    Probabilities differ from the matrix by about 2**-50, and where that satisfies epsilon only up to an error e, by about
    e / (exp(epsilon) - 1). Raises ValueError for a matrix that is not stochastic, or far from epsilon.
    """
    if not (np.isfinite(matrix).all() and (matrix >= -1e-6).all() and np.allclose(matrix.sum(axis=1), 1.0, atol=1e-6)):
        raise ValueError("each row of a matrix is of probabilities, which add up to 1")
    if epsilon == 0:
        matrix = np.broadcast_to(matrix.mean(axis=0), matrix.shape)
    weights = _whole(np.maximum(matrix, 0.0))
    if math.isfinite(epsilon) and epsilon > 0:
        added = _added(weights, epsilon)
        if sum(added) > 2**BITS:  # in whole numbers without end: int64 would begin anew
            raise ValueError(f"the matrix is far from epsilon {epsilon}")
        weights = weights + np.array(added, dtype=np.int64)[None, :]
    return ExactTable(weights)


def _whole(matrix: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows of 2**BITS in sum; what rounding leaves over goes to the row's largest."""
    normalised = matrix / matrix.sum(axis=1, keepdims=True)
    weights: NDArray[np.int64] = np.floor(normalised * 2.0**BITS).astype(np.int64)
    weights[np.arange(len(weights)), weights.argmax(axis=1)] += 2**BITS - weights.sum(axis=1)
    return weights


def _added(weights: NDArray[np.int64], epsilon: float) -> list[int]:
    """For each column the least c >= 0 with largest + c <= exp(epsilon) (smallest + c)."""
    growth = DECIMALS.multiply(exp_decimal(min(epsilon, 700.0)), Decimal(1) - ONE_SIDED)
    excess = DECIMALS.subtract(growth, Decimal(1))
    pairs = zip(weights.max(axis=0).tolist(), weights.min(axis=0).tolist(), strict=True)
    return [_least(Decimal(most), Decimal(least), growth, excess) for most, least in pairs]


def _least(most: Decimal, least: Decimal, growth: Decimal, excess: Decimal) -> int:
    allowed = int(DECIMALS.multiply(growth, least).to_integral_value(rounding=ROUND_FLOOR))
    if most <= allowed:
        return 0
    missing = DECIMALS.subtract(most, DECIMALS.multiply(growth, least))
    if not excess * Decimal(2) ** BITS > missing:
        raise ValueError("the matrix is far from its epsilon")
    return int(DECIMALS.divide(missing, excess).to_integral_value(rounding=ROUND_CEILING)) + 1
