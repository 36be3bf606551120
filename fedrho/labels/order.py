"""Whether the order of records, which is public, tells their labels: a file that is sorted by class, or grouped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
RARE: Final = 0.1
"""How improbable a random order must be that is sorted or grouped, to be no accident: not very, for to shuffle is free."""
FAR: Final = 6.0
"""Standard deviations below the mean number of runs, likewise where rows are out of place or there are several sorted parts;"""
FEW: Final = 0.3
"""and what share of that mean is too few. Neighbours in time are more alike than by chance, but seldom by so much."""


def tells_labels(labels: Ints, classes: Sequence[str]) -> bool:
    """Sorted in the order of the classes or of their names, up or down; or grouped, see `by_class`; and by no accident."""
    names = np.empty(len(classes), dtype=np.int64)
    names[np.argsort(np.array(classes, dtype=str), kind="stable")] = np.arange(len(classes))
    return by_rank(labels) or by_rank(names[labels]) or by_class(labels)


def by_rank(ranks: Ints) -> bool:
    steps = np.diff(ranks)
    counts = np.unique(ranks, return_counts=True)[1].tolist()
    if len(counts) < 2 or not ((steps >= 0).all() or (steps <= 0).all()):
        return False
    return math.log(2) + _arrangements(counts, len(ranks)) <= math.log(RARE * (1 + 1e-9))


def by_class(labels: Ints) -> bool:
    """Whether rows are grouped by label, in whatever order of classes, all or part by part, but for a few; and by no accident.

    The number of runs of n labels in random order has mean 1 + n - sum n_c**2 / n (Barton & David 1957).
    """
    counts = np.bincount(labels)
    counts = counts[counts > 0].astype(np.float64)
    n, runs = len(labels), 1 + int(np.count_nonzero(np.diff(labels)))
    if len(counts) < 2:
        return False
    if runs == len(counts):
        return math.lgamma(runs + 1) + _arrangements(counts.tolist(), n) <= math.log(RARE * (1 + 1e-9))
    squares, cubes = float((counts**2).sum()), float((counts**3).sum())
    variance = (squares * (squares + n * (n + 1)) - 2 * n * cubes - n**3) / (n**2 * (n - 1))
    mean = 1 + n - squares / n
    return runs <= max(2 * len(counts), FEW * mean) and runs < mean - FAR * math.sqrt(max(variance, 0.0))


def _arrangements(counts: Sequence[float], n: int) -> float:
    """The logarithm of the chance of one arrangement of n labels among all."""
    return sum(math.lgamma(one + 1) for one in counts) - math.lgamma(n + 1)
