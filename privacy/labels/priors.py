"""Priors: for each record how probable its classes seem, before its own label was read; float64 rows of shape (n, K).

A randomizer is as private under a bad prior as under a good one, as long as the prior is a function of public features and of
earlier answers alone (Ghazi et al. 2021, arXiv 2102.06062, corollary 2). Nothing here is ever given a true label:

    uniform          nothing is known
    from_function    rules, or a model of former times: anything public that maps features to probabilities
    predicted        the model trained so far on answers: its softmax, tempered, or with the channel of the answers inverted
    histogram_prior  a private histogram in each cluster of similar records (`fedrho.privacy.labels.clusters`)
    mixed            of two of them

They put in order what rounding and noise leave behind, such as counts below 0; `checked` refuses what no prior may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedrho.privacy.labels.learner import Learner
from fedrho.privacy.vectors import FloatVector

Priors = NDArray[np.float64]


class BadPriors(ValueError):
    """No probabilities of classes; said before any label was read, and so the same whatever the labels are."""


def checked(priors: ArrayLike) -> Priors:
    """The same as float64 whose rows add up to 1; a row of zeros, which knows nothing, becomes uniform.

    Raises BadPriors for another shape than (n, K), and for entries that are negative, infinite or no number. A randomizer's
    choices do not change when a row is scaled, only what it says about the chance of the right label.
    """
    try:
        rows = np.array(priors, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadPriors("priors are numbers, one row for each record and one column for each class") from error
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise BadPriors(f"priors have the shape (records, classes), not {rows.shape}")
    _refuse(np.isnan(rows), "is no number; give a probability of each class, or 0 for all where nothing is known")
    _refuse(np.isinf(rows), "is infinite; give probabilities")
    _refuse(rows < 0, "is negative; clip it at 0")
    return _normalised(rows)


def uniform(count: int, classes: int) -> Priors:
    """Every class as probable as the next; randomized response with it is the plain one."""
    if count < 0 or classes < 1:
        raise BadPriors(f"priors are of at least one class and no fewer than 0 records, not of {classes} and {count}")
    return np.full((count, classes), 1.0 / classes)


def from_function(function: Callable[[NDArray[Any]], ArrayLike], features: NDArray[Any], classes: int) -> Priors:
    """What a public function says of public features; raises BadPriors where that is no row of K for each record."""
    priors = checked(function(features))
    if priors.shape != (len(features), classes):
        raise BadPriors(f"the function returned priors of shape {priors.shape} for {len(features)} records and {classes} classes")
    return priors


def predicted(
    learner: Learner, weights: FloatVector, features: NDArray[Any], temperature: float = 1.0, epsilon: float | None = None
) -> Priors:
    """Of the model trained so far, or of one of former times; `epsilon` where it learned plain answers of that epsilon by heart.

    The channel is inverted first, since it is the softmax itself that estimates the distribution of answers.
    """
    probabilities = from_function(lambda shown: learner.probabilities(weights, shown), features, learner.classes)
    plain = probabilities if epsilon is None else denoised(probabilities, epsilon)
    return tempered(plain, temperature)


def tempered(probabilities: ArrayLike, temperature: float) -> Priors:
    """p**(1 / temperature), normalised: the softmax of logits / temperature. Below 1 it sharpens, above 1 it flattens."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise BadPriors(f"a temperature is above 0, not {temperature}")
    rows = checked(probabilities)
    largest = rows.max(axis=1, keepdims=True)
    return _normalised((rows / largest) ** (1.0 / temperature))


def denoised(probabilities: ArrayLike, epsilon: float) -> Priors:
    """What a model of randomized response's answers says about labels: (p - q) / (keep - q), clipped at 0 and normalised.

    A net that was trained with the plain cross-entropy predicts the distribution of the answers, q + (keep - q) times that of the
    labels, with keep = 1 / (1 + (K - 1) exp(-epsilon)) and q = exp(-epsilon) keep. At epsilon 0 answers say nothing: uniform.
    """
    if math.isnan(epsilon) or epsilon < 0:
        raise BadPriors(f"epsilon is not negative, and not {epsilon}")
    rows = checked(probabilities)
    if epsilon == 0:
        return uniform(*rows.shape)
    keep = 1.0 / (1.0 + (rows.shape[1] - 1) * math.exp(-epsilon))
    inverted = (rows - math.exp(-epsilon) * keep) / (keep * -math.expm1(-epsilon))
    return _normalised(np.maximum(inverted, 0.0))


def mixed(first: ArrayLike, second: ArrayLike, weight: float) -> Priors:
    """`weight` of the first and the rest of the second; a bit of the uniform keeps a sure prior from being surely wrong."""
    if not 0 <= weight <= 1:
        raise BadPriors(f"a weight lies between 0 and 1, not at {weight}")
    one, other = checked(first), checked(second)
    if one.shape != other.shape:
        raise BadPriors(f"priors of shapes {one.shape} and {other.shape} cannot be mixed")
    return weight * one + (1.0 - weight) * other


def histogram_prior(noisy_counts: NDArray[np.int64]) -> Priors:
    """Of each group its class frequencies, from private counts (groups, K): clipped at 0; all zero, uniform.

    Records get the rows of their groups: `histogram_prior(counts)[groups]` (Ghazi et al. 2021, section 5.2, algorithm 4).
    """
    return checked(np.maximum(noisy_counts, 0))


def _normalised(rows: Priors) -> Priors:
    """Divided by their largest first: sums of huge numbers would overflow, and of tiny ones lose their digits."""
    largest = rows.max(axis=1, keepdims=True, initial=0.0)
    scaled = np.divide(rows, largest, out=np.ones_like(rows), where=largest > 0)
    priors: Priors = scaled / scaled.sum(axis=1, keepdims=True)
    return priors


def _refuse(bad: NDArray[np.bool_], why: str) -> None:
    if bad.any():
        record, column = np.argwhere(bad)[0]
        raise BadPriors(f"the prior of class {column} in row {record} (both from 0) {why}")
