"""Randomizers that claim one matrix and draw from another, for audits; and chance from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.chance import Chance, Words

Matrices = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Seeded:
    """Chance of a test."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def words(self, count: int) -> Words:
        return self._generator.integers(0, 2**64, count, dtype=np.uint64)


@dataclass(frozen=True)
class Drawn:
    """Draws from `truth` of the prior, by its cumulative sums, and says that it draws from `claim`."""

    epsilon: float
    claim: Matrices
    truth: Matrices

    def matrix(self, priors: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.claim(priors)

    def answer(self, labels: NDArray[np.int64], priors: NDArray[np.float64], chance: Chance) -> Answers:
        alike = (priors == priors[0]).all()
        kinds, of = (priors[:1], np.zeros(len(priors), int)) if alike else np.unique(priors, axis=0, return_inverse=True)
        claimed = self.claim(kinds)
        ends = self.truth(kinds).cumsum(axis=2)[of, labels]
        share = (chance.words(len(labels)) >> np.uint64(11)).astype(np.float64) / 2**53
        told = (share[:, None] >= ends).sum(axis=1).clip(max=ends.shape[1] - 1)
        likelihoods = claimed[of, :, told]
        classes = priors.shape[1]
        told = told if ends.shape[1] == classes else likelihoods.argmax(axis=1)
        return Answers(told, likelihoods, np.full(len(labels), classes))


def always(matrix: NDArray[np.float64]) -> Matrices:
    """The same whatever the prior."""
    return lambda priors: np.broadcast_to(matrix, (len(priors), *matrix.shape))
