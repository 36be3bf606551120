"""ALIBI's release: the one-hot label plus Laplace noise of b = 2 / epsilon (Malek et al. 2021, arXiv 2106.03408), made exact.

A Laplace in floating point would be a false claim (Mironov 2012). Here the noise is discrete Laplace on a grid of 1/1024, and of
what is told only clip(o, 0, 1) is kept: the posterior depends on no more,

    P[c | o] in proportion to prior_c exp(clip(2 o_c - 1, -1, 1) / b),

so a coordinate has 1025 outputs, and an `ExactTable` of two rows, of bit 0 and of bit 1, whose ratios are exp(epsilon / 2) at
most. A replaced label changes two coordinates.
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
from fedrho.privacy.labels.randomizers import Labels, Priors, checked_labels, likeliest, uniform_like
from fedrho.privacy.labels.tables import ExactTable, exact_table
from fedrho.privacy.labels.thresholds import checked_epsilon

GRID: Final = 1024
"""Steps from 0 to 1."""
LARGEST_HALF: Final = 40.0
"""Of epsilon / 2: above, a coordinate's table would have weights of 0."""
SMALLEST_HALF: Final = 2.0**-40
"""Smaller ones are answered as 0: rounding would be larger than what they tell."""


@dataclass(frozen=True)
class OneHotLaplace:
    """*Guarantees* epsilon-DP under replacement, of the sampler. No prior is used: the loss has the model's own."""

    epsilon: float

    def __post_init__(self) -> None:
        checked_epsilon(self.epsilon)

    @property
    def name(self) -> str:
        return "one-hot label with discrete Laplace noise"

    def admit(self, priors: ArrayLike) -> Priors:
        """Uniform ones of the same shape: their values do not matter."""
        return uniform_like(priors)

    def coordinates(self, labels: Labels, priors: ArrayLike, chance: Chance) -> NDArray[np.float64]:
        """What is told: o of shape (n, K), each a multiple of 1/1024 from 0 to 1."""
        shape = self.admit(priors).shape
        known = checked_labels(labels, shape)
        true = np.zeros(shape, dtype=np.int64)
        true[np.arange(len(known)), known] = 1
        if math.isinf(self.epsilon):
            return true.astype(np.float64)
        steps = coordinate_table(self.epsilon).draw(true.ravel(), chance)
        return steps.reshape(shape) / GRID

    def answer(self, labels: Labels, priors: ArrayLike, chance: Chance) -> Answers:
        """The noisy label is a class of the largest coordinate; of several, none is preferred."""
        return self.told(self.coordinates(labels, priors, chance))

    def told(self, coordinates: NDArray[np.float64]) -> Answers:
        """What real numbers o of shape (n, K) say, over the largest likelihood of their row; beyond [0, 1] they say no more."""
        reduced = np.clip(2.0 * coordinates - 1.0, -1.0, 1.0)
        below_best = reduced - reduced.max(axis=1, keepdims=True)
        exponents = np.where(below_best == 0, 0.0, below_best * (min(self.epsilon, 1e300) / 2.0))
        sizes = np.full(len(coordinates), coordinates.shape[1], dtype=np.int64)
        return Answers(likeliest(below_best), np.exp(exponents), sizes)

    def matrix(self, priors: ArrayLike) -> NDArray[np.float64]:
        """Raises ValueError: 1025**K outputs are too many. `coordinate_table` has what one coordinate does."""
        raise ValueError(f"{GRID + 1} values to the power of the classes are no matrix; see coordinate_table(epsilon).matrix")


@lru_cache(maxsize=64)
def coordinate_table(epsilon: float) -> ExactTable:
    """Of shape (2, 1025): discrete Laplace around 0 and around 1, with everything beyond [0, 1] at its ends."""
    half = min(epsilon / 2.0, LARGEST_HALF) if epsilon / 2.0 > SMALLEST_HALF else 0.0
    a = half / GRID
    z = np.arange(GRID + 1)
    zero = np.tanh(a / 2.0) * np.exp(-a * z) if a else np.zeros(GRID + 1)
    zero[0] = 1.0 / (1.0 + math.exp(-a))
    zero[-1] = math.exp(-a * GRID) / (1.0 + math.exp(-a))
    return exact_table(np.stack([zero, zero[::-1]]), half)
