"""Per-bit randomized response, one-hot Laplace, blocks and exact tables: private in whole numbers, and sampled as they say."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chisquare

from fedrho.privacy.labels.block import BlockRR, block_matrix
from fedrho.privacy.labels.chance import SystemChance
from fedrho.privacy.labels.one_hot import GRID, OneHotLaplace, coordinate_table
from fedrho.privacy.labels.per_bit import PerBit, keep_probability
from fedrho.privacy.labels.randomizers import OutsideClasses, Randomizer
from fedrho.privacy.labels.tables import ExactTable, exact_table
from fedrho.privacy.labels.thresholds import WHOLE, keep_threshold
from tests.privacy.labels.chances import Seeded, Untouched

EPSILONS = (0.0, 1e-300, 1e-17, 1e-12, 1e-6, 0.1, 1.0, 4.0, 17.0, 37.0, 40.0, 80.0, 1000.0)


def assert_ratios(table: ExactTable, epsilon: float) -> None:
    """Every column, in whole numbers against 100 digits; no weight is 0 beside one that is not."""
    assert set(table.weights.sum(axis=1).tolist()) == {table.total}
    with localcontext() as context:
        context.prec = 100
        growth = Decimal(epsilon).exp()
        for column in table.weights.T.tolist():
            assert max(column) <= growth * min(column), (max(column), min(column))


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_bits_and_coordinates_pay_half_of_epsilon_at_most(epsilon: float) -> None:
    keep = Fraction(keep_threshold(epsilon / 2), WHOLE)
    assert Fraction(1, 2) <= keep < 1
    with localcontext() as context:
        context.prec = 100
        odds = keep / (1 - keep)
        assert Decimal(odds.numerator) <= Decimal(odds.denominator) * Decimal(epsilon / 2).exp()
    assert_ratios(coordinate_table(epsilon), epsilon / 2)


def test_keep_probabilities_of_bits() -> None:
    """Values from 50-digit arithmetic."""
    told = [round(keep_probability(epsilon), 6) for epsilon in (0.5, 1.0, 2.0, 4.0)]
    assert told == [0.562177, 0.622459, 0.731059, 0.880797]


def test_posteriors_of_noisy_one_hot_labels() -> None:
    """Known values, for numbers that are not on the grid, and beyond its ends."""
    one = OneHotLaplace(1.0).told(np.array([[0.2, 1.4, -0.3]])).likelihoods[0]
    assert one / one.sum() == pytest.approx((0.247263309, 0.550294615, 0.202442075), abs=1e-9)
    two = OneHotLaplace(2.0).told(np.array([[0.9, 0.1, -2.0]])).likelihoods[0] * (0.5, 0.3, 0.2)
    assert two / two.sum() == pytest.approx((0.842277289, 0.102031711, 0.055690999), abs=1e-9)


def test_a_coordinate_is_discrete_laplace_with_its_ends_cut() -> None:
    """The likelihood ratio at step z of the grid is exp(a (2 z - 1024)), a = epsilon / 2 / 1024, at the ends too."""
    zero, one = coordinate_table(1.0).matrix
    assert np.log(one / zero) == pytest.approx(0.5 * (2 * np.arange(GRID + 1) / GRID - 1), abs=1e-9)
    a = 0.5 / GRID
    assert zero[1:-1] == pytest.approx(math.tanh(a / 2) * np.exp(-a * np.arange(1, GRID)), rel=1e-9)


def test_likelihoods_of_answers_are_those_of_their_channel() -> None:
    """Per bit: in proportion to the column of the matrix that the bits name. One-hot: the product of coordinates, likewise."""
    labels = np.arange(40) % 3
    priors = np.ones((40, 3))
    bits = PerBit(1.0).bits(labels, priors, Seeded(1))
    columns = PerBit(1.0).matrix(priors)[0][:, bits @ (1, 2, 4)].T
    told = PerBit(1.0).told(bits).likelihoods
    assert np.allclose(told / told.sum(axis=1, keepdims=True), columns / columns.sum(axis=1, keepdims=True))
    steps = OneHotLaplace(1.0).coordinates(labels, priors, Seeded(2))
    zero, one = np.log(coordinate_table(1.0).matrix[:, np.rint(steps * GRID).astype(int)])
    joint = np.exp(zero.sum(axis=1, keepdims=True) - zero + one)
    assert np.allclose(OneHotLaplace(1.0).told(steps).likelihoods, joint / joint.max(axis=1, keepdims=True))


def test_the_largest_coordinate_is_right_as_often_as_the_article_lets_expect() -> None:
    """0.16367 of K = 10 at epsilon 1 and 0.25734 at 2; five standard errors, fixed seeds."""
    labels, priors = np.arange(40_000) % 10, np.ones((40_000, 10))
    for epsilon, expected in ((1.0, 0.16367), (2.0, 0.25734)):
        right = (OneHotLaplace(epsilon).answer(labels, priors, Seeded(1)).labels == labels).mean()
        assert right == pytest.approx(expected, abs=5 * math.sqrt(expected / 40_000))


def test_bits_are_sampled_as_the_matrix_says() -> None:
    """Chi-square over all 8 outputs, with a fixed seed; the matrix itself is stochastic and exactly epsilon."""
    q = PerBit(1.5).matrix(np.ones((1, 3)))[0]
    assert np.allclose(q.sum(axis=1), 1.0)
    assert np.log(q.max(axis=0) / q.min(axis=0)).max() == pytest.approx(1.5)
    bits = PerBit(1.5).bits(np.full(50_000, 1), np.ones((50_000, 3)), Seeded(4))
    assert chisquare(np.bincount(bits @ (1, 2, 4), minlength=8), 50_000 * q[1]).pvalue > 1e-6
    with pytest.raises(ValueError, match="14 classes"):
        PerBit(1.0).matrix(np.ones((1, 15)))


def test_infinite_epsilons_tell_the_label() -> None:
    labels = np.arange(30) % 3
    for randomizer in (PerBit(math.inf), OneHotLaplace(math.inf)):
        told = randomizer.answer(labels, np.ones((30, 3)), SystemChance())
        assert np.array_equal(told.likelihoods, np.eye(3)[labels])
        assert np.array_equal(told.labels, labels)


def test_where_nothing_is_told_no_class_is_preferred() -> None:
    told = PerBit(1.0).told(np.zeros((3000, 3), dtype=bool))
    assert np.bincount(told.labels) == pytest.approx([1000, 1000, 1000], abs=100)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 20.0, 100.0])
def test_blocks_are_stochastic_and_exactly_epsilon(epsilon: float) -> None:
    blocks: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((0, 1), ()), ((0, 1, 2), (1,)), ((0, 1, 2), (0, 1, 2)), ((3,), ())]
    for frequent, shared in blocks:
        q = block_matrix(epsilon, frequent, shared, 6)
        assert np.allclose(q.sum(axis=1), 1.0)
        assert np.log(q.max(axis=0) / q.min(axis=0)).max() == pytest.approx(epsilon)
        randomizer = BlockRR(epsilon, frequent, shared)
        assert_ratios(randomizer.table(6), epsilon)
        assert np.allclose(randomizer.matrix(np.ones((1, 6)))[0], q, atol=1e-12)


def test_blocks_that_cannot_be_are_refused() -> None:
    impossible: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ()), ((0, 0), ()), ((0,), (1,))]
    for frequent, shared in impossible:
        with pytest.raises(ValueError, match="frequent"):
            BlockRR(1.0, frequent, shared)
    for alone in ((0, 1, 2), (5,), (-1,)):
        with pytest.raises(ValueError, match="some of the 3"):
            BlockRR(1.0, alone).answer(np.array([0]), np.ones((1, 3)), Untouched())
    for epsilon in (0.0, 1e-17, math.inf, -1.0, math.nan):
        with pytest.raises(ValueError, match="epsilon"):
            BlockRR(epsilon, (0,))


def test_tables_mend_what_a_solver_leaves_and_refuse_what_is_far_off() -> None:
    """A zero under one label alone would be an infinite epsilon; a matrix of another epsilon is no rounding error."""
    almost = np.array([[0.75, 0.25 - 1e-9, 1e-9], [0.25, 0.75, 0.0]])
    table = exact_table(almost, math.log(3))
    assert_ratios(table, math.log(3))
    assert np.allclose(table.matrix, almost, atol=1e-8)
    assert np.array_equal(*exact_table(almost, 0.0).weights)
    for bad in (np.array([[0.5, 0.6], [0.5, 0.5]]), np.array([[math.nan, 1.0]]), np.array([[-0.5, 1.5]])):
        with pytest.raises(ValueError, match="add up to 1"):
            exact_table(bad, 1.0)
    with pytest.raises(ValueError, match="far from"):
        exact_table(np.array([[0.9, 0.1], [0.1, 0.9]]), 0.01)
    for classes in (3, 4, 5, 8, 64):  # sums that are too large for 64 bits
        with pytest.raises(ValueError, match="far from"):
            exact_table(np.eye(classes), 0.7)


@pytest.mark.parametrize("randomizer", [PerBit(1.0), OneHotLaplace(1.0), BlockRR(1.0, (0,))])
def test_contract_of_randomizers(randomizer: Randomizer) -> None:
    """Labels outside are refused before a word is drawn; how many are drawn, and other answers, do not depend on a label."""
    labels = np.arange(60) % 3
    for bad in (np.where(labels == 1, 3, labels), labels - 1, labels.astype(float)):
        with pytest.raises(OutsideClasses):
            randomizer.answer(bad, np.ones((60, 3)), Untouched())
    with pytest.raises(ValueError, match="shape"):
        randomizer.answer(labels, np.ones(60), Untouched())
    other = labels.copy()
    other[7] = (other[7] + 1) % 3
    one, two = Seeded(9), Seeded(9)
    first, second = randomizer.answer(labels, np.ones((60, 3)), one), randomizer.answer(other, np.ones((60, 3)), two)
    assert one.drawn == two.drawn
    assert set(np.flatnonzero((first.likelihoods != second.likelihoods).any(axis=1))) <= {7}
