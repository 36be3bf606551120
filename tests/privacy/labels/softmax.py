"""A learner that is small enough for fast tests: softmax regression by full-batch gradient descent, in numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.vectors import FloatVector


@dataclass(frozen=True)
class SoftmaxRegression:
    """Deterministic; the same loss as every learner has: -log of the sum of predicted probability times likelihood."""

    classes: int
    inputs: int
    steps: int = 60
    learning_rate: float = 2.0

    def fit(self, features: NDArray[Any], likelihoods: NDArray[np.float64], start: FloatVector | None, seed: int) -> FloatVector:
        rows = self._rows(features)
        if start is None:
            weights = 0.01 * np.random.default_rng(seed).standard_normal((self.inputs + 1, self.classes))
        else:
            weights = start.astype(np.float64).reshape(self.inputs + 1, self.classes)
        for _ in range(self.steps):
            predicted = _softmax(rows @ weights)
            joint = predicted * likelihoods
            posterior = joint / joint.sum(axis=1, keepdims=True)
            weights = weights - self.learning_rate / len(rows) * rows.T @ (predicted - posterior)
        return weights.astype(np.float32).reshape(-1)

    def probabilities(self, weights: FloatVector, features: NDArray[Any]) -> NDArray[np.float64]:
        return _softmax(self._rows(features) @ weights.astype(np.float64).reshape(self.inputs + 1, self.classes))

    def _rows(self, features: NDArray[Any]) -> NDArray[np.float64]:
        flat = np.asarray(features, dtype=np.float64).reshape(len(features), -1)
        return np.concatenate([flat, np.ones((len(flat), 1))], axis=1)


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


class SeededChance:
    """Words of a generator with a seed: for tests alone."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def words(self, count: int) -> NDArray[np.uint64]:
        return self._generator.integers(0, 2**64, count, dtype=np.uint64)


def blobs(count: int, classes: int = 4, seed: int = 5) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Two-dimensional points around the corners of a polygon, and which corner."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    angles = 2 * np.pi * labels / classes
    centres = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return (2 * centres + 0.5 * generator.standard_normal((count, 2))).astype(np.float32), labels.astype(np.int64)


def equal(one: Answers, other: Answers) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("labels", "likelihoods", "sizes"))
