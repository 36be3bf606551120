"""The mechanisms of this package as an auditor asks for them, by the names that ledgers and statements use.

A mechanism of too many outputs for one matrix is proved by a part of it: Laplace noise on a one-hot label by the two coordinates
that a replaced label changes, a histogram by the two counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.attacks import Answering, Labels
from fedrho.privacy.labels.audit import LabelAudit, Settings, audit
from fedrho.privacy.labels.chance import Chance
from fedrho.privacy.labels.channels import Channel, histogram_channel
from fedrho.privacy.labels.histogram import noisy_histogram
from fedrho.privacy.labels.one_hot import GRID, OneHotLaplace, coordinate_table
from fedrho.privacy.labels.per_bit import PerBit
from fedrho.privacy.labels.randomizers import RandomizedResponse, TopK, WithPrior
from fedrho.privacy.labels.regression import bins, unbiased
from fedrho.privacy.progress import Progress, unwatched

MECHANISMS: Final = {
    "with-prior": "randomized response with prior",
    "rr": "randomized response",
    "top-k": "randomized response among the top k",
    "per-bit": "randomized response of each bit",
    "one-hot": "one-hot label with discrete Laplace noise",
    "bins": "randomized response on bins",
    "unbiased": "unbiased randomizer",
    "histogram": "histogram",
}
"""What may be audited, and what ledgers call it."""
MOST_BITS: Final = 10
"""Classes of an audit of bits: 2**K outputs are counted."""
HISTOGRAM_DRAWS: Final = 2000
"""Exact noise is drawn one at a time."""
GROUPS: Final = np.array([0, *range(1, GRID, 64), GRID])
"""Where groups of a coordinate's 1025 values begin, so that each is drawn often enough to be counted."""
REACH: Final = 6
"""Counts beyond are told as this one."""


class UnknownMechanism(ValueError):
    """Nothing here is called so, or it cannot be audited so."""


@dataclass(frozen=True)
class CoordinatePair:
    """One-hot Laplace as a channel of two labels: the coordinates that tell them apart; others are the same under both."""

    epsilon: float

    def matrix(self, priors: ArrayLike) -> Channel:
        """Of shape (B, 2, 1025**2)."""
        zero, one = coordinate_table(self.epsilon).matrix
        both = np.stack([np.outer(one, zero).ravel(), np.outer(zero, one).ravel()])
        return np.broadcast_to(both, (len(np.asarray(priors)), *both.shape))


@dataclass(frozen=True)
class Coordinate:
    """One coordinate of one-hot Laplace, whose labels are its bit: half of the epsilon. Neighbouring values are told as one."""

    whole: float

    @property
    def epsilon(self) -> float:
        return self.whole / 2

    def matrix(self, priors: ArrayLike) -> Channel:
        table = self._grouped()
        return np.broadcast_to(table, (len(np.asarray(priors)), *table.shape))

    def answer(self, labels: Labels, priors: ArrayLike, chance: Chance) -> Answers:
        """The coordinate of class 1, as `OneHotLaplace` draws it; its noisy label is the nearer bit."""
        told = OneHotLaplace(self.whole).coordinates(labels, priors, chance)[:, 1]
        groups = np.searchsorted(GROUPS, np.rint(told * GRID), side="right") - 1
        return Answers((told > 0.5).astype(np.int64), self._grouped().T[groups], np.full(len(groups), 2))

    def _grouped(self) -> Channel:
        table: Channel = np.add.reduceat(coordinate_table(self.whole).matrix, GROUPS, axis=1)
        return table


@dataclass(frozen=True)
class HistogramOfOne:
    """The two noisy counts of one record whose label is 0 or 1: every label adds to one count, and a replaced one moves two."""

    epsilon: float

    def matrix(self, priors: ArrayLike) -> Channel:
        channel = histogram_channel(self.epsilon / 2, REACH)
        return np.broadcast_to(channel, (len(np.asarray(priors)), *channel.shape))

    def answer(self, labels: Labels, priors: ArrayLike, chance: Chance) -> Answers:
        """The noisy label is that of the larger count."""
        counts = np.eye(2, dtype=np.int64)[labels]
        noisy = np.clip(noisy_histogram(counts, self.epsilon, chance), -REACH, REACH)
        columns = histogram_channel(self.epsilon / 2, REACH).T
        places = (noisy[:, 0] + REACH) * (2 * REACH + 1) + noisy[:, 1] + REACH
        return Answers((noisy[:, 1] > noisy[:, 0]).astype(np.int64), columns[places], np.full(len(labels), 2))


def audited(
    kind: str,
    epsilon: float,
    prior: Sequence[float],
    chance: Chance,
    settings: Settings | None = None,
    k: int | None = None,
    progress: Progress = unwatched,
) -> LabelAudit:
    """All checks of one of `MECHANISMS`; raises UnknownMechanism, and ValueError for an epsilon or prior that it cannot take."""
    tried = settings or Settings()
    if kind == "histogram":
        few = Settings(min(tried.draws, HISTOGRAM_DRAWS), min(tried.canaries, HISTOGRAM_DRAWS), tried.confidence)
        return audit(MECHANISMS[kind], HistogramOfOne(epsilon), (0.5, 0.5), chance, few, progress=progress)
    if kind == "one-hot":
        pair, coordinate = CoordinatePair(epsilon), Coordinate(epsilon)
        mechanism: Answering = OneHotLaplace(epsilon)
        return audit(MECHANISMS[kind], mechanism, prior, chance, tried, exact=pair, sampled=coordinate, progress=progress)
    mechanism = made(kind, epsilon, prior, k)
    return audit(getattr(mechanism, "name", kind), mechanism, prior, chance, tried, best=kind == "with-prior", progress=progress)


def made(kind: str, epsilon: float, prior: Sequence[float], k: int | None = None) -> Answering:
    """A mechanism that has a matrix; labels of those for numbers are the values 0 ... K - 1."""
    classes = len(prior)
    if kind == "per-bit" and classes > MOST_BITS:
        raise UnknownMechanism(
            f"{classes} bits have 2**{classes} outputs, too many to be counted; take {MOST_BITS} classes at most"
        )
    if kind == "top-k":
        if k is None:
            raise UnknownMechanism("top-k needs its k: how many labels may be told")
        return TopK(epsilon, k)
    if kind == "bins":
        return bins(np.arange(classes), prior, epsilon)
    if kind == "unbiased":
        return unbiased(np.arange(classes), prior, epsilon)
    simple: dict[str, Callable[[float], Answering]] = {"rr": RandomizedResponse, "with-prior": WithPrior, "per-bit": PerBit}
    if kind not in simple:
        raise UnknownMechanism(f"no mechanism is called {kind!r}; there are {', '.join(MECHANISMS)}")
    return simple[kind](epsilon)


def named(text: str) -> tuple[str, float, int | None]:
    """Kind, epsilon and k of a line of a statement, as "randomized response, epsilon 1, read 100 labels", asked now or earlier.

    Raises UnknownMechanism for what has no channel of single labels, such as DP-SGD.
    """
    line = re.fullmatch(r"(earlier: )?(?P<name>.+), epsilon (?P<epsilon>[^\s,]+)(, read \d+ labels)?", text)
    if line is None:
        raise UnknownMechanism(f"{text!r} does not say which mechanism read labels with which epsilon")
    name, epsilon = line["name"], _number(line["epsilon"], text)
    top = re.fullmatch(r"randomized response among the top (\d+)", name)
    if top is not None:
        return "top-k", epsilon, int(top[1])
    kinds = {called: kind for kind, called in MECHANISMS.items()}
    if name not in kinds:
        raise UnknownMechanism(f"{name!r} cannot be audited label by label; what can be: {', '.join(sorted(kinds))}")
    return kinds[name], epsilon, None


def _number(written: str, text: str) -> float:
    try:
        return float(written)
    except ValueError as error:
        raise UnknownMechanism(f"{text!r} has an epsilon that is no number: {written}") from error
