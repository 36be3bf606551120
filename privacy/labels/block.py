"""BlockRR for unequal classes (arXiv 2602.03277): a frequent block of classes answers among itself, rare ones more precisely.

S1 frequent classes (l1 of them), S2 the others (l2), Delta part of S1 (delta classes)
D = (e + l1 - 1)(e + l2 - 1) - (l1 - delta) l2,  e = exp(epsilon),  K = l1 + l2
beta = ((e - 1) + delta l2 / K) / D,  gamma = ((e + delta - 1) - delta (e + l1 - 1) / K) / D
y in S1: itself e beta, others of S1 beta, S2 gamma
y in S2: itself e gamma, others of S2 gamma, Delta 1 / K, the rest of S1 beta
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.chance import Chance
from fedrho.privacy.labels.randomizers import Labels, Priors, checked_labels, uniform_like
from fedrho.privacy.labels.tables import ExactTable, exact_table
from fedrho.privacy.labels.thresholds import checked_epsilon

SMALLEST: Final = 1e-6
"""Of a smaller epsilon the formulas are quotients of rounding errors."""


@dataclass(frozen=True)
class BlockRR:
    """`frequent` and the part of it, `shared`, are public lists of classes. *Guarantees* epsilon-DP, of the sampler."""

    epsilon: float
    frequent: tuple[int, ...]
    shared: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        checked_epsilon(self.epsilon)
        if not SMALLEST <= self.epsilon < math.inf:
            raise ValueError(f"the epsilon of BlockRR is at least {SMALLEST:g} and finite, and not {self.epsilon}")
        if not self.frequent or len(set(self.frequent)) != len(self.frequent) or len(set(self.shared)) != len(self.shared):
            raise ValueError("the frequent classes are one at least, and each is named once")
        if not set(self.shared) <= set(self.frequent):
            raise ValueError("shared classes are some of the frequent ones")

    @property
    def name(self) -> str:
        return "BlockRR"

    def admit(self, priors: ArrayLike) -> Priors:
        """Uniform ones of the same shape; raises ValueError where there are no such classes, or no others."""
        rows = uniform_like(priors)
        if min(self.frequent) < 0 or max(self.frequent) >= rows.shape[1] or len(self.frequent) >= rows.shape[1]:
            raise ValueError(f"frequent classes are some of the {rows.shape[1]}, and not all")
        return rows

    def answer(self, labels: Labels, priors: ArrayLike, chance: Chance) -> Answers:
        rows = self.admit(priors)
        known = checked_labels(labels, rows.shape)
        table = self.table(rows.shape[1])
        told = table.draw(known, chance)
        return Answers(told, table.matrix.T[told], np.full(len(told), rows.shape[1], dtype=np.int64))

    def table(self, classes: int) -> ExactTable:
        return _table(self.epsilon, self.frequent, self.shared, classes)

    def matrix(self, priors: ArrayLike) -> NDArray[np.float64]:
        """Of shape (B, K, K): the sampler's own probabilities."""
        rows, classes = self.admit(priors).shape
        return np.broadcast_to(self.table(classes).matrix, (rows, classes, classes)).copy()


@lru_cache(maxsize=64)
def _table(epsilon: float, frequent: tuple[int, ...], shared: tuple[int, ...], classes: int) -> ExactTable:
    return exact_table(block_matrix(epsilon, frequent, shared, classes), epsilon)


def block_matrix(epsilon: float, frequent: tuple[int, ...], shared: tuple[int, ...], classes: int) -> NDArray[np.float64]:
    """The formulas above, of shape (K, K), divided by exp(epsilon) throughout so that nothing overflows."""
    l1, delta = len(frequent), len(shared)
    l2, d = classes - l1, math.exp(-epsilon)
    divisor = (1 + (l1 - 1) * d) * (1 + (l2 - 1) * d) - (l1 - delta) * l2 * d * d
    beta = ((1 - d) + d * delta * l2 / classes) / divisor  # times exp(epsilon): of the own class
    gamma = ((1 + (delta - 1) * d) - delta * (1 + (l1 - 1) * d) / classes) / divisor
    inside = np.isin(np.arange(classes), frequent)
    common = np.isin(np.arange(classes), shared)
    matrix = np.where(inside[None, :], beta, gamma) * d * np.ones((classes, 1))
    matrix[np.ix_(~inside, common)] = 1.0 / classes
    np.fill_diagonal(matrix, np.where(inside, beta, gamma))
    return matrix
