"""Randomized response of each bit of the one-hot label (vector approximation, arXiv 2405.15150; RAPPOR's basic one-time form).

    bit j of onehot(y) is told as it is with 1 / (1 + exp(-epsilon / 2)), flipped otherwise, independently

To replace a label changes two bits, each by exp(epsilon / 2) at most. No prior is used. The likelihood of bits b under label c is
the product of Bernoulli likelihoods, in proportion exp(epsilon b_c): told classes are exp(epsilon) times as probable as others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.chance import Chance
from fedrho.privacy.labels.randomizers import Labels, Priors, checked_labels, likeliest, uniform_like
from fedrho.privacy.labels.thresholds import checked_epsilon, decay, heads, keep_threshold

MOST_CLASSES: Final = 14
"""Of `matrix`, which has 2**K columns."""
BELOW_ONE: Final = float(np.nextafter(1.0, 0.0))
"""So that told classes can be told from others at any epsilon, also where exp(-epsilon) is 1 in float64."""
Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class PerBit:
    """*Guarantees* epsilon-DP under replacement, of the sampler: keep probabilities are thresholds rounded down, at least 1/2."""

    epsilon: float

    def __post_init__(self) -> None:
        checked_epsilon(self.epsilon)

    @property
    def name(self) -> str:
        return "randomized response of each bit"

    def admit(self, priors: ArrayLike) -> Priors:
        """Uniform ones of the same shape: their values do not matter."""
        return uniform_like(priors)

    def bits(self, labels: Labels, priors: ArrayLike, chance: Chance) -> Bits:
        """What is told: of shape (n, K)."""
        shape = self.admit(priors).shape
        known = checked_labels(labels, shape)
        kept = heads(chance.words(shape[0] * shape[1]), keep_threshold(self.epsilon / 2)).reshape(shape)
        true = np.zeros(shape, dtype=bool)
        true[np.arange(len(known)), known] = True
        told: Bits = true == kept
        return told

    def answer(self, labels: Labels, priors: ArrayLike, chance: Chance) -> Answers:
        """The noisy label is one of the told classes, or of all where none was told; no class is preferred."""
        return self.told(self.bits(labels, priors, chance))

    def told(self, bits: Bits) -> Answers:
        """What bits say: in each row 1 for told classes and exp(-epsilon) for the others, in proportion to their likelihoods."""
        rows, classes = bits.shape
        likelihoods = np.where(bits, 1.0, min(decay(self.epsilon), BELOW_ONE))
        return Answers(likeliest(likelihoods), likelihoods, np.full(rows, classes, dtype=np.int64))

    def matrix(self, priors: ArrayLike) -> NDArray[np.float64]:
        """Of shape (B, K, 2**K): output o has bit j set where it has the binary digit of 2**j. ValueError above 14 classes."""
        rows, classes = self.admit(priors).shape
        if classes > MOST_CLASSES:
            raise ValueError(
                f"the matrix of {classes} bits has 2**{classes} columns; it is made for {MOST_CLASSES} classes at most"
            )
        outputs = (np.arange(2**classes)[:, None] >> np.arange(classes)[None, :]) & 1
        flips = (outputs[None, :, :] != np.eye(classes, dtype=int)[:, None, :]).sum(axis=2)
        half = decay(self.epsilon / 2)
        one = half**flips / (1.0 + half) ** classes
        return np.broadcast_to(one, (rows, *one.shape)).copy()


def keep_probability(epsilon: float) -> float:
    """Of one bit."""
    return 1.0 / (1.0 + (0.0 if math.isinf(epsilon) else decay(epsilon / 2)))
