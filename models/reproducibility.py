"""How far the predictions of models lie apart that were trained alike, but from other seeds or in another order.

The measure of Shamir, Lin & Coviello 2020, "Smooth activations and reproducibility in deep networks", arXiv 2010.09931. With
p[m, n, k] the probability that model m of M gives class k of example n of N, and q[n, k] its mean over the models:

    PD   = 1/N sum_n 1/M sum_m sum_k |p[m, n, k] - q[n, k]|
    PD_r = 1/N sum_n 1/M sum_m sum_k |p[m, n, k] - q[n, k]| / q[n, k]

and the same of each example's true class alone, without the sum over k, where labels are given. 0 means equal predictions; of two
models PD is at most 1, PD_r of the true class too. Differences on private examples are computed from them: a release of its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Probabilities = NDArray[np.float64]
TOLERANCE = 1e-3
"""How far the probabilities of an example may be from adding up to 1."""


@dataclass(frozen=True)
class Differences:
    """Of M models on N examples; `disagreement` is the mean share of examples on which two of them choose other classes."""

    absolute: float
    relative: float
    relative_true: float
    disagreement: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def differences(probabilities: ArrayLike, labels: ArrayLike) -> Differences:
    """All there are, of probabilities of shape (M, N, K) and labels of shape (N,)."""
    absolute, relative = prediction_difference(probabilities), relative_prediction_difference(probabilities)
    return Differences(absolute, relative, relative_prediction_difference(probabilities, labels), disagreement(probabilities))


def prediction_difference(probabilities: ArrayLike) -> float:
    """PD of probabilities of shape (M, N, K). Raises ValueError."""
    found = _checked(probabilities)
    return float(np.abs(found - found.mean(axis=0)).sum(axis=2).mean())


def relative_prediction_difference(probabilities: ArrayLike, labels: ArrayLike | None = None) -> float:
    """PD_r of probabilities of shape (M, N, K), or of the true class's alone with labels of shape (N,). Raises ValueError.

    A class that no model gives any probability differs by nothing.
    """
    found = _checked(probabilities)
    if labels is not None:
        found = _of_true(found, np.asarray(labels))
    mean = found.mean(axis=0)
    shares = np.divide(np.abs(found - mean), mean, out=np.zeros_like(found), where=mean > 0)
    return float(shares.sum(axis=2).mean())


def disagreement(probabilities: ArrayLike) -> float:
    """Mean over pairs of models of the share of examples of which they choose other classes. Raises ValueError."""
    chosen = _checked(probabilities).argmax(axis=2)
    models = len(chosen)
    pairs = [(first, second) for first in range(models) for second in range(first)]
    return float(np.mean([np.mean(chosen[first] != chosen[second]) for first, second in pairs]))


def _of_true(found: Probabilities, labels: NDArray[np.int64]) -> Probabilities:
    if labels.shape != found.shape[1:2] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {found.shape[1]} integers, not {labels.dtype} of shape {labels.shape}")
    if labels.min() < 0 or labels.max() >= found.shape[2]:
        raise ValueError(f"labels lie in 0 to {found.shape[2] - 1}, not in {labels.min()} to {labels.max()}")
    return np.take_along_axis(found, labels[np.newaxis, :, np.newaxis].astype(np.int64), axis=2)


def _checked(probabilities: ArrayLike) -> Probabilities:
    found = np.asarray(probabilities, dtype=np.float64)
    if found.ndim != 3 or len(found) < 2 or not found.size:
        raise ValueError(f"probabilities have the shape (models, examples, classes), two models or more, not {found.shape}")
    if not (np.isfinite(found).all() and found.min() >= 0 and np.abs(found.sum(axis=2) - 1).max() <= TOLERANCE):
        raise ValueError("probabilities are not negative, and those of an example add up to 1; take softmax of logits")
    return found
