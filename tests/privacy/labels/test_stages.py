"""The multi-stage trainer: each label is read once, what is trained is a function of answers, and resuming never asks twice."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.chance import Chance
from fedrho.privacy.labels.memory import Forgetful, LostAnswers
from fedrho.privacy.labels.private import PrivateLabels
from fedrho.privacy.labels.randomizers import Randomizer, TopK, WithPrior
from fedrho.privacy.labels.stages import (
    FromClusters,
    FromModel,
    Given,
    Outcome,
    Retraining,
    Stage,
    StageError,
    Uniform,
    joined,
    ranks,
    split,
    train_stages,
)
from tests.privacy.labels.softmax import SeededChance, SoftmaxRegression, blobs, equal

COUNT, CLASSES = 600, 4
FEATURES, LABELS = blobs(COUNT)
LEARNER = SoftmaxRegression(CLASSES, 2)


def stages(epsilon: float = 2.0, **second: Any) -> list[Stage]:
    first = Stage(0.6, epsilon, LEARNER)
    return [first, replace(first, **{"share": 0.4, "prior": FromModel(temperature=0.5), "warm": True, **second})]


def trained(
    given: list[Stage], memory: Forgetful | None = None, budget: float = 2.0, seed: int = 3
) -> tuple[Outcome, PrivateLabels]:
    private = PrivateLabels(LABELS, CLASSES, budget)
    memory = Forgetful() if memory is None else memory
    return train_stages(FEATURES, private, given, memory, SeededChance(1), seed), private


def accuracy(outcome: Outcome) -> float:
    test, labels = blobs(2000, seed=99)
    return float((LEARNER.probabilities(outcome.weights, test).argmax(axis=1) == labels).mean())


# -- the split ----------------------------------------------------------------------------------------------------------------


def test_split_is_disjoint_and_whole_and_knows_ids_and_seed_alone() -> None:
    parts = split(1000, [0.65, 0.25, 0.1], 0)
    assert [len(part) for part in parts] == [650, 250, 100]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
    names = [f"record-{place}" for place in range(1000)]
    mine = [{names[place] for place in part} for part in split(names, [0.65, 0.35], 7)]
    backwards = names[::-1]
    assert mine == [{backwards[place] for place in part} for part in split(backwards, [0.65, 0.35], 7)]
    assert mine != [{names[place] for place in part} for part in split(names, [0.65, 0.35], 8)]


def test_split_of_a_file_sorted_by_class_has_every_class_in_every_part() -> None:
    sorted_labels = np.repeat(np.arange(4), 250)
    for part in split(1000, [0.5, 0.5], 0):  # hypergeometric: 125 expected, deviation 6.9 of each class
        assert np.abs(np.bincount(sorted_labels[part]) - 125).max() < 35


@pytest.mark.parametrize(
    ("ids", "shares", "says"),
    [(10, [0.5, 0.6], "add up to 1"), (10, [1.5, -0.5], "positive"), (2, [0.9, 0.1], "too few"), (["a", "a"], [1.0], "one id")],
)
def test_split_refuses_what_is_no_partition(ids: Any, shares: list[float], says: str) -> None:
    with pytest.raises(StageError, match=says):
        split(ids, shares, 0)


# -- what labels pay -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prices", [(1.0, 1.0), (1.0, 2.0), (0.5, 2.0, 1.0)])
def test_stages_on_disjoint_parts_cost_the_largest_and_read_each_label_once(prices: tuple[float, ...]) -> None:
    shares = [1 / len(prices)] * len(prices)
    chain = [
        Stage(share, price, LEARNER, FromModel() if number else Uniform())
        for number, (share, price) in enumerate(zip(shares, prices, strict=True))
    ]
    _, private = trained(chain)
    assert private.ledger.total == max(prices)
    assert (private.reads == 1).all()


def test_a_cluster_histogram_is_paid_on_top_and_is_the_second_read() -> None:
    groups = (FEATURES[:, 0] > 0).astype(np.int64)
    outcome, private = trained([Stage(1.0, 1.5, LEARNER, FromClusters(groups, 2, 0.5))])
    assert private.ledger.total == 2.0
    assert (private.reads == 2).all()
    assert outcome.stages[0].mean_size < CLASSES


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epsilon": 3.0}, "stage 2 costs epsilon 3"),
        ({"learner": SoftmaxRegression(5, 2)}, "model of 5 classes"),
        ({"prior": FromModel(temperature=0)}, "temperature"),
        ({"prior": Given(np.ones((5, CLASSES)))}, "shape"),
        ({"prior": Given(np.full((COUNT, CLASSES), np.nan))}, "no number"),
        ({"prior": FromClusters(np.zeros(COUNT, np.int64), 1, 0.5)}, "stage 2 costs epsilon 2.5"),
        ({"epsilon": 1.0, "prior": FromClusters(np.full(COUNT, 4), 4, 0.5)}, "between 0 and 3"),
        ({"epsilon": 1.0, "prior": FromClusters(np.zeros(COUNT, np.int64), 1, 1e-15)}, "histogram"),
        ({"prior": Given(np.ones((COUNT, CLASSES)), temperature=0.0)}, "temperature"),
        ({"prior": FromModel(temperature=math.inf)}, "temperature"),
        ({"mechanism": lambda epsilon: TopK(epsilon, 20)}, "k is at most"),
        ({"mechanism": lambda epsilon: WithPrior(9.0)}, "its mechanism 9"),
    ],
)
def test_stages_that_cannot_be_run_are_refused_before_any_label_is_read(change: dict[str, Any], says: str) -> None:
    private = PrivateLabels(LABELS, CLASSES, 2.0)
    chain = stages()
    with pytest.raises(ValueError, match=says):
        train_stages(FEATURES, private, [chain[0], replace(chain[1], **change)], Forgetful(), SeededChance(1), 0)
    assert private.reads.sum() == 0
    assert private.ledger.total == 0


def test_records_that_are_none_are_refused_before_any_label_is_read() -> None:
    private = PrivateLabels(LABELS, CLASSES, 2.0)
    for among in ([0, COUNT], [0, 0]):
        with pytest.raises(StageError, match="among"):
            train_stages(FEATURES, private, stages(), Forgetful(), SeededChance(1), 0, among=np.array(among))
    assert private.reads.sum() == 0


def test_only_plain_answers_taken_at_their_word_can_be_denoised() -> None:
    chain = stages(prior=FromModel(denoised=True))
    trained(chain)
    with pytest.raises(StageError, match="denoised"):
        trained([replace(chain[0], correction=True), chain[1]])


# -- what is trained on ----------------------------------------------------------------------------------------------------------


class Canned(PrivateLabels):
    """Reads and charges like every guardian, and then says what it was told to say: answers and histograms of another run."""

    __slots__ = ("_said",)

    def __init__(self, labels: NDArray[np.int64], said: Forgetful) -> None:
        super().__init__(labels, CLASSES, 2.0)
        self._said = list(said.answers.values()), list(said.counts.values())

    def answer(self, places: NDArray[np.int64], randomizer: Randomizer, priors: ArrayLike, chance: Chance) -> Answers:
        super().answer(places, randomizer, priors, chance)
        return self._said[0].pop(0)

    def histogram(self, *arguments: Any) -> NDArray[np.int64]:
        super().histogram(*arguments)
        return self._said[1].pop(0)


CLUSTERED = FromClusters((FEATURES[:, 1] > 0).astype(np.int64), 2, 0.5)
CHAINS = {
    "two stages": stages(),
    "three stages, filtered by rounding, consensus": [
        Stage(0.4, 2.0, LEARNER),
        Stage(0.3, 2.0, LEARNER, FromModel(denoised=True), filter="rounded"),
        Stage(0.3, 2.0, LEARNER, FromModel(0.7), retraining=Retraining(LEARNER, rounds=2)),
    ],
    "clusters, corrected": [Stage(1.0, 1.5, LEARNER, CLUSTERED, correction=True)],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_changed_label_under_the_same_answers_changes_no_bit(chain: list[Stage]) -> None:
    memory = Forgetful()
    outcome, _ = trained(chain, memory)
    other = LABELS.copy()
    other[17] = (other[17] + 1) % CLASSES
    again = train_stages(FEATURES, Canned(other, memory), chain, Forgetful(), SeededChance(1), 3)
    assert again.weights.tobytes() == outcome.weights.tobytes()
    assert again.stages == outcome.stages


def test_two_stages_learn_and_answer_the_second_part_with_smaller_sets() -> None:
    outcome, _ = trained(stages())
    first, second = outcome.stages
    assert (first.mean_size, first.left_out, first.records) == (CLASSES, 0, 360)
    assert 1 <= second.mean_size < CLASSES
    assert second.trained_on == COUNT - second.left_out
    assert second.left_out > 0
    assert accuracy(outcome) > 0.9


def test_the_filter_keeps_answers_among_the_likeliest_k_and_none_keeps_all() -> None:
    memory = Forgetful()
    outcome, _ = trained(stages(), memory)
    part = split(COUNT, [0.6, 0.4], 0)[0]
    size = int(memory.answers["stage-2"].sizes.mean())
    predicted = LEARNER.probabilities(memory.weights["stage-1"], FEATURES[part])
    likeliest = np.argsort(-predicted, axis=1, kind="stable")[:, :size]
    kept = [label in row for label, row in zip(memory.answers["stage-1"].labels, likeliest, strict=True)]
    assert outcome.stages[1].left_out == len(kept) - sum(kept)
    assert trained(stages(filter="none"))[0].stages[1].left_out == 0
    assert np.array_equal(ranks(np.array([[0.4, 0.4, 0.2]] * 3), np.array([0, 1, 2])), [0, 1, 2])


def test_consensus_retrains_on_records_whose_prediction_is_their_answer() -> None:
    memory = Forgetful()
    outcome, _ = trained([Stage(1.0, 2.0, LEARNER, retraining=Retraining(LEARNER))], memory)
    told = memory.answers["stage-1"].labels
    agrees = LEARNER.probabilities(memory.weights["stage-1"], FEATURES).argmax(axis=1) == told
    assert outcome.stages[0].agreeing == agrees.sum() < COUNT
    kept = LEARNER.fit(FEATURES[agrees], np.eye(CLASSES)[told[agrees]], None, 0)
    assert np.abs(kept - outcome.weights).max() < 0.05  # another start, hardly another model
    every, _ = trained([Stage(1.0, 2.0, LEARNER, retraining=Retraining(LEARNER, every=True))])
    assert every.stages[0].agreeing == COUNT


def test_a_stage_without_epsilon_answers_and_trains_all_the_same() -> None:
    outcome, private = trained([Stage(1.0, 0.0, LEARNER, correction=True)])
    assert private.ledger.total == 0
    assert np.isfinite(outcome.weights).all()


# -- resuming --------------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


class Fragile(Forgetful):
    """Remembers like a disk, and dies at a given operation; it counts the operations so that every one can be tried."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: dict[str, int] = {}
        self.left = 10**9

    def _operation(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def begin(self, name: str) -> None:
        self._operation()
        self.begun[name] = self.begun.get(name, 0) + 1
        self._operation()

    def lost(self, name: str) -> int:
        return self.begun.get(name, 0) - (name in self.answers or name in self.counts)

    def keep(self, name: str, answers: Answers) -> None:
        self._operation()
        super().keep(name, answers)
        self._operation()

    def keep_counts(self, name: str, counts: NDArray[np.int64]) -> None:
        self._operation()
        super().keep_counts(name, counts)
        self._operation()

    def keep_weights(self, name: str, weights: NDArray[np.float32]) -> None:
        self._operation()
        super().keep_weights(name, weights)
        self._operation()


RESUMED = [Stage(0.5, 1.5, LEARNER, CLUSTERED), Stage(0.5, 2.0, LEARNER, FromModel(0.5), retraining=Retraining(LEARNER))]


def test_a_run_killed_anywhere_asks_no_label_twice_or_refuses_and_is_paid_for() -> None:
    whole = Fragile()
    outcome, private = trained(RESUMED, whole)
    operations = 10**9 - whole.left
    assert operations == 18
    refused = 0
    for left in range(operations):
        memory = Fragile()
        memory.left = left
        with pytest.raises(Killed):
            trained(RESUMED, memory)
        memory.left = 10**9
        kept = dict(memory.answers)
        if any(memory.lost(name) for name in memory.begun):
            refused += 1
            with pytest.raises(LostAnswers, match="answers lost"):
                trained(RESUMED, memory)
            resumed, guardian = trained(RESUMED, memory, budget=4.0)
            assert guardian.ledger.total > 2.0
        else:
            resumed, guardian = trained(RESUMED, memory)
            assert guardian.ledger.total == 2.0
        assert all(equal(memory.answers[name], answers) for name, answers in kept.items())
        assert np.isfinite(resumed.weights).all()
    assert refused == 6  # after each of three marks: once before the labels are read, and once before the answers are kept
    again, guardian = trained(RESUMED, whole)
    assert again.weights.tobytes() == outcome.weights.tobytes()
    assert (guardian.reads.sum(), guardian.ledger.total) == (0, private.ledger.total)


def test_joined_answers_keep_their_order() -> None:
    one, other = (WithPrior(1.0).answer(LABELS[:5], np.full((5, 4), 0.25), SeededChance(seed)) for seed in (1, 2))
    both = joined([one, other])
    assert equal(both.at(np.arange(5)), one)
    assert equal(both.at(np.arange(5, 10)), other)
