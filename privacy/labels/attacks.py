"""Attacks on a randomizer of labels that only see its answers: what was drawn, against what was said.

Labels are made up here and no record's; so nothing is charged. Each bound holds at `confidence` whatever the randomizer does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import scipy
from numpy.typing import NDArray

from fedrho.privacy.auditing.intervals import share_interval
from fedrho.privacy.auditing.one_run import epsilon_lower_bound
from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.chance import Chance, below
from fedrho.privacy.labels.channels import Channel
from fedrho.privacy.labels.priors import Priors
from fedrho.privacy.progress import Progress, unwatched, watched

Labels = NDArray[np.int64]

EXPECTED = 30.0
"""Draws at least in a cell, or chi-square is no good far out in its tail; rarer outputs are counted together."""
ALIKE = 1e-9
"""How much the likelihoods of an answer may differ from the channel's."""
MOST_OUTPUTS = 4096
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Of how much answers say about a canary: below which of them the one-run attack may abstain."""
ENTRIES = 500_000
"""Likelihoods in memory at once: records of a batch times classes. Few, so that whoever looks on sees one after another."""


class Answering(Protocol):
    """A randomizer as an auditor sees it (`fedrho.privacy.labels.randomizers` has them)."""

    @property
    def epsilon(self) -> float: ...

    def answer(self, labels: Labels, priors: Priors, chance: Chance) -> Answers: ...

    def matrix(self, priors: Priors) -> Channel: ...


@dataclass(frozen=True)
class Agreement:
    """Of draws with a channel: the smallest p-value of its rows times their number, and whether likelihoods were its own."""

    p_value: float
    likelihoods_agree: bool
    draws: int


@dataclass(frozen=True)
class Attack:
    """An output that came `hits` times of `draws` under one label, and `false_hits` times under the other."""

    epsilon_low: float
    output: int
    likely: int
    unlikely: int
    hits: int
    false_hits: int
    draws: int


@dataclass(frozen=True)
class OneRun:
    """Of all canaries, how many were guessed, how many of these guesses were right, and the epsilon that they prove."""

    epsilon_low: float
    canaries: int
    guesses: int
    right: int


def agreement(
    mechanism: Answering,
    priors: Priors,
    draws: int,
    chance: Chance,
    one_by_one: bool = False,
    progress: Progress = unwatched,
) -> Agreement:
    """Pearson's chi-square test of `draws` answers for each prior and label, all in one batch or each on its own.

    Raises ValueError where the channel has too many outputs to be counted.
    """
    matrices = mechanism.matrix(priors)
    rows, classes, outputs = matrices.shape
    labelled = outputs == classes and not hasattr(mechanism, "outputs")  # else outputs are numbers, or sets of labels
    if outputs > MOST_OUTPUTS:
        raise ValueError(f"{outputs} outputs are too many to be counted; at most {MOST_OUTPUTS}")
    counts, alike = np.zeros((rows * classes, outputs), dtype=np.int64), True
    records, done = np.tile(np.arange(rows * classes), draws), 0  # neighbours differ in prior and label
    doing = f"drawing {'one by one' if one_by_one else 'in batches'}"
    for cells in _batches(records, classes):
        tell = partial(_tell, progress, done, len(records), doing)
        tell(0)
        given, labels = priors[cells // classes], cells % classes
        answers = _one_by_one(mechanism, labels, given, chance, tell) if one_by_one else mechanism.answer(labels, given, chance)
        done += len(cells)
        tell(len(cells))
        told, right = _outputs(matrices, cells // classes, answers, labelled)
        counts += np.bincount(cells * outputs + told, minlength=counts.size).reshape(counts.shape)
        alike = alike and right
    expected = (matrices if labelled else _merged(matrices)).reshape(rows * classes, outputs) * draws
    smallest = min(_chi_square(seen, hoped) for seen, hoped in zip(counts, expected, strict=True))
    return Agreement(min(1.0, smallest * len(counts)), alike, draws)


def likelihood_ratio_attack(
    mechanism: Answering, prior: Priors, draws: int, chance: Chance, confidence: float, progress: Progress = unwatched
) -> Attack:
    """Tells two labels apart by one output: the pair and the output that promise most in a first sample, tried on a fresh one.

    `prior` of shape (1, K). For any pair and any output that is a label.
    """
    classes, miss = prior.shape[1], (1.0 - confidence) / 2
    samples, doing = (classes + 2) * draws, "telling labels apart"
    told = partial(_told, mechanism, prior=prior, draws=draws, chance=chance)
    first = np.stack([told(label, tell=partial(_tell, progress, label * draws, samples, doing)) for label in range(classes)])
    high, low = _ends(first, draws, miss)
    output = int((np.log(low.max(axis=0)) - np.log(high.min(axis=0))).argmax())
    likely, unlikely = int(low[:, output].argmax()), int(high[:, output].argmin())
    hits, false_hits = (
        int(told(label, tell=partial(_tell, progress, (classes + place) * draws, samples, doing))[output])
        for place, label in enumerate((likely, unlikely))
    )
    return Attack(ratio_bound(hits, draws, false_hits, draws, confidence), output, likely, unlikely, hits, false_hits, draws)


def ratio_bound(hits: int, draws: int, false_hits: int, false_draws: int, confidence: float = 0.95) -> float:
    """An epsilon that lies above ln(P[hit] / P[false hit]) with probability at most 1 - confidence (Clopper & Pearson 1934)."""
    miss = (1.0 - confidence) / 2
    low = share_interval(hits, draws, miss).low
    return max(0.0, math.log(low / share_interval(false_hits, false_draws, miss).high)) if low > 0 else 0.0


def one_run_attack(
    mechanism: Answering,
    prior: Priors,
    canaries: int,
    chance: Chance,
    confidence: float,
    progress: Progress = unwatched,
) -> OneRun:
    """Every record is a canary: its label is one of two by a fair coin, and the likelier of the two under its answer is guessed.

    Nothing is guessed where the answer says too little (Steinke et al. 2023, arXiv 2305.08846, with delta 0). How little that is
    depends on the answers alone, not on the coins, so the bound stays valid.
    """
    classes = prior.shape[1]
    if classes < 2:
        return OneRun(0.0, canaries, 0, 0)
    one = below(chance, np.full(canaries, classes))
    other = (one + 1 + below(chance, np.full(canaries, classes - 1))) % classes
    pairs = []
    progress("canary", 0, canaries, doing := "asking canaries")
    for part in _batches(np.arange(canaries), classes):
        pairs.append(_odds(mechanism, one[part], other[part], prior, chance))
        progress("canary", int(part[-1]) + 1, canaries, doing)
    odds = np.concatenate(pairs)
    guessed = np.abs(odds) >= _least_odds(np.abs(odds), canaries, confidence, progress)
    return one_run_bound(canaries, int(guessed.sum()), int((odds[guessed] > 0).sum()), confidence)


def one_run_bound(canaries: int, guesses: int, right: int, confidence: float = 0.95) -> OneRun:
    """logit of the 1 - confidence quantile of Beta(right, guesses - right + 1), where that is above 0."""
    low = epsilon_lower_bound(canaries, guesses, right, 0.0, confidence) if guesses else 0.0
    return OneRun(low, canaries, guesses, right)


def _odds(mechanism: Answering, one: Labels, other: Labels, prior: Priors, chance: Chance) -> NDArray[np.float64]:
    """Of canaries whose label is `one`: ln of how much likelier their answer is under it than under the other."""
    answers = mechanism.answer(one, np.broadcast_to(prior, (len(one), prior.shape[1])), chance)
    places = np.arange(len(one))
    true, false = answers.likelihoods[places, one], answers.likelihoods[places, other]
    with np.errstate(divide="ignore"):
        odds: NDArray[np.float64] = np.where(true == false, 0.0, np.log(true) - np.log(false))
    return odds


def _least_odds(sizes: NDArray[np.float64], canaries: int, confidence: float, progress: Progress) -> float:
    """With which to guess: of some, that which promises the largest bound, had the mechanism the likelihoods that it says."""
    known = sizes[sizes > ALIKE]
    if not known.size:
        return math.inf
    tried = np.unique(np.quantile(known, QUANTILES, method="lower")) * (1 - ALIKE)

    def promise(least: float) -> float:
        counted = known[known >= least]
        right = int((1.0 / (1.0 + np.exp(-counted))).sum())
        return one_run_bound(canaries, len(counted), right, confidence).epsilon_low

    return float(max(watched(tried, "plan", progress, "choosing how many to guess"), key=promise))


def _told(mechanism: Answering, label: int, prior: Priors, draws: int, chance: Chance, tell: Callable[[int], None]) -> Labels:
    """How often each noisy label came."""
    classes, done = prior.shape[1], 0
    counts = np.zeros(classes, dtype=np.int64)
    for labels in _batches(np.full(draws, label), classes):
        answers = mechanism.answer(labels, np.broadcast_to(prior, (len(labels), classes)), chance)
        counts += np.bincount(answers.labels, minlength=classes)
        done += len(labels)
        tell(done)
    return counts


def _tell(progress: Progress, before: int, total: int, doing: str, more: int) -> None:
    progress("answer", before + more, total, doing)


def _batches(records: Labels, classes: int) -> Iterator[Labels]:
    size = max(1, ENTRIES // classes)
    return (records[begin : begin + size] for begin in range(0, len(records), size))


def _ends(counts: Labels, draws: int, miss: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Upper and lower Clopper-Pearson ends of every share."""
    with np.errstate(invalid="ignore"):
        high = np.where(counts < draws, scipy.special.betaincinv(counts + 1, np.maximum(draws - counts, 1), 1.0 - miss), 1.0)
        low = np.where(counts > 0, scipy.special.betaincinv(np.maximum(counts, 1), draws - counts + 1, miss), miss / draws)
    return high, low


def _one_by_one(mechanism: Answering, labels: Labels, priors: Priors, chance: Chance, tell: Callable[[int], None]) -> Answers:
    each = []
    for place in range(len(labels)):
        each.append(mechanism.answer(labels[[place]], priors[[place]], chance))
        tell(place + 1)
    likelihoods = np.concatenate([answer.likelihoods for answer in each])
    told, sizes = (np.array([int(part[0]) for part in parts]) for parts in ([a.labels for a in each], [a.sizes for a in each]))
    return Answers(told, likelihoods, sizes)


def _outputs(matrices: Channel, rows: Labels, answers: Answers, labelled: bool) -> tuple[Labels, bool]:
    """Which output each answer was, and whether its likelihoods are that output's column, or in proportion to it."""
    if labelled:
        told = answers.labels
        columns = matrices[rows, :, told]
        return told, bool((np.abs(_scaled(columns) - _scaled(answers.likelihoods)) <= ALIKE).all())
    told, alike = np.zeros(len(answers), dtype=np.int64), True
    for row, matrix in enumerate(matrices):
        chosen = np.flatnonzero(rows == row)
        seen, inverse = np.unique(_scaled(answers.likelihoods[chosen]), axis=0, return_inverse=True)
        apart = scipy.spatial.distance.cdist(seen, _scaled(matrix.T), "chebyshev")
        told[chosen] = (apart <= ALIKE).argmax(axis=1)[inverse]
        alike = alike and bool((apart.min(axis=1) <= ALIKE).all())
    return told, alike


def _merged(matrices: Channel) -> Channel:
    """Outputs that say the same about labels have their probabilities in the first of them."""
    merged = np.zeros_like(matrices)
    for row, matrix in enumerate(matrices):
        columns = _scaled(matrix.T)
        first = (scipy.spatial.distance.cdist(columns, columns, "chebyshev") <= ALIKE).argmax(axis=1)
        np.add.at(merged[row].T, first, matrix.T)
    return merged


def _scaled(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each divided by its largest entry; rows of zeros, impossible outputs, stay."""
    largest = rows.max(axis=1, keepdims=True)
    scaled: NDArray[np.float64] = rows / np.where(largest > 0, largest, 1.0)
    return scaled


def _chi_square(seen: Labels, expected: NDArray[np.float64]) -> float:
    """p-value; 0 where something was seen that is impossible."""
    if (seen[expected == 0] > 0).any():
        return 0.0
    often = expected >= EXPECTED
    rare_seen, rare = int(seen[~often].sum()), float(expected[~often].sum())
    if rare >= EXPECTED:
        return _pearson(np.append(seen[often], rare_seen), np.append(expected[often], rare))
    draws = int(seen.sum())
    few = scipy.special.bdtr(rare_seen, draws, rare / draws)
    many = scipy.special.bdtrc(rare_seen - 1, draws, rare / draws) if rare_seen else 1.0
    return min(1.0, 3.0 * float(min(few, many, _pearson(seen[often], expected[often]))))


def _pearson(seen: Labels, expected: NDArray[np.float64]) -> float:
    """Of shares among these cells alone."""
    if len(seen) < 2:
        return 1.0
    hoped = expected * (seen.sum() / expected.sum())
    return float(scipy.special.chdtrc(len(seen) - 1, ((seen - hoped) ** 2 / hoped).sum()))
