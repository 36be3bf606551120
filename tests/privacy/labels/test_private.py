"""True labels, the ledger and the statement: paid for before they are read, read once, and shown nowhere."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
import time
import traceback
from collections.abc import Callable
from fractions import Fraction
from threading import Barrier, Thread

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chisquare

from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.chance import Chance, SystemChance
from fedrho.privacy.labels.histogram import FURTHEST, DiscreteLaplace, laplace_pmf, noisy_histogram
from fedrho.privacy.labels.ledger import LabelLedger
from fedrho.privacy.labels.private import AlreadyAnswered, LabelBudgetExhausted, PrivateLabels
from fedrho.privacy.labels.randomizers import OutsideClasses, RandomizedResponse, WithPrior
from fedrho.privacy.labels.statement import LabelStatement
from fedrho.privacy.statement import Neighbours, PrivacyStatement, Unit, compose
from fedrho.privacy.zcdp import Rho
from tests.privacy.labels.chances import Seeded, Untouched

ALL = np.arange(6)
TRUE = np.array([2, 0, 1, 2, 2, 1])


def priors(count: int = 6) -> NDArray[np.float64]:
    return np.full((count, 3), 1 / 3)


class Watched:
    """A randomizer that sees the ledger at the moment when it is given labels."""

    epsilon = 1.0
    name = "watched"

    def __init__(self) -> None:
        self.private: PrivateLabels | None = None
        self.spent: list[float] = []

    def admit(self, priors: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(priors, dtype=np.float64)

    def answer(self, labels: NDArray[np.int64], priors: ArrayLike, chance: Chance) -> Answers:
        assert self.private is not None
        self.spent = self.private.ledger.spent.tolist()
        raise RuntimeError("the process ends here")

    def matrix(self, priors: ArrayLike) -> NDArray[np.float64]:
        raise NotImplementedError


def test_labels_are_paid_for_before_they_are_read() -> None:
    """Even where the answer is never given; then the labels count as answered, for whoever ended may have seen it."""
    private, watched = PrivateLabels(TRUE, 3, 1.0), Watched()
    watched.private = private
    with pytest.raises(RuntimeError, match="ends here"):
        private.answer(ALL[:2], watched, priors(2), Untouched())
    assert watched.spent == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    with pytest.raises(AlreadyAnswered, match="1 of 2 labels"):
        private.answer(np.array([1, 3]), RandomizedResponse(0.0), priors(2), Untouched())


def test_a_label_is_answered_once_and_every_read_is_counted() -> None:
    """An answer that says nothing, of k = 1, costs like any other."""
    private = PrivateLabels(TRUE, 3, 2.0)
    sure = np.tile([1.0, 0.0, 0.0], (3, 1))
    assert private.answer(ALL[:3], WithPrior(1.0), sure, SystemChance()).sizes.tolist() == [1, 1, 1]
    assert private.ledger.spent.tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    with pytest.raises(AlreadyAnswered):
        private.answer(ALL, RandomizedResponse(1.0), priors(), Untouched())
    private.histogram(ALL, np.zeros(6, dtype=np.int64), 1, 0.5, SystemChance())
    private.answer(ALL[3:], RandomizedResponse(1.5), priors(3), SystemChance())
    assert private.reads.tolist() == [2, 2, 2, 2, 2, 2]
    assert (private.ledger.total, private.ledger.rows()) == (
        2.0,
        [("randomized response with prior", 1.0, 3), ("histogram", 0.5, 6), ("randomized response", 1.5, 3)],
    )


def test_answers_of_a_former_process_are_paid_for_and_not_asked_again() -> None:
    """A crash, a retry or another split is no reason to ask again."""
    private = PrivateLabels(TRUE, 3, 1.0)
    private.recall_histogram(ALL, 0.25)
    private.recall(ALL, RandomizedResponse(0.75))
    assert (private.ledger.total, private.reads.tolist()) == (1.0, [0] * 6)
    with pytest.raises(AlreadyAnswered):
        private.answer(ALL[:1], RandomizedResponse(0.0), priors(1), Untouched())


def refused_reads() -> list[Callable[[PrivateLabels], object]]:
    one, groups = RandomizedResponse(1.0), np.zeros(6, dtype=np.int64)
    return [
        lambda p: p.answer(ALL, RandomizedResponse(1.001), priors(), Untouched()),
        lambda p: p.answer(ALL, RandomizedResponse(math.inf), priors(), Untouched()),
        lambda p: p.histogram(ALL, groups, 1, 1.001, Untouched()),
        lambda p: p.histogram(ALL, groups, 1, math.nan, Untouched()),
        lambda p: p.histogram(ALL, groups, 1, 0.0, Untouched()),
        lambda p: p.histogram(ALL, groups + 1, 1, 1.0, Untouched()),
        lambda p: p.histogram(ALL, groups[:5], 1, 1.0, Untouched()),
        lambda p: p.answer(ALL, one, priors(5), Untouched()),
        lambda p: p.answer(ALL, one, np.ones((6, 4)), Untouched()),
        lambda p: p.answer(ALL, WithPrior(1.0), priors() * math.nan, Untouched()),
        lambda p: p.answer(ALL + 1, one, priors(), Untouched()),
        lambda p: p.answer(ALL - 1, one, priors(), Untouched()),
        lambda p: p.answer(np.zeros(6, dtype=np.int64), one, priors(), Untouched()),
        lambda p: p.answer(ALL.astype(float), one, priors(), Untouched()),
        lambda p: p.recall(ALL, RandomizedResponse(2.0)),
    ]


@pytest.mark.parametrize("number", range(len(refused_reads())))
def test_what_is_refused_costs_nothing_reads_nothing_and_says_the_same_of_all_labels(number: int) -> None:
    """Budgets, places, priors and groups are looked at before labels; the text does not depend on them."""
    texts = set()
    for labels in (TRUE, (TRUE + 1) % 3):
        private = PrivateLabels(labels, 3, 1.0)
        with pytest.raises((ValueError, LabelBudgetExhausted)) as caught:
            refused_reads()[number](private)
        texts.add(str(caught.value))
        assert (private.reads.sum(), private.ledger.total, private.ledger.rows()) == (0, 0.0, [])
    assert len(texts) == 1


def test_nobody_gets_at_labels_by_text_copy_or_pickle() -> None:
    """Pitfalls 6.12 and 6.13: neither in any text, nor in any file."""
    rare = np.array([7, 7, 7, 7])
    private = PrivateLabels(rare, 8, 1.0)
    assert "7" not in repr(private) + str(private)
    attempts: list[Callable[[PrivateLabels], object]] = [
        *(pickle.dumps, copy.copy, copy.deepcopy),
        *(lambda held: held.__reduce__(), lambda held: held.__getstate__()),
    ]
    for attempt in attempts:
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            attempt(private)
    for name, other in (("budget", 99.0), ("ledger", LabelLedger(4)), ("classes", 2)):
        with pytest.raises(AttributeError):
            setattr(private, name, other)  # or what was paid could be forgotten
    assert not hasattr(private, "__dict__")
    assert [name for name in dir(private) if not name.startswith("_")] == [
        *("answer", "budget", "classes", "estimates", "histogram", "ledger", "reads", "recall", "recall_histogram")
    ]
    free = PrivateLabels(rare, 8, math.inf)
    rare[:] = 0  # what is outside is not what is inside
    told = free.answer(ALL[:4], RandomizedResponse(math.inf), np.ones((4, 8)), SystemChance())
    assert told.labels.tolist() == [7, 7, 7, 7]


def test_a_forked_process_has_labels_that_it_cannot_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    private = PrivateLabels(TRUE, 3, 1.0)
    with monkeypatch.context() as child:
        child.setattr("os.getpid", lambda: -1)
        with pytest.raises(TypeError, match="in the process that read them"):
            private.answer(ALL, RandomizedResponse(1.0), priors(), Untouched())
    assert private.ledger.total == 0
    assert len(private.answer(ALL, RandomizedResponse(1.0), priors(), SystemChance())) == 6


def test_threads_answer_a_label_once_and_every_charge_counts() -> None:
    """A second thread that asks while the first is paying finds the label answered, or waits."""
    private, started = PrivateLabels(TRUE, 3, 8.0), Barrier(4)
    pay, told = private.ledger.charge, []

    def slowly(places: NDArray[np.int64], epsilon: float, mechanism: str) -> None:
        time.sleep(0.01)
        pay(places, epsilon, mechanism)

    private.ledger.charge = slowly  # type: ignore[method-assign]

    def ask() -> None:
        started.wait()
        with contextlib.suppress(AlreadyAnswered):
            told.append(private.answer(ALL, RandomizedResponse(1.0), priors(), SystemChance()))

    threads = [Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(told), private.reads.tolist(), private.ledger.total) == (1, [1] * 6, 1.0)


def test_a_label_that_is_no_class_is_refused_without_saying_which() -> None:
    """The classes are a public number, and nothing is made of the labels that there are."""
    texts = set()
    for labels in ([0, 3, 1], [0, 0, 88], [-5, 0, 0]):
        with pytest.raises(OutsideClasses) as caught:
            PrivateLabels(labels, 3, 1.0)
        texts.add("".join(traceback.format_exception_only(caught.value)))
    assert len(texts) == 1
    alike = PrivateLabels([0, 0, 0], 3, 1.0)
    assert alike.answer(ALL[:3], RandomizedResponse(1.0), priors(3), Seeded(1)).classes == 3
    for bad, why in (([0.5, 1.0], "whole"), ([[0]], "shape")):
        with pytest.raises(ValueError, match=why):
            PrivateLabels(bad, 3, 1.0)
    with pytest.raises(ValueError, match="epsilon"):
        PrivateLabels(TRUE, 3, -1.0)


# -- the ledger -------------------------------------------------------------------------------------------------------------

HALVES = (np.arange(50), np.arange(50, 100))
EVERY = np.arange(100)
SCENARIOS: dict[str, tuple[list[tuple[NDArray[np.int64], float]], float]] = {
    "stages (1,1) on disjoint parts": ([(HALVES[0], 1.0), (HALVES[1], 1.0)], 1.0),
    "stages (1,2) disjoint": ([(HALVES[0], 1.0), (HALVES[1], 2.0)], 2.0),
    "cluster histogram 0.05 on all, then 0.95 on all": ([(EVERY, 0.05), (EVERY, 0.95)], 1.0),
    "histogram 0.05 on the first part only": ([(HALVES[0], 0.05), (HALVES[0], 1.0), (HALVES[1], 1.0)], 1.05),
    "histogram on a disjoint hold-out": ([(HALVES[0], 1.0), (HALVES[1], 1.0)], 1.0),
    "the same label answered in both stages": ([(HALVES[0], 1.0), (np.array([3, 77]), 1.0)], 2.0),
    "fresh answers in each of five epochs": ([(EVERY, 0.5)] * 5, 2.5),
    "again after a crash, for some": ([(EVERY, 1.0), (np.array([42]), 1.0)], 2.0),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_total_is_the_largest_sum_of_a_label(scenario: str) -> None:
    """What several mechanisms cost together, row by row."""
    charges, total = SCENARIOS[scenario]
    ledger = LabelLedger(100)
    for places, epsilon in charges:
        ledger.charge(places, epsilon, "any")
    assert ledger.total == pytest.approx(total, abs=1e-12)
    assert ledger.user_total is None


def test_a_person_pays_for_all_their_labels() -> None:
    """m labels of epsilon each are m epsilon; and in no order of anything."""
    ledger = LabelLedger(6, users=["ann", "bob", "ann", "cem", "ann", "bob"])
    ledger.charge(np.arange(6), 0.5, "randomized response")
    assert (ledger.total, ledger.user_total) == (0.5, 1.5)
    ledger.charge(np.array([3]), 2.0, "histogram")
    assert (ledger.total, ledger.user_total) == (2.5, 2.5)
    assert ledger.statement().user_epsilon == 2.5
    ledger.charge(np.array([3]), math.inf, "told")
    assert (ledger.total, ledger.user_total) == (math.inf, math.inf)
    with pytest.raises(ValueError, match="6 labels, and users"):
        LabelLedger(6, users=[1, 2])


def test_chunks_are_one_row_and_a_second_round_another() -> None:
    ledger = LabelLedger(100)
    for part in (*HALVES, *HALVES):
        ledger.charge(part, 1.0, "any")
    assert (ledger.rows(), ledger.total) == ([("any", 1.0, 100), ("any", 1.0, 100)], 2.0)


def test_charges_that_cannot_be_are_refused() -> None:
    ledger = LabelLedger(3)
    for places, epsilon in (([0, 0], 1.0), ([3], 1.0), ([-1], 1.0), ([0.0], 1.0), ([[0]], 1.0), ([0], -1.0), ([0], math.nan)):
        with pytest.raises(ValueError, match=r"place|epsilon"):
            ledger.charge(np.array(places), epsilon, "any")
    assert (ledger.total, ledger.rows(), LabelLedger(0).total) == (0.0, [], 0.0)


def test_asking_twice_costs_the_sum_exactly() -> None:
    """By enumeration of both answers: the ledger's 2, and no more."""
    q = RandomizedResponse(1.0).matrix(np.ones((1, 10)))[0]
    both = np.einsum("ya,yb->yab", q, q).reshape(10, -1)
    assert np.log(both.max(axis=0) / both.min(axis=0)).max() == pytest.approx(2.0)


# -- the statement -----------------------------------------------------------------------------------------------------------


def test_a_statement_says_what_it_assumes_and_is_json() -> None:
    private = PrivateLabels(TRUE, 3, 1.0, users=[0, 0, 1, 1, 2, 2])
    private.answer(ALL, RandomizedResponse(1.0), priors(), SystemChance())
    statement = private.ledger.statement(["a test"])
    told = statement.to_json()
    assert (told["unit"], told["neighbours"], told["epsilon"], told["delta"], told["user_epsilon"]) == (
        *("label", "replace", 1.0),
        *(0.0, 2.0),
    )
    assert told["mechanisms"] == ["randomized response, epsilon 1, read 6 labels"]
    assert told["assumptions"][-1] == "a test"
    text = " ".join(told["assumptions"])
    assert all(
        word in text for word in ("features", "number", "order", "classes", "public", "priors", "operating system", "metrics")
    )
    assert dict(statement.rows())["epsilon"] == "1 (pure)"
    assert dict(LabelStatement(1.0, 1e-5).rows())["epsilon"] == "1 (at delta = 1e-05)"
    assert LabelStatement(math.inf).to_json()["epsilon"] is None
    assert dict(LabelStatement(math.inf).rows())["epsilon"] == "infinite: no privacy (pure)"
    for epsilon, delta, user_epsilon in ((-1.0, 0.0, None), (math.nan, 0.0, None), (1.0, 1.0, None), (2.0, 0.0, 1.0)):
        with pytest.raises(ValueError, match=r"epsilon|delta"):
            LabelStatement(epsilon, delta, user_epsilon=user_epsilon)


def test_a_statement_about_labels_is_never_added_to_another() -> None:
    label = LabelStatement(1.0)
    device = PrivacyStatement(Unit.DEVICE, Neighbours.ZERO_OUT, Rho(1.0), ())
    disguised = PrivacyStatement(Unit.LABEL, Neighbours.REPLACE, Rho(1.0), ())
    for several in ([label, device], [label], [label, label], [disguised, label]):
        with pytest.raises(ValueError, match=r"added"):
            compose(several)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        label + device  # type: ignore[operator]


# -- histograms --------------------------------------------------------------------------------------------------------------


def test_noise_is_discrete_laplace_of_half_of_epsilon() -> None:
    """Its exact pmf: chi-square of 5000 draws, fixed seed; and its known values."""
    assert laplace_pmf(np.array([0]), 0.025)[0] == pytest.approx(0.012499349, abs=1e-9)
    laplace = DiscreteLaplace(Fraction(1, 2), Seeded(1))  # of epsilon = 1
    drawn = np.array([laplace.draw() for _ in range(5_000)])
    inside = np.arange(-8, 9)
    expected = laplace_pmf(inside, 0.5) * len(drawn)
    observed = [(drawn == z).sum() for z in inside]
    rest = len(drawn) - expected.sum()
    assert chisquare([*observed, len(drawn) - sum(observed)], [*expected, rest]).pvalue > 1e-6


def test_histograms_count_what_is_asked_with_noise_of_their_epsilon() -> None:
    """The standard deviation at 0.05 is 56.567; 1000 cells, five standard errors of it, fixed seed."""
    noise = noisy_histogram(np.zeros((100, 10), dtype=np.int64), 0.05, Seeded(2))
    assert noise.std() == pytest.approx(56.567, abs=5 * 56.567 * math.sqrt(5 / (4 * 1000)))
    private = PrivateLabels(TRUE, 3, math.inf)
    counts = private.histogram(np.array([5, 0, 2, 3]), np.array([1, 0, 1, 0]), 2, math.inf, Untouched())
    assert counts.tolist() == [[0, 0, 2], [0, 2, 0]]
    assert noisy_histogram(np.array([FURTHEST + 5]), 100.0, Seeded(1))[0] == FURTHEST
