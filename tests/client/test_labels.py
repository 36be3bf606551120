"""Answers for labels: asked once, kept before they are used, never a label itself, never beyond what the owner allows."""

from __future__ import annotations

import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrho.client import labels as module
from fedrho.client.examples import ArrayExamples, Batch, ExampleStore, batches
from fedrho.client.history import DeviceHistory
from fedrho.client.history_file import HistoryError, HistoryFile
from fedrho.client.history_view import read_ledger
from fedrho.client.labels import LabelMemo, answering, objecting
from fedrho.client.limits import NO_LIMITS, Limits
from fedrho.client.participant import CannotTrain, TrainingFailed
from fedrho.client.records import mixed
from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.chance import Words
from fedrho.privacy.labels.private import PrivateLabels
from fedrho.protos import messages as m
from tests.client.plans import plan_of, task_of

CLASSES = 10
TERMS = m.LabelTerms("rr-with-prior", 1.0)
PLAN = replace(plan_of("digits-logistic"), labels=TERMS, epochs=2, batch_size=7)


class Crash(BaseException):
    """The process is gone; nothing catches it."""


@dataclass
class Seeded:
    """Words that a test can predict, and how many were drawn."""

    seed: int = 0
    drawn: int = 0

    def words(self, count: int) -> Words:
        random = np.random.default_rng((self.seed, self.drawn))
        self.drawn += count
        return random.integers(0, 2**64, count, dtype=np.uint64)


def features_of(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((count, 64), dtype=np.float32)


def labels_of(count: int, seed: int = 1) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, CLASSES, count).astype(np.int32)


def store_of(count: int = 40) -> ArrayExamples:
    return ArrayExamples(features_of(count), labels_of(count))


def ask(path: Path, examples: ExampleStore, plan: m.RoundPlan = PLAN, limits: Limits = NO_LIMITS) -> list[Batch]:
    with closing(LabelMemo(path, limits)) as memo:
        return list(batches(plan, memo.answered(plan, examples)))


def noisy(path: Path) -> dict[tuple[bytes, int], int]:
    """Every answer in the file, by record and terms."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT record, terms, label FROM label_answers").fetchall()
    return {(bytes(record), terms): label for record, terms, label in rows}


def by_features(found: list[Batch]) -> dict[bytes, bytes]:
    return {
        row.tobytes(): told.tobytes()
        for batch in found
        for row, told in zip(batch.features, batch.likelihoods if batch.likelihoods is not None else batch.labels, strict=True)
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.sqlite"


# -- asked once ------------------------------------------------------------------------------------------------------------------


def test_every_round_and_every_process_has_the_same_answers_for_all_records(path: Path) -> None:
    store = store_of()
    first = ask(path, store)
    before = noisy(path)
    for step in (2, 3):
        plan = replace(PLAN, step=step)
        later = ask(path, store, plan)
        assert sum(len(one.labels) for one in later) == 2 * 40
        assert by_features(later) == by_features(first)
    assert noisy(path) == before
    assert len(before) == 40


def test_likelihoods_are_the_column_of_the_answer_and_plain_labels_the_answer_itself(path: Path) -> None:
    keep = float(np.e / (np.e + CLASSES - 1))
    (batch,) = ask(path, store_of(5), replace(PLAN, epochs=1))
    plain = ask(path, store_of(5), replace(PLAN, epochs=1, labels=replace(TERMS, correction="none")))
    assert batch.likelihoods is not None
    assert np.allclose(batch.likelihoods.max(axis=1), keep)
    assert np.allclose(np.sort(batch.likelihoods, axis=1)[:, :-1], (1 - keep) / (CLASSES - 1))
    assert plain[0].likelihoods is None
    assert plain[0].labels.tolist() == batch.likelihoods.argmax(axis=1).tolist()  # one answer, for both corrections


def test_labels_are_read_through_private_labels_alone_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    answer = PrivateLabels.answer

    def counted(self: PrivateLabels, places: NDArray[np.int64], *rest: object) -> Answers:
        found = answer(self, places, *rest)  # type: ignore[arg-type]
        reads.extend(self.reads.tolist())
        return found

    monkeypatch.setattr(PrivateLabels, "answer", counted)
    for _ in range(3):
        ask(path, store_of())
    assert reads == [1] * 40


def test_a_label_that_changes_after_it_was_answered_changes_nothing(path: Path) -> None:
    features, labels = features_of(20), labels_of(20)
    first = by_features(ask(path, ArrayExamples(features, labels)))
    assert by_features(ask(path, ArrayExamples(features, (labels + 3) % CLASSES))) == first


def test_new_records_are_asked_and_those_that_may_be_old_ones_are_not(path: Path) -> None:
    features, labels = features_of(20), labels_of(20)
    ask(path, ArrayExamples(features[:10], labels[:10]))
    assert len(by_features(ask(path, ArrayExamples(features, labels)))) == len(noisy(path)) == 20
    twice = ArrayExamples(np.concatenate([features, features[:1]]), np.concatenate([labels, labels[:1]]))
    assert sum(len(batch.labels) for batch in ask(path, twice, replace(PLAN, epochs=1))) == 20
    assert len(noisy(path)) == 20  # the second of equal features may be the first
    with pytest.raises(TrainingFailed, match="answered are gone, and others have come"):
        ask(path, ArrayExamples(features + np.float32(0.5), labels))
    assert len(noisy(path)) == 20
    assert len(by_features(ask(path, ArrayExamples(features[5:9], labels[5:9])))) == 4  # fewer is no new question


def test_equal_records_have_an_answer_each(path: Path) -> None:
    features, labels = np.zeros((30, 64), np.float32), labels_of(30)
    found = ask(path, ArrayExamples(features, labels), replace(PLAN, epochs=1, labels=replace(TERMS, correction="none")))
    assert sorted(noisy(path).values()) == sorted(np.concatenate([one.labels for one in found]).tolist())
    assert len(noisy(path)) == 30


@dataclass(frozen=True)
class Augmenting:
    """A store that changes its features whenever it is asked."""

    features: NDArray[np.float32]
    labels: NDArray[np.int32]

    def batches(self, plan: m.RoundPlan) -> Iterator[Batch]:
        for _ in range(plan.epochs):
            yield Batch(self.features + np.random.default_rng().random(dtype=np.float32), self.labels)


def test_a_store_that_changes_its_features_is_never_asked_a_second_time(path: Path) -> None:
    ask(path, Augmenting(features_of(10), labels_of(10)))
    for _ in range(3):
        with pytest.raises(TrainingFailed, match="others have come"):
            ask(path, Augmenting(features_of(10), labels_of(10)))
    assert len(noisy(path)) == 10


def test_store_of_ones_own_and_steps_that_pass_over_the_data_again(path: Path) -> None:
    class Own:
        def batches(self, plan: m.RoundPlan) -> Iterator[Batch]:
            for _ in range(plan.epochs):
                yield Batch(features_of(10)[:6], labels_of(10)[:6])
                yield Batch(features_of(10)[6:], labels_of(10)[6:])

    plan = replace(PLAN, local_steps=5, epochs=1)
    assert [len(batch.labels) for batch in ask(path, Own(), plan)] == [7, 3, 7, 3, 7]
    assert len(noisy(path)) == 10


def test_empty_store_gives_nothing(path: Path) -> None:
    class Empty:
        def batches(self, plan: m.RoundPlan) -> Iterator[Batch]:
            return iter(())

    assert ask(path, Empty()) == []
    assert noisy(path) == {}


# -- a death between any two steps ---------------------------------------------------------------------------------------------


@contextmanager
def dying(point: str) -> Iterator[None]:
    """Dies at the point, after what came before it."""

    def before(function: Callable[..., object]) -> Callable[..., object]:
        def dead(*arguments: object, **named: object) -> object:
            raise Crash(point)

        return dead

    def after(function: Callable[..., object]) -> Callable[..., object]:
        def dead(*arguments: object, **named: object) -> object:
            function(*arguments, **named)
            raise Crash(point)

        return dead

    at: dict[str, tuple[object, str, Callable[[Callable[..., object]], Callable[..., object]]]] = {
        "read": (module, "read_records", after),
        "drawing": (PrivateLabels, "answer", before),
        "drawn": (PrivateLabels, "answer", after),
        "inserting": (LabelMemo, "_likelihood", after),
        "inserted": (LabelMemo, "_insert", after),
        "committed": (HistoryFile, "mark", before),
        "marked": (HistoryFile, "mark", after),
        "recalled": (LabelMemo, "_recall", after),
        "prepared": (module, "told_of", after),
    }
    where, name, how = at[point]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, how(getattr(where, name)))
        yield


BEFORE = ["read", "drawing", "drawn", "inserting", "inserted"]
AFTER = ["committed", "marked", "recalled", "prepared"]


@pytest.mark.parametrize("point", BEFORE + AFTER)
def test_death_at_any_step_leaves_all_answers_or_none_and_asks_nothing_twice(path: Path, point: str) -> None:
    """Before the commit nothing was used or seen, so a new draw is the first one; after it there is no draw at all."""
    with pytest.raises(Crash), dying(point), closing(LabelMemo(path, chance=Seeded(1))) as memo:
        memo.answered(PLAN, store_of())
    left = noisy(path)
    assert len(left) == (40 if point in AFTER else 0)
    chance = Seeded(2)
    with closing(LabelMemo(path, chance=chance)) as memo:
        memo.answered(PLAN, store_of())
        assert (chance.drawn > 0) == (point in BEFORE)
    assert len(noisy(path)) == 40
    assert point in BEFORE or noisy(path) == left
    assert read_ledger(path).complete


CHILD = """
import os, signal, sys
from pathlib import Path
from fedrho.client.history_file import HistoryFile
from fedrho.client.labels import LabelMemo
from fedrho.privacy.labels.private import PrivateLabels
from tests.client.test_labels import PLAN, store_of

path, point = Path(sys.argv[1]), sys.argv[2]
where, name = {"drawn": (PrivateLabels, "answer"), "inserted": (LabelMemo, "_insert"), "committed": (HistoryFile, "mark"),
               "recalled": (LabelMemo, "_recall")}[point]
function = getattr(where, name)

def dying(*arguments, **named):
    if point != "committed":
        function(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(where, name, dying)
LabelMemo(path).answered(PLAN, store_of())
"""


@pytest.mark.slow
@pytest.mark.parametrize("point", ["drawn", "inserted", "committed", "recalled"])
def test_killed_process_has_answered_all_or_nothing(path: Path, point: str) -> None:
    killed = subprocess.run([sys.executable, "-c", CHILD, str(path), point], timeout=100, cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    left = noisy(path)
    assert len(left) == (0 if point in BEFORE else 40)
    ask(path, store_of())
    assert len(noisy(path)) == 40
    assert point in BEFORE or noisy(path) == left


def test_the_table_itself_refuses_a_second_answer(path: Path) -> None:
    with closing(LabelMemo(path)) as memo:
        memo.answered(PLAN, store_of(3))
        (name, terms), *_ = noisy(path)
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            memo._database.execute("INSERT INTO label_answers VALUES (?, ?, 9, 1, 10, 1)", (name, terms))


# -- what the file and the training process see ------------------------------------------------------------------------------


def test_true_labels_are_neither_in_the_files_nor_in_what_the_training_process_is_sent(tmp_path: Path, path: Path) -> None:
    count = 256
    labels = (np.arange(count) % CLASSES).astype(np.int32)
    with closing(LabelMemo(path)) as memo:
        sent = pickle.dumps(memo.answered(PLAN, ArrayExamples(features_of(count), labels)))
    whole = sent + b"".join(one.read_bytes() for one in sorted(tmp_path.iterdir()))
    for kind in ("<i4", "<i8", "<f4", "<f8", "i1", "<i2", "<u4"):
        told = labels.astype(kind).tobytes()
        assert told not in whole
        assert told[: len(told) // 4] not in whole
    agree = np.mean([label == true for label, true in zip(noisy(path).values(), labels, strict=True)])
    assert agree < 0.6
    assert b"random" not in sent  # no generator


def test_two_devices_that_differ_in_a_label_send_the_same_bytes_for_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Non-interference: with the answers stubbed, nothing that leaves the process that holds labels depends on one."""

    def stubbed(self: PrivateLabels, places: NDArray[np.int64], *rest: object) -> Answers:
        told = places % CLASSES
        likelihoods = np.full((len(places), CLASSES), 0.05)
        likelihoods[np.arange(len(places)), told] = 0.55
        return Answers(told, likelihoods, np.full(len(places), CLASSES, dtype=np.int64))

    monkeypatch.setattr(PrivateLabels, "answer", stubbed)
    labels = labels_of(30)
    other = labels.copy()
    other[11] = (other[11] + 1) % CLASSES
    sent = []
    for number, mine in enumerate((labels, other)):
        with closing(LabelMemo(tmp_path / f"{number}.sqlite")) as memo:
            sent.append(
                pickle.dumps([memo.answered(replace(PLAN, step=step), ArrayExamples(features_of(30), mine)) for step in (1, 2)])
            )
    assert sent[0] == sent[1]


def test_a_store_in_the_order_of_its_labels_tells_nothing_by_its_order_or_its_batches(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder a class: a label that is replaced moves the record, and with balanced batches others, too."""

    @dataclass(frozen=True)
    class ByClass:
        labels: NDArray[np.int32]

        def batches(self, plan: m.RoundPlan) -> Iterator[Batch]:
            order = np.argsort(self.labels, kind="stable")
            for place in order:
                yield Batch(features_of(30)[[place]], self.labels[[place]])

    def stubbed(self: PrivateLabels, places: NDArray[np.int64], *rest: object) -> Answers:
        likelihoods = np.tile(np.linspace(0.05, 0.5, CLASSES), (len(places), 1))
        return Answers(places % CLASSES, likelihoods, np.full(len(places), CLASSES, dtype=np.int64))

    monkeypatch.setattr(PrivateLabels, "answer", stubbed)
    labels = labels_of(30)
    other = labels.copy()
    other[4] = (other[4] + 5) % CLASSES
    sent = []
    for number, mine in enumerate((labels, other)):
        with closing(LabelMemo(tmp_path / f"{number}.sqlite")) as memo:
            sent.append(pickle.dumps(memo.answered(PLAN, ByClass(mine))))
    assert sent[0] == sent[1]


def test_equal_records_are_answered_in_an_order_by_chance() -> None:
    labels, groups = np.array([0, 1, 2, 5]), [b"a", b"a", b"a", b"b"]
    seen = {tuple(mixed(labels, groups, Seeded(seed)).tolist()) for seed in range(60)}
    assert len(seen) == 6
    assert {one[3] for one in seen} == {5}


@pytest.mark.parametrize("wrong", [CLASSES, -1, 2**31 - 1])
def test_label_outside_the_classes_refuses_all_before_anything_is_drawn_and_says_the_same(path: Path, wrong: int) -> None:
    labels, chance = labels_of(20), Seeded()
    labels[7] = wrong
    with closing(LabelMemo(path, chance=chance)) as memo, pytest.raises(TrainingFailed) as refused:
        memo.answered(PLAN, ArrayExamples(features_of(20), labels))
    assert str(refused.value) == "a label is none of the 10 classes; nothing was answered"
    assert chance.drawn == 0
    assert noisy(path) == {}


def test_what_a_store_raises_is_not_told(path: Path) -> None:
    class Broken:
        def batches(self, plan: m.RoundPlan) -> Iterator[Batch]:
            raise ValueError("the label is 7")

    with pytest.raises(TrainingFailed, match=r"raised ValueError \(test_labels.py:\d+\)$") as failed:
        ask(path, Broken())
    assert "7" not in str(failed.value).split("(")[0]


# -- other terms, and what the owner allows --------------------------------------------------------------------------------


def objection(path: Path, terms: m.LabelTerms, limits: Limits = NO_LIMITS, model: str = "digits-logistic") -> str:
    return objecting(path, limits)(task_of(model, terms))


def test_other_terms_for_the_same_labels_are_refused_unless_the_owner_allows_the_sum(path: Path) -> None:
    assert objection(path, TERMS) == ""
    ask(path, store_of())
    assert objection(path, TERMS) == ""
    assert objection(path, replace(TERMS, correction="none")) == ""  # the same answers
    more = replace(TERMS, epsilon=0.5)
    assert "owner has set no max_label_epsilon" in objection(path, more)
    allowed = Limits(max_label_epsilon=1.5)
    assert objection(path, more, allowed) == ""
    ask(path, store_of(), replace(PLAN, labels=more), allowed)
    assert len(noisy(path)) == 80
    third = replace(TERMS, epsilon=0.25)
    assert "a label may cost epsilon 1.75, above the owner's max_label_epsilon 1.5" in objection(path, third, allowed)
    with pytest.raises(TrainingFailed, match="above the owner's"):
        ask(path, store_of(), replace(PLAN, labels=third), allowed)
    assert len(noisy(path)) == 80


def test_server_that_changes_prior_and_epsilon_from_round_to_round_gets_one_answer(path: Path) -> None:
    """Arbitrary priors cannot break epsilon; asking twice can."""
    got = 0
    for number in range(8):
        prior = tuple(np.roll([0.91] + [0.01] * 9, number).tolist())
        try:
            ask(path, store_of(), replace(PLAN, labels=m.LabelTerms("rr-with-prior", 1.0 + number / 8, prior)))
        except TrainingFailed:
            continue
        got += 1
    assert got == 1
    assert len(noisy(path)) == 40


def test_another_view_of_the_records_pays_anew(path: Path) -> None:
    """Another model may see the same record in other features: who it is cannot be told, so it counts as asked again."""
    ask(path, store_of())
    assert "under other terms already" in objection(path, TERMS, model="mnist-logistic")
    assert objection(path, TERMS, model="digits-mlp") == ""  # the same inputs: the same records, the same answers


def test_limits_ask_for_label_privacy() -> None:
    strict = Limits(max_label_epsilon_per_run=1.0)
    for terms, wanted in (
        (None, "trains on labels as they are"),
        (replace(TERMS, epsilon=1.5), "above the owner's"),
        (TERMS, None),
    ):
        said = strict.objection(b"", task_of("digits-logistic", terms))
        assert said is None if wanted is None else wanted in str(said)
    assert Limits(max_label_epsilon=2.0).objection(b"", task_of("digits-logistic", None)) is not None


# -- a history that cannot know --------------------------------------------------------------------------------------------


def test_history_that_was_lost_restored_or_copied_answers_nothing(tmp_path: Path, path: Path) -> None:
    DeviceHistory(path).close()
    ask(path, store_of(10))
    backup = tmp_path / "backup"
    shutil.copy(path, backup)
    more = ArrayExamples(features_of(20), labels_of(20))
    ask(path, more)
    for lose in (lambda: shutil.copy(backup, path), path.unlink):
        lose()
        for one in path.parent.glob(f"{path.name}-*"):
            one.unlink()
        assert "cannot know which labels were answered" in objection(path, TERMS)
        with pytest.raises(TrainingFailed, match="cannot know which labels"):
            ask(path, more)
    with closing(DeviceHistory(path)) as history:
        history.vouch()
    assert objection(path, TERMS) == ""


def test_answer_that_was_changed_in_the_file_is_damage(path: Path) -> None:
    ask(path, store_of())
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(
            "UPDATE label_answers SET label = (label + 1) % 10 WHERE record = (SELECT min(record) FROM label_answers)"
        )
    with pytest.raises(HistoryError, match="an answer for a label was changed"):
        ask(path, store_of())
    with pytest.raises(CannotTrain, match="damaged"):
        answering(path)(PLAN, store_of())
