"""Randomized response with priors: optimal by linear program, private by enumeration, sampled as its matrix says."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext, localcontext
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.stats import chisquare

from fedrho.privacy.labels.chance import SystemChance
from fedrho.privacy.labels.one_hot import OneHotLaplace
from fedrho.privacy.labels.per_bit import PerBit
from fedrho.privacy.labels.randomizers import (
    OutsideClasses,
    RandomizedResponse,
    Randomizer,
    TopK,
    WithPrior,
    ordered,
    probability_correct,
    rightness,
)
from fedrho.privacy.labels.thresholds import WHOLE, truth_threshold
from tests.privacy.labels.chances import Seeded, Untouched, Written

Matrix = NDArray[np.float64]
EDGES = (0.0, 1e-300, 1e-17, 1e-6, 0.1, 1.0, 2.0, 8.0, 15.0, 17.0, 20.0, 37.0, 40.0, 45.0, 700.0, 1000.0, 1e300)
ROWS = (
    [0.5, 0.25, 0.15, 0.1],
    [0.25, 0.25, 0.25, 0.25],
    [0.4, 0.4, 0.1, 0.1],
    [1.0, 0.0, 0.0, 0.0],
    [0.5, 0.5, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.0],
    [-1.0, 2.0, 1.0, 0.0],
    [1e-320, 1e308, 1e308, 1e308],
)


def lp_optimum(p: Matrix, epsilon: float) -> float:
    """The best P[right] of any row-stochastic epsilon-DP matrix: Q[y, o] <= e Q[y', o] for every pair of labels."""
    k = len(p)
    constraints = []
    for y, other, o in product(range(k), range(k), range(k)):
        if y != other:
            row = np.zeros((k, k))
            row[y, o], row[other, o] = math.exp(-epsilon), -1.0
            constraints.append(row.ravel())
    sums = np.kron(np.eye(k), np.ones(k))
    solved = linprog(-np.diag(p).ravel(), A_ub=np.array(constraints), b_ub=np.zeros(len(constraints)), A_eq=sums, b_eq=np.ones(k))
    assert solved.success
    return float(-solved.fun)


def random_prior(generator: np.random.Generator, classes: int) -> Matrix:
    prior = generator.dirichlet(np.full(classes, generator.choice([0.1, 0.5, 1.0, 5.0])))
    return np.round(prior, 2) / np.round(prior, 2).sum() if generator.random() < 0.3 else prior  # with ties and zeros


def test_no_private_mechanism_is_right_more_often_than_rr_with_prior() -> None:
    """Theorem 3 against the linear program over all matrices."""
    generator = np.random.default_rng(7)
    for _ in range(60):
        classes, epsilon = int(generator.integers(2, 6)), float(generator.choice([0.0, 0.3, 1.0, 2.0, 5.0]))
        p = random_prior(generator, classes)
        right = probability_correct(WithPrior(epsilon).matrix(p[None]), p[None])[0]
        assert right == pytest.approx(lp_optimum(p, epsilon), abs=1e-7)


def test_the_best_size_is_that_of_all_sizes_and_the_off_by_one_of_public_code_is_not() -> None:
    """The reference code divides by 1 + (k - 2) exp(-epsilon): a uniform prior at a small epsilon becomes a constant there."""
    priors = np.full((1, 10), 0.1)
    wrong = np.cumsum(priors[0]) / (1.0 + (np.arange(10) - 1.0) * math.exp(-0.5))
    assert int(wrong.argmax()) + 1 == 1
    assert sizes_of(WithPrior(0.5), priors).tolist() == [10]
    p = np.array([[0.5, 0.25, 0.15, 0.1]])
    each = [probability_correct(TopK(1.0, k).matrix(p), p)[0] for k in range(1, 5)]
    assert int(np.argmax(each)) + 1 == 2 == sizes_of(WithPrior(1.0), p)[0]
    assert max(each) == pytest.approx(0.75 * math.e / (math.e + 1))


def sizes_of(randomizer: Randomizer, priors: Matrix) -> NDArray[np.int64]:
    return randomizer.answer(np.zeros(len(priors), dtype=np.int64), priors, SystemChance()).sizes


def test_facts_of_the_best_size() -> None:
    """F1 scale invariance, F2 the increment rule, F3 transition points and monotony in epsilon, F4 the adversary who knows p."""
    generator = np.random.default_rng(3)
    for _ in range(40):
        p = np.sort(generator.dirichlet(np.ones(6)))[None, ::-1]
        s = np.cumsum(p[0])
        enters = np.log(s[:-1] / p[0, 1:] - np.arange(1, 6) + 1)  # label j+1 enters above it
        assert (np.diff(enters) >= -1e-9).all()
        for epsilon in generator.uniform(0, 4, 4):
            k = sizes_of(WithPrior(epsilon), p)[0]
            assert k == sizes_of(WithPrior(epsilon), p * 1234.5)[0] == 1 + (epsilon > enters).sum()
            w = rightness(p, epsilon)[0]
            rises = p[0, 1:] * (math.exp(epsilon) + np.arange(1, 6) - 1) > s[:-1]
            assert ((np.diff(w) > 0) == rises).all()
            q = WithPrior(epsilon).matrix(p)[0]
            assert (p.T * q).max(axis=0).sum() == pytest.approx(w.max())


def test_the_worked_example_of_ln_9() -> None:
    """RR of ten classes keeps a label with one half, and with nine tenths where the prior leaves two."""
    epsilon = math.log(9)
    assert RandomizedResponse(epsilon).matrix(np.ones((1, 10)))[0, 3, 3] == pytest.approx(0.5, abs=1e-15)
    for prior in ([0.45, 0.45, *[0.0125] * 8], [0.60, 0.32, *[0.01] * 8]):
        q = WithPrior(epsilon).matrix([prior])[0]
        assert (q[0, 0], q[0, 1], q[5, 0]) == pytest.approx((0.9, 0.1, 0.5), abs=1e-15)


def sampler_chances(epsilon: float, k: int) -> tuple[Fraction, Fraction]:
    """What the sampler really does: the told truth, and any other of k."""
    truth = Fraction(truth_threshold(epsilon, k), WHOLE)
    return truth + (1 - truth) / k, (1 - truth) / k


@pytest.mark.parametrize("epsilon", EDGES)
def test_the_sampler_itself_never_exceeds_epsilon(epsilon: float) -> None:
    """In fractions against 100 digits; and no output is impossible under one label alone."""
    for k in (2, 3, 10, 1000):
        own, other = sampler_chances(epsilon, k)
        outside = Fraction(1, k)
        assert 0 < other <= outside <= own
        with localcontext() as context:
            context.prec = 100
            growth = Decimal(min(epsilon, 2000.0)).exp()
            assert Decimal(own.numerator) * other.denominator <= growth * own.denominator * other.numerator
        if epsilon <= 40:  # and it is no more private than it says, but for the rounding of one word
            assert float(own) == pytest.approx(1 / (1 + (k - 1) * math.exp(-epsilon)), abs=2.0**-52)
    assert getcontext().prec == 28


def test_coins_are_compared_with_the_threshold_and_others_are_drawn_without_bias() -> None:
    """The word before the threshold tells the truth, the threshold itself any label."""
    threshold = truth_threshold(1.0, 10)
    told = RandomizedResponse(1.0).answer(np.array([4, 4]), np.ones((2, 10)), Written(threshold - 1, threshold, 7, 17))
    assert told.labels.tolist() == [4, 7]
    rejected = 2**64 - 1  # the last of 2**64 = 6 mod 10 words more than a multiple of 10
    again = RandomizedResponse(1.0).answer(np.array([4]), np.ones((1, 10)), Written(threshold, rejected, 3))
    assert again.labels.tolist() == [3]


def losses(q: Matrix) -> Matrix:
    """The largest ln(Q[y, o] / Q[y', o]) of each matrix; a zero against more is infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.log(q.max(axis=1)) - np.log(q.min(axis=1))
    largest: Matrix = np.where(q.max(axis=1) == 0, 0.0, ratios).max(axis=1)
    return largest


@pytest.mark.parametrize("epsilon", EDGES)
def test_matrices_are_stochastic_and_as_private_as_they_say(epsilon: float) -> None:
    """Exactly epsilon where k is 2 or more, and 0 where k is 1."""
    rows = np.array(ROWS)
    for randomizer in (RandomizedResponse(epsilon), TopK(epsilon, 3), WithPrior(epsilon)):
        q = randomizer.matrix(rows)
        assert q.shape == (len(rows), 4, 4)
        assert np.allclose(q.sum(axis=2), 1.0, atol=1e-12)
        assert (losses(q) <= epsilon + 1e-9).all()
    several = sizes_of(WithPrior(epsilon), rows) >= 2
    assert np.allclose(losses(WithPrior(epsilon).matrix(rows)), np.where(several, min(epsilon, 700), 0.0))


def test_epsilon_0_and_infinity() -> None:
    """At 0 all rows are one; at infinity every answer is the label, even one that the prior excludes."""
    rows = np.array(ROWS)
    labels = np.arange(len(rows)) % 4
    assert np.allclose(RandomizedResponse(0.0).matrix(rows), 0.25)
    assert WithPrior(0.0).matrix(rows[:1])[0].tolist() == [[1.0, 0.0, 0.0, 0.0]] * 4
    assert sizes_of(WithPrior(0.0), rows)[1:3].tolist() == [4, 2]  # of equals the largest set
    told = WithPrior(math.inf).answer(labels, rows, SystemChance())
    assert told.labels.tolist() == labels.tolist()
    assert told.sizes.tolist() == [4] * len(rows)
    assert np.array_equal(WithPrior(math.inf).matrix(rows), np.broadcast_to(np.eye(4), (len(rows), 4, 4)))


def test_equals_at_the_cut_and_transitions_keep_the_largest_set() -> None:
    p = np.array([[0.75, 0.25]])
    assert sizes_of(WithPrior(math.log(3)), p).tolist() == [2]
    assert sizes_of(WithPrior(math.log(3) - 1e-9), p).tolist() == [1]
    for classes in range(2, 60):  # sums of 1/K are not those of 1/K in float64
        assert WithPrior(0.0).sizes(np.ones((1, classes))) == classes
    tied = np.array([[0.4, 0.2, 0.2, 0.2]])
    assert probability_correct(WithPrior(1.2).matrix(tied), tied)[0] == pytest.approx(rightness(tied, 1.2).max())


def test_priors_are_put_in_order_or_refused_before_labels_and_randomness() -> None:
    """Negative entries count as 0, zeros are uniform, scale and float32 do not matter; NaN and infinity raise."""
    q = WithPrior(1.0).matrix(np.array([[-3.0, 2.0, 2.0], [0.0, 1.0, 1.0], [0, 0, 0], [5, 5, 5]]))
    assert np.array_equal(q[0], q[1])
    assert np.array_equal(q[2], q[3])
    same = np.array([[0.25, 0.5, 0.125, 0.125]], dtype=np.float32)
    assert np.array_equal(WithPrior(1.0).matrix(same), WithPrior(1.0).matrix(same.astype(np.float64)))
    for bad in (math.nan, math.inf, -math.inf):
        texts = set()
        for label in range(3):
            with pytest.raises(ValueError, match=r"infinite|no number") as caught:
                WithPrior(1.0).answer(np.array([0, label]), np.array([[1.0, 1.0, 1.0], [bad, 0.5, 0.5]]), Untouched())
            texts.add(str(caught.value))
        assert len(texts) == 1
        for randomizer in (RandomizedResponse(1.0), PerBit(1.0), OneHotLaplace(1.0)):  # which use no prior, and are given one
            with pytest.raises(ValueError, match=r"infinite|no number"):
                randomizer.answer(np.array([0]), np.array([[bad, 0.5, 0.5]]), Untouched())
    with pytest.raises(ValueError, match="shape"):
        WithPrior(1.0).answer(np.array([0]), np.ones(3), Untouched())


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0.0, 1.0], [0], [[0], [1]]])
def test_labels_outside_are_refused_for_the_whole_batch_before_a_word_is_drawn(labels: list[float]) -> None:
    for randomizer in (RandomizedResponse(1.0), TopK(1.0, 2), WithPrior(1.0)):
        with pytest.raises(OutsideClasses) as caught:
            randomizer.answer(np.array(labels), np.ones((2, 3)), Untouched())
        assert "-1" not in str(caught.value)
        assert "3" not in str(caught.value).replace("0 and 2", "")


@pytest.mark.parametrize("epsilon", [-1.0, -1e-300, math.nan, -math.inf])
def test_epsilon_is_not_negative(epsilon: float) -> None:
    for make in (RandomizedResponse, WithPrior, lambda value: TopK(value, 1)):
        with pytest.raises(ValueError, match="epsilon"):
            make(epsilon)


def test_k_is_possible() -> None:
    for k in (0, 1.5, 2.0):
        with pytest.raises(ValueError, match="at least 1"):
            TopK(1.0, k)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most the number of classes, 3"):
        TopK(1.0, 4).answer(np.array([0]), np.ones((1, 3)), Untouched())


def test_one_class_is_a_constant_and_warns() -> None:
    for randomizer in (RandomizedResponse(1.0), TopK(1.0, 1), WithPrior(1.0)):
        with pytest.warns(UserWarning, match="one class alone"):
            told = randomizer.answer(np.array([0, 0]), np.ones((2, 1)), SystemChance())
        assert (told.labels.tolist(), told.likelihoods.tolist()) == ([0, 0], [[1.0], [1.0]])


def test_no_records_are_no_answers() -> None:
    for randomizer in (RandomizedResponse(1.0), TopK(1.0, 2), WithPrior(1.0)):
        assert len(randomizer.answer(np.array([], dtype=np.int64), np.ones((0, 3)), Untouched())) == 0


def test_what_is_drawn_does_not_depend_on_labels() -> None:
    """So that the answer to one label tells nothing of another's, and time tells nothing of any."""
    rows = np.random.default_rng(5).dirichlet(np.ones(4), 200)
    labels = np.random.default_rng(6).integers(0, 4, 200)
    other = labels.copy()
    other[17] = (other[17] + 1) % 4
    for randomizer in (RandomizedResponse(1.0), TopK(1.0, 2), WithPrior(1.0)):
        one, two = Seeded(1), Seeded(1)
        differ = randomizer.answer(labels, rows, one).labels != randomizer.answer(other, rows, two).labels
        assert one.drawn == two.drawn
        assert set(np.flatnonzero(differ)) <= {17}


def test_likelihoods_are_the_column_of_the_matrix() -> None:
    rows = np.random.default_rng(5).dirichlet(np.ones(4), 50)
    labels = np.random.default_rng(6).integers(0, 4, 50)
    for randomizer in (RandomizedResponse(1.0), TopK(1.0, 2), WithPrior(1.0), WithPrior(math.inf)):
        told = randomizer.answer(labels, rows, Seeded(2))
        columns = randomizer.matrix(rows)[np.arange(50), :, told.labels]
        assert np.allclose(told.likelihoods, columns, atol=1e-15)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("label", [0, 1, 2, 3])
def test_the_sampler_agrees_with_the_matrix(k: int, label: int) -> None:
    """Chi-square with a fixed seed; each of 16 fails by chance with 1e-6."""
    n, row = 40_000, np.array([[0.2, 0.4, 0.1, 0.3]])
    told = TopK(1.0, k).answer(np.full(n, label), np.repeat(row, n, axis=0), Seeded(10 * k + label))
    expected = TopK(1.0, k).matrix(row)[0, label]
    counts = np.bincount(told.labels, minlength=4)
    assert counts[expected == 0].sum() == 0
    if k > 1:
        assert chisquare(counts[expected > 0], n * expected[expected > 0]).pvalue > 1e-6


def test_ordering_takes_the_lower_index_first_among_equals() -> None:
    order, rank = ordered(np.array([[0.2, 0.4, 0.2, 0.2]]))
    assert order.tolist() == [[1, 0, 2, 3]]
    assert rank.tolist() == [[1, 0, 2, 3]]
