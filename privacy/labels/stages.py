"""The multi-stage trainer, LP-MST (Ghazi et al. 2021, Algorithm 3), and what else trains on answers that were given once.

    records ── split by ids and a public seed ──> part 1 ... part T
    stage t:  prior of part t = model t-1, clusters, a given function       (functions of public data and earlier answers)
              answers of part t = mechanism(labels of part t; prior)         (each label's one read, but for a cluster histogram)
              earlier answers that model t-1 does not believe are left out   (union with filtering)
              model t = learner(features, answers), fresh or from model t-1
              model t again on records whose prediction is their answer (consensus retraining, Das et al. 2025)

*Guarantees* epsilon-LabelDP with epsilon = max over labels of the sum of what was read of it: the parts are disjoint, so stages
do not add up. *Assumes* that features, ids, classes and priors that are given are public.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.chance import Chance
from fedrho.privacy.labels.histogram import checked_histogram_epsilon
from fedrho.privacy.labels.learner import Learner
from fedrho.privacy.labels.ledger import checked_places
from fedrho.privacy.labels.memory import LostAnswers, Memory, fitting
from fedrho.privacy.labels.priors import checked, denoised, histogram_prior, mixed, tempered, uniform
from fedrho.privacy.labels.private import PrivateLabels, checked_groups
from fedrho.privacy.labels.randomizers import RandomizedResponse, Randomizer, WithPrior
from fedrho.privacy.vectors import FloatVector

Places = NDArray[np.int64]
Prior = NDArray[np.float64]
Filter = Literal["truncated", "rounded", "none"]


@dataclass(frozen=True)
class Uniform:
    """Nothing is known before: RRWithPrior is then plain randomized response."""


@dataclass(frozen=True)
class FromModel:
    """What the previous stage's model predicts; where `denoised`, with the channel of that stage's randomized response inverted.

    `domain`, of shape (n, K), is a prior from public knowledge that is mixed in with weight `domain_weight`.
    """

    temperature: float = 1.0
    denoised: bool = False
    domain: Prior | None = field(default=None, repr=False)
    domain_weight: float = 0.0


@dataclass(frozen=True)
class FromClusters:
    """One noisy histogram of labels per cluster of the records of this stage. It costs `epsilon` on top of the stage's."""

    groups: Places = field(repr=False)
    count: int
    epsilon: float


@dataclass(frozen=True)
class Given:
    """A function of public features, or a historical model: probabilities of shape (n, K)."""

    probabilities: Prior = field(repr=False)
    temperature: float = 1.0


@dataclass(frozen=True)
class Retraining:
    """Consensus retraining: on the records whose prediction is their answer, by their answers; from fresh weights.

    With `every`, on all records by their predictions ("full retraining" of the same article).
    """

    learner: Learner
    every: bool = False
    rounds: int = 1


@dataclass(frozen=True)
class Stage:
    """`share` of the records, their answers of price `epsilon` (and a cluster histogram's), and how a model learns from them."""

    share: float
    epsilon: float
    learner: Learner
    prior: Uniform | FromModel | FromClusters | Given = Uniform()
    mechanism: Callable[[float], Randomizer] = WithPrior
    correction: bool = False
    """Train on the likelihoods of the answers; else on the noisy labels as if they were true."""
    warm: bool = False
    filter: Filter = "truncated"
    """Which earlier answers stay: those among the likeliest k of the previous model, k the mean k of this stage's answers."""
    retraining: Retraining | None = None

    @property
    def price(self) -> float:
        return self.epsilon + (self.prior.epsilon if isinstance(self.prior, FromClusters) else 0.0)


@dataclass(frozen=True)
class StageRecord:
    """What may be told of a stage: it is a function of answers and features."""

    records: int
    mean_size: float
    """Of the sets that answers were drawn from (k of RRTop-k)."""
    trained_on: int
    left_out: int
    agreeing: int | None
    """Records of the last retraining; None without one."""


@dataclass(frozen=True)
class Outcome:
    """The last stage's weights; and of every stage what may be told."""

    weights: FloatVector
    stages: tuple[StageRecord, ...]


class StageError(ValueError):
    """Stages that cannot be run; found before any label is read."""


def split(ids: int | Sequence[object], shares: Sequence[float], seed: int) -> tuple[Places, ...]:
    """Disjoint places, one array for each share, every place in one. A function of ids, shares and the public seed alone.

    Records are ordered by a hash of their id, so neither their order nor their number at a place matters; a number of records
    stands for the ids 0 to n-1. Shares add up to 1. Raises StageError.
    """
    names = range(ids) if isinstance(ids, int) else ids
    if len(set(names)) != len(names):
        raise StageError("two records have one id; ids tell records apart")
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise StageError(f"the shares of the stages are positive and add up to 1, these to {sum(shares):g}")
    hashes = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in names]
    order = np.array(sorted(range(len(hashes)), key=hashes.__getitem__), dtype=np.int64)
    ends = np.rint(np.cumsum(shares)[:-1] * len(order)).astype(np.int64)
    parts = tuple(np.sort(part) for part in np.split(order, ends))
    if min(map(len, parts)) == 0:
        raise StageError(f"{len(order)} records are too few for {len(shares)} stages: one would have none")
    return parts


def train_stages(
    features: NDArray[Any],
    private: PrivateLabels,
    stages: Sequence[Stage],
    memory: Memory,
    chance: Chance,
    seed: int,
    *,
    among: Places | None = None,
    ids: Sequence[object] | None = None,
    split_seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """`features` of shape (n, ...) are those of `private`'s labels, in its order; `ids` tell records apart, else their places do.

    Only records `among` these places are asked and trained on. `seed` is of the training, and public like `split_seed`.
    Raises StageError before a label is read; and what `private` raises, LostAnswers and BadMemory.
    """
    try:
        places = np.arange(len(features)) if among is None else checked_places(among, len(features))
    except ValueError as error:
        raise StageError(f"among: {error}") from error
    named = places.tolist() if ids is None else [ids[place] for place in places]
    parts = [places[part] for part in split(named, [stage.share for stage in stages], split_seed)]
    check(stages, len(features), private)
    run = _Run(features, private, memory, chance, seed, say)
    for stage, part in zip(stages, parts, strict=True):
        run.through(stage, part)
    assert run.weights is not None
    return Outcome(run.weights, tuple(run.records))


def check(stages: Sequence[Stage], count: int, private: PrivateLabels) -> None:
    """Raises StageError for what could only fail later, when labels would have been read."""
    if count != len(private):
        raise StageError(f"{count} records and {len(private)} labels")
    for number, stage in enumerate(stages, 1):
        if not (stage.epsilon >= 0 and stage.price <= private.budget * (1 + 1e-12)):
            raise StageError(f"stage {number} costs epsilon {stage.price:g}; the budget of a label is {private.budget:g}")
        if stage.learner.classes != private.classes:
            raise StageError(f"stage {number}: a model of {stage.learner.classes} classes; the labels have {private.classes}")
        _check_prior(number, stage, stages[number - 2] if number > 1 else None, (count, private.classes))
        _check_mechanism(number, stage, private.classes)


def _check_mechanism(number: int, stage: Stage, classes: int) -> None:
    try:
        randomizer = stage.mechanism(stage.epsilon)
        randomizer.admit(uniform(1, classes))
    except ValueError as error:
        raise StageError(f"stage {number}: {error}") from error
    if randomizer.epsilon != stage.epsilon:
        raise StageError(f"stage {number}: has epsilon {stage.epsilon:g}, and its mechanism {randomizer.epsilon:g}")


def _check_prior(number: int, stage: Stage, before: Stage | None, shape: tuple[int, int]) -> None:
    prior = stage.prior
    if before is None and (isinstance(prior, FromModel) or stage.warm):
        raise StageError("stage 1 has no model before it, neither for its prior nor to start from")
    if isinstance(prior, FromModel):
        if prior.denoised and before is not None and not _plain(before):
            raise StageError(f"stage {number}: only a model trained on labels of plain randomized response can be denoised")
        if not 0 <= prior.domain_weight <= 1 or (prior.domain is None) != (prior.domain_weight == 0):
            raise StageError(f"stage {number}: a domain prior has a weight in (0, 1]")
    if isinstance(prior, FromModel | Given) and not 0 < prior.temperature < math.inf:
        raise StageError(f"stage {number}: a temperature is finite and above 0, not {prior.temperature}")
    given = prior.probabilities if isinstance(prior, Given) else prior.domain if isinstance(prior, FromModel) else None
    if given is not None:
        if given.shape != shape:
            raise StageError(f"stage {number}: a prior of shape {given.shape}; needed: {shape}")
        checked(given)
    if isinstance(prior, FromClusters):
        try:
            checked_groups(prior.groups, shape[0], prior.count)
            checked_histogram_epsilon(prior.epsilon)
        except ValueError as error:
            raise StageError(f"stage {number}: {error}") from error


def _plain(stage: Stage) -> bool:
    """Whether its model learned the answers of plain randomized response by heart: that channel can be inverted."""
    randomizer = stage.mechanism(stage.epsilon)
    plain = isinstance(randomizer, RandomizedResponse) or (isinstance(randomizer, WithPrior) and isinstance(stage.prior, Uniform))
    return plain and not stage.correction and stage.retraining is None


class _Run:
    """One run through the stages; what it holds besides labels' guardian is public or answered."""

    def __init__(
        self,
        features: NDArray[Any],
        private: PrivateLabels,
        memory: Memory,
        chance: Chance,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self._features, self._private, self._memory, self._chance = features, private, memory, chance
        self._seed, self._say = seed, say
        self._before: Stage | None = None
        self._learner: Learner | None = None
        """Of the weights: that of the last stage, or of its retraining."""
        self._places: list[Places] = []
        self._answers: list[Answers] = []
        self.weights: FloatVector | None = None
        self.records: list[StageRecord] = []

    def through(self, stage: Stage, part: Places) -> None:
        number = len(self.records) + 1
        self._say(f"stage {number}: answers")
        answers = self._answered(number, stage, part)
        kept = [self._believed(stage, one, told, answers) for one, told in zip(self._places, self._answers, strict=True)]
        self._places.append(part)
        self._answers.append(answers)
        chosen = [*kept, np.arange(len(part))]
        places = np.concatenate([one[some] for one, some in zip(self._places, chosen, strict=True)])
        told = joined([one.at(some) for one, some in zip(self._answers, chosen, strict=True)])
        order = np.argsort(places, kind="stable")
        self._say(f"stage {number}: training")
        agreeing = self._trained(number, stage, places[order], told.at(order))
        left_out = sum(map(len, self._places)) - len(places)
        self.records.append(StageRecord(len(part), float(answers.sizes.mean()), len(places), left_out, agreeing))
        self._before = stage

    # -- answers ---------------------------------------------------------------------------------------------------------

    def _answered(self, number: int, stage: Stage, part: Places) -> Answers:
        """Recalled, and paid for in this process's ledger too; or asked, and kept before anything is done with them."""
        name = f"stage-{number}"
        randomizer = stage.mechanism(stage.epsilon)
        self._pay_lost(name, stage, part)
        answers = fitting(self._memory.recall(name), len(part), self._private.classes, name)
        if answers is not None:
            if isinstance(stage.prior, FromClusters):
                self._counts(f"{name}-clusters", stage.prior, part)
            self._private.recall(part, randomizer)
            return answers
        priors = randomizer.admit(self._priors(name, stage, part))
        self._memory.begin(name)
        answers = self._private.answer(part, randomizer, priors, self._chance)
        self._memory.keep(name, answers)
        return answers

    def _pay_lost(self, name: str, stage: Stage, part: Places) -> None:
        """What a process that was killed had read is paid for; raises LostAnswers where there is no room to ask once more."""
        histogram = stage.prior.epsilon if isinstance(stage.prior, FromClusters) else 0.0
        prices = [stage.epsilon] * self._memory.lost(name) + [histogram] * self._memory.lost(f"{name}-clusters")
        for epsilon in prices:
            self._private.ledger.charge(part, epsilon, "answers that were lost")
        needed = float(self._private.ledger.spent[part].max(initial=0.0)) + stage.price
        if prices and needed > self._private.budget * (1 + 1e-12):
            raise LostAnswers(
                f"{name}: its labels were read once and the answers lost; to ask again makes epsilon {needed:g}, above the "
                f"budget of {self._private.budget:g}"
            )

    def _priors(self, name: str, stage: Stage, part: Places) -> Prior:
        classes, prior = self._private.classes, stage.prior
        if isinstance(prior, FromModel):
            return self._from_model(prior, part)
        if isinstance(prior, FromClusters):
            return self._from_clusters(f"{name}-clusters", prior, part)
        if isinstance(prior, Given):
            return tempered(checked(prior.probabilities[part]), prior.temperature)
        return uniform(len(part), classes)

    def _from_model(self, prior: FromModel, part: Places) -> Prior:
        assert self._before is not None
        predicted = self._predicted(self._features[part])
        if prior.denoised:
            predicted = denoised(predicted, self._before.epsilon)
        rows = tempered(predicted, prior.temperature)
        return rows if prior.domain is None else mixed(checked(prior.domain[part]), rows, prior.domain_weight)

    def _from_clusters(self, name: str, prior: FromClusters, part: Places) -> Prior:
        return histogram_prior(self._counts(name, prior, part))[prior.groups[part]]

    def _counts(self, name: str, prior: FromClusters, part: Places) -> NDArray[np.int64]:
        counts = self._memory.recall_counts(name)
        if counts is not None:
            self._private.recall_histogram(part, prior.epsilon)
            return counts
        self._memory.begin(name)
        counts = self._private.histogram(part, prior.groups[part], prior.count, prior.epsilon, self._chance)
        self._memory.keep_counts(name, counts)
        return counts

    # -- training --------------------------------------------------------------------------------------------------------

    def _believed(self, stage: Stage, places: Places, told: Answers, latest: Answers) -> Places:
        """Which of a part's earlier answers stay, by what the previous stage's model predicts for their records."""
        if stage.filter == "none":
            return np.arange(len(places))
        mean = float(latest.sizes.mean())
        size = max(1, int(mean) if stage.filter == "truncated" else round(mean))
        predicted = self._predicted(self._features[places])
        return np.flatnonzero(ranks(predicted, told.labels) < size)

    def _predicted(self, features: NDArray[Any]) -> Prior:
        """By the latest model."""
        assert self.weights is not None
        assert self._learner is not None
        return self._learner.probabilities(self.weights, features)

    def _trained(self, number: int, stage: Stage, places: Places, told: Answers) -> int | None:
        """Sets the weights; how many records the retraining had."""
        features = self._features[places]
        start = self.weights if stage.warm else None
        answers = told if stage.correction else told.as_labels()
        self.weights = self._fitted(f"stage-{number}", stage.learner, features, answers.likelihoods, start)
        if stage.retraining is None:
            return None
        agreeing = 0
        for again in range(1, stage.retraining.rounds + 1):
            self._say(f"stage {number}: retraining")
            guessed = self._predicted(features).argmax(axis=1)
            chosen = np.arange(len(told)) if stage.retraining.every else np.flatnonzero(guessed == told.labels)
            agreeing = len(chosen)
            if agreeing == 0:  # nothing to retrain on: the model stays as it is
                break
            learner = stage.retraining.learner
            target = np.eye(learner.classes)[guessed[chosen]]
            self.weights = self._fitted(f"stage-{number}-again-{again}", learner, features[chosen], target, None)
        return agreeing

    def _fitted(
        self, name: str, learner: Learner, features: NDArray[Any], likelihoods: Prior, start: FloatVector | None
    ) -> FloatVector:
        weights = self._memory.recall_weights(name)
        self._learner = learner
        if weights is None:
            weights = learner.fit(features, likelihoods, start, fit_seed(self._seed, name))
            self._memory.keep_weights(name, weights)
        return weights


MOST_SEED: Final = 2**31


def fit_seed(seed: int, name: str) -> int:
    """Of one training: public, and another one for each."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") % MOST_SEED


def ranks(probabilities: Prior, labels: NDArray[np.int64]) -> Places:
    """How many classes come before the label, by probability and then by number."""
    own = np.take_along_axis(probabilities, labels[:, None], axis=1)
    before = (probabilities > own) | ((probabilities == own) & (np.arange(probabilities.shape[1]) < labels[:, None]))
    counts: Places = before.sum(axis=1).astype(np.int64)
    return counts


def joined(several: Sequence[Answers]) -> Answers:
    """One after the other."""
    return Answers(
        np.concatenate([one.labels for one in several]),
        np.concatenate([one.likelihoods for one in several]),
        np.concatenate([one.sizes for one in several]),
    )
