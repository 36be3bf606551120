"""Randomized response with priors: RR, RRTop-k and RRWithPrior (Ghazi et al. 2021, arXiv 2102.06062, section 2, algorithms 1, 2).

    D_k = exp(epsilon) + k - 1,  Y_k = the k labels of largest prior (the lower index first where two are equal)
    RRTop-k(y):      y in Y_k:      y with exp(epsilon) / D_k, every other of Y_k with 1 / D_k
                     y not in Y_k:  each of Y_k with 1 / k
    RR:              RRTop-K
    RRWithPrior:     RRTop-k* with k* = argmax_k of P[right] = (sum of the k largest priors) exp(epsilon) / D_k

*Guarantees* (Lemma 1, Corollary 2) epsilon-DP under the replacement of one label, pure, for any prior that is a function of
public data and of what was released before; no epsilon-DP mechanism is right more often where the prior is true (Theorem 3). It
holds of the sampler, not of real numbers alone: coins are words against integer thresholds that are rounded down.
*Assumes* that priors, K and the number of records tell nothing of these labels.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.chance import Chance, below
from fedrho.privacy.labels.priors import checked
from fedrho.privacy.labels.thresholds import checked_epsilon, decay, told_truth

TIE: Final = 1e-12
"""Sizes whose chance of the right label is that close to the best are as good; the largest of them tells most."""
GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio: multiplicative hashing (Knuth)."""

Labels = NDArray[np.int64]
Priors = NDArray[np.float64]


class OutsideClasses(ValueError):
    """A label is none of the public classes. Nothing was drawn, and nothing says which label it is."""


class Randomizer(Protocol):
    """A mechanism that answers labels, each with `epsilon`-DP under replacement."""

    @property
    def epsilon(self) -> float: ...

    @property
    def name(self) -> str:
        """As the ledger and the statement call it."""
        ...

    def admit(self, priors: ArrayLike) -> Priors:
        """The priors (n, K) as they will be used; raises ValueError for what this mechanism cannot answer, before any label."""
        ...

    def answer(self, labels: Labels, priors: ArrayLike, chance: Chance) -> Answers:
        """`labels` of shape (n,) in [0, K). Raises ValueError for bad priors, and OutsideClasses, before a word is drawn.

        How many words are drawn does not depend on labels.
        """
        ...

    def matrix(self, priors: ArrayLike) -> NDArray[np.float64]:
        """Of shape (B, K, O): the probability of each output (columns) for each true label (rows)."""
        ...


@dataclass(frozen=True)
class _TopKs:
    """What the three have in common: they differ in k."""

    epsilon: float

    def __post_init__(self) -> None:
        checked_epsilon(self.epsilon)

    def admit(self, priors: ArrayLike) -> Priors:
        """Float64 rows that add up to 1; raises BadPriors for NaN, infinity and another shape than (n, K)."""
        return admitted(priors)

    def sizes(self, priors: ArrayLike) -> NDArray[np.int64]:
        """k of each row, of shape (n,); it depends on priors alone."""
        return self._sizes(-np.sort(-self.admit(priors), axis=1))

    def _sizes(self, ordered: Priors) -> NDArray[np.int64]:
        """Of rows whose priors are in falling order."""
        raise NotImplementedError

    def answer(self, labels: Labels, priors: ArrayLike, chance: Chance) -> Answers:
        """`sizes` of the answers are k; likelihoods are the column of the matrix that belongs to the told label."""
        rows = self.admit(priors)
        known = checked_labels(labels, rows.shape)
        order, rank = ordered(rows)
        k = self._sizes(np.take_along_axis(rows, order, axis=1))
        own = rank[np.arange(len(rows)), known]
        true = told_truth(chance, self.epsilon, k) & (own < k)
        told = np.where(true, own, below(chance, k))
        return Answers(order[np.arange(len(rows)), told], _columns(rank, k, told, self.epsilon), k)

    def matrix(self, priors: ArrayLike) -> NDArray[np.float64]:
        """Of shape (B, K, K), rows: true label. Each entry differs from the sampler's probability by 2**-64 at most.

        A finite epsilon above 700 is shown as 700, so that no entry of the k columns is 0: none is in the sampler.
        """
        rows = self.admit(priors)
        order, rank = ordered(rows)
        k = self._sizes(np.take_along_axis(rows, order, axis=1))
        told = rank  # each output o of a row, by its rank
        inside = rank[:, :, None] < k[:, None, None]
        possible = told[:, None, :] < k[:, None, None]
        keep, other, outside = _chances(k, self.epsilon)
        same = np.eye(rows.shape[1], dtype=bool)[None]
        within = np.where(same, keep[:, None, None], other[:, None, None])
        chances = np.where(inside, within, outside[:, None, None])
        return np.where(possible, chances, 0.0)


@dataclass(frozen=True)
class RandomizedResponse(_TopKs):
    """The true label with exp(epsilon) / D_K, every other with 1 / D_K. Of priors, the number of columns alone counts."""

    @property
    def name(self) -> str:
        return "randomized response"

    def admit(self, priors: ArrayLike) -> Priors:
        """Uniform ones of the same shape; warns of a single class, as for every prior."""
        rows = uniform_like(priors)
        _warn_of_one(rows.shape[1])
        return rows

    def _sizes(self, ordered: Priors) -> NDArray[np.int64]:
        return np.full(len(ordered), ordered.shape[1], dtype=np.int64)


@dataclass(frozen=True)
class TopK(_TopKs):
    """Randomized response among the k labels of largest prior; a label outside is answered by any of them."""

    k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.k, int | np.integer) or self.k < 1:
            raise ValueError(f"k is a whole number, at least 1, and not {self.k}")

    @property
    def name(self) -> str:
        return f"randomized response among the top {self.k}"

    def admit(self, priors: ArrayLike) -> Priors:
        """As for every prior; raises ValueError where there are fewer than k classes, too."""
        rows = super().admit(priors)
        if self.k > rows.shape[1]:
            raise ValueError(f"k is at most the number of classes, {rows.shape[1]}, and not {self.k}")
        return rows

    def _sizes(self, ordered: Priors) -> NDArray[np.int64]:
        return np.full(len(ordered), self.k, dtype=np.int64)


@dataclass(frozen=True)
class WithPrior(_TopKs):
    """RRTop-k with the best k of each record. With k = 1 the answer says nothing, and still costs epsilon."""

    @property
    def name(self) -> str:
        return "randomized response with prior"

    def _sizes(self, ordered: Priors) -> NDArray[np.int64]:
        right = rightness(ordered, self.epsilon)
        good = right >= right.max(axis=1, keepdims=True, initial=0.0) - TIE
        last: NDArray[np.int64] = ordered.shape[1] - np.argmax(good[:, ::-1], axis=1).astype(np.int64)
        return np.full_like(last, ordered.shape[1]) if math.isinf(self.epsilon) else last


def rightness(ordered: Priors, epsilon: float) -> Priors:
    """Of shape (n, K): P[RRTop-k tells the true label], k = 1..K, for labels drawn from priors in falling order."""
    others = np.arange(ordered.shape[1])
    chances: Priors = np.cumsum(ordered, axis=1) / (1.0 + others * decay(epsilon))
    return chances


def probability_correct(matrix: NDArray[np.float64], priors: Priors) -> NDArray[np.float64]:
    """Of shape (B,): how often an answer is the true label, for labels drawn from the priors."""
    correct: NDArray[np.float64] = np.einsum("by,byy->b", priors, matrix)
    return correct


def ordered(priors: Priors) -> tuple[Labels, Labels]:
    """Labels by falling prior, the lower index first among equals; and the rank of each label. Both of shape (n, K)."""
    order = np.argsort(-priors, axis=1, kind="stable").astype(np.int64)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(priors.shape[1]), priors.shape), axis=1)
    return order, rank


def admitted(priors: ArrayLike) -> Priors:
    """Float64 rows that add up to 1. Entries below 0, left behind by rounding and noise, count as 0; a row of zeros is uniform.

    It happens before any label is read, so that a refusal tells nothing of labels. Raises BadPriors, a ValueError, for NaN,
    infinity, and another shape than (n, K); warns of a single class, whose answers tell nothing.
    """
    rows = _admissible(priors)
    _warn_of_one(rows.shape[1])
    return rows


def uniform_like(priors: ArrayLike) -> Priors:
    """For mechanisms that know priors by their number of columns alone; raises BadPriors for the same as `admitted`."""
    rows, classes = _admissible(priors).shape
    return np.full((rows, classes), 1.0 / classes)


def likeliest(likelihoods: Priors) -> Labels:
    """The largest of each row; of equals the first after a class that a hash of the row's number gives: none is preferred.

    It is post-processing, and decides nothing about privacy.
    """
    rows, classes = likelihoods.shape
    hashed = (np.arange(rows, dtype=np.uint64) * GOLDEN) >> np.uint64(33)
    turns = (hashed.astype(np.int64)[:, None] + np.arange(classes)) % classes
    first = np.take_along_axis(likelihoods, turns, axis=1).argmax(axis=1)
    labels: Labels = turns[np.arange(rows), first]
    return labels


def checked_labels(labels: Labels, shape: tuple[int, ...]) -> Labels:
    """As int64, one for each row of priors; raises OutsideClasses for the whole batch, without naming a label."""
    known = np.asarray(labels)
    if known.shape != shape[:1] or (known.size and known.dtype.kind not in "iu"):
        raise OutsideClasses(f"labels are whole numbers, one for each of {shape[0]} rows of priors")
    if known.size and (known.min() < 0 or known.max() >= shape[1]):
        raise OutsideClasses(f"a label lies between 0 and {shape[1] - 1}; nothing was answered")
    return known.astype(np.int64)


def _warn_of_one(classes: int) -> None:
    if classes == 1:
        warnings.warn("there is one class alone: every answer is that class", stacklevel=4)


def _admissible(priors: ArrayLike) -> Priors:
    try:
        rows = np.asarray(priors, dtype=np.float64)
    except (TypeError, ValueError):
        return checked(priors)  # says what is wrong
    return checked(np.where(np.isfinite(rows), np.maximum(rows, 0.0), rows))


def _chances(k: Labels, epsilon: float) -> tuple[Priors, Priors, Priors]:
    """For each k: the true label's chance, that of each other, and that of each where the true label is not among them."""
    keep = 1.0 / (1.0 + (k - 1.0) * np.float64(decay(epsilon)))
    return keep, decay(epsilon) * keep, 1.0 / k


def _columns(rank: Labels, k: Labels, told: Labels, epsilon: float) -> Priors:
    """Of shape (n, K): how probable the label of rank `told` is under each true label."""
    keep, other, outside = _chances(k, epsilon)
    chances: Priors = np.where(rank < k[:, None], other[:, None], outside[:, None])
    chances[rank == told[:, None]] = keep
    return chances
