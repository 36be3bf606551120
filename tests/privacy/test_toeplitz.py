"""Toeplitz series against dense matrices, and their sensitivity against every allowed set of steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrho.privacy.participation import Participation
from fedrho.privacy.toeplitz import (
    error_weights,
    inverse_series,
    prefix_variances,
    square_root_coefficients,
    toeplitz_sensitivity,
)
from tests.privacy import dense_toeplitz
from tests.privacy.dense import Matrix

SINGLE = Participation.single()
PARTICIPATIONS = st.builds(Participation, st.integers(1, 5), st.integers(1, 6), st.booleans())
COEFFICIENTS = st.lists(st.floats(-1.25, 1.25, width=16), max_size=6).map(lambda tail: [1.0, *tail])


def gram(coefficients: list[float], steps: int) -> Matrix:
    matrix = dense_toeplitz.strategy(coefficients, steps)
    return np.asarray(matrix.T @ matrix)


def test_the_square_root_squared_is_the_prefix_sum() -> None:
    root = square_root_coefficients(300)
    assert np.convolve(root, root)[:300] == pytest.approx(np.ones(300), rel=1e-13)
    assert root[:6].tolist() == [math.comb(2 * j, j) / 4**j for j in range(6)]
    assert [square_root_coefficients(count).size for count in (1, 2)] == [1, 2]


@settings(max_examples=60, deadline=None)
@given(COEFFICIENTS, st.integers(1, 12))
def test_inverse_and_prefix_errors_are_those_of_the_dense_matrix(coefficients: list[float], steps: int) -> None:
    matrix = dense_toeplitz.strategy(coefficients, steps)
    inverse = inverse_series(coefficients, steps)
    assert dense_toeplitz.strategy(inverse.tolist(), steps) @ matrix == pytest.approx(np.eye(steps), abs=1e-6)
    assert prefix_variances(inverse) == pytest.approx(dense_toeplitz.prefix_errors(matrix), rel=1e-9)


def test_the_two_errors_are_the_sum_and_the_last_of_the_prefix_variances() -> None:
    inverse = inverse_series([1.0, 0.4, 0.1], 20)
    variances, prefixes = prefix_variances(inverse), np.cumsum(inverse)
    assert error_weights(20, "rmse") @ prefixes**2 == pytest.approx(variances.sum())
    assert error_weights(20, "max") @ prefixes**2 == pytest.approx(variances.max())


@settings(max_examples=150, deadline=None)
@given(COEFFICIENTS, st.integers(1, 10), PARTICIPATIONS)
def test_sensitivity_is_never_below_the_worst_client_and_equal_where_it_says_so(
    coefficients: list[float], steps: int, participation: Participation
) -> None:
    products, claimed = gram(coefficients, steps), toeplitz_sensitivity(coefficients, steps, participation)
    truth = dense_toeplitz.worst_signs(products, participation)
    assert claimed.squared >= dense_toeplitz.worst_same_direction(np.abs(products), participation) * (1 - 1e-12)
    if claimed.exact:
        assert claimed.squared == pytest.approx(truth, rel=1e-11)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=11), st.integers(1, 11), PARTICIPATIONS)
def test_falling_coefficients_have_an_exact_sensitivity(tail: list[float], steps: int, participation: Participation) -> None:
    coefficients = sorted([1.0, *tail], reverse=True)
    claimed = toeplitz_sensitivity(coefficients, steps, participation)
    assert claimed.exact
    worst = dense_toeplitz.worst_same_direction(gram(coefficients, steps), participation)
    assert claimed.squared == pytest.approx(worst, rel=1e-11)


def test_few_bands_have_an_exact_sensitivity_with_any_signs() -> None:
    coefficients = [1.0, -2.0, 0.0, 3.0]
    for steps in range(1, 13):
        claimed = toeplitz_sensitivity(coefficients, steps, Participation(3, 4))
        assert claimed.exact
        assert claimed.squared == dense_toeplitz.worst_signs(gram(coefficients, steps), Participation(3, 4))


def test_the_formula_is_not_used_where_it_is_false() -> None:
    """c = (1, .1, .1, .9): the formula says 6.25, the worst set of steps is 9.09."""
    coefficients, participation = [1.0, 0.1, 0.1, 0.9], Participation(3, 2)
    truth = dense_toeplitz.worst_same_direction(gram(coefficients, 12), participation)
    assert truth == pytest.approx(9.09)
    claimed = toeplitz_sensitivity(coefficients, 12, participation)
    assert not claimed.exact
    assert claimed.squared >= truth


def test_cyclic_participation_costs_the_same_where_coefficients_fall() -> None:
    coefficients = square_root_coefficients(12).tolist()
    for cyclic in (False, True):
        participation = Participation(3, 3, cyclic)
        worst = dense_toeplitz.worst_same_direction(gram(coefficients, 12), participation)
        assert toeplitz_sensitivity(coefficients, 12, participation).squared == pytest.approx(worst, rel=1e-11)


def test_sensitivity_grows_with_steps_and_participations_and_falls_with_separation() -> None:
    root = square_root_coefficients(400)
    by_steps = [toeplitz_sensitivity(root, steps, Participation(6, 30)).squared for steps in range(0, 400, 7)]
    by_times = [toeplitz_sensitivity(root, 400, Participation(times, 30)).squared for times in range(1, 20)]
    by_separation = [toeplitz_sensitivity(root, 400, Participation(6, apart)).squared for apart in range(1, 400)]
    assert by_steps[0] == 0.0
    assert by_steps == sorted(by_steps)
    assert by_times == sorted(by_times)
    assert by_separation == sorted(by_separation, reverse=True)


@pytest.mark.parametrize(("times", "separation"), [(1, 1), (2, 300), (3, 7), (7, 64), (8, 64), (1000, 1), (600, 3)])
def test_long_sums_of_columns_equal_the_plain_double_loop(times: int, separation: int) -> None:
    root = square_root_coefficients(500)
    plain = np.zeros(500)
    for j in range(times):
        if j * separation < 500:
            plain[j * separation :] += root[: 500 - j * separation]
    squared = toeplitz_sensitivity(root, 500, Participation(times, separation)).squared
    assert squared == pytest.approx(float(plain @ plain), rel=1e-11)
    assert squared >= math.fsum(plain**2)


def test_what_can_be_summed_exactly_is_not_rounded_up() -> None:
    assert toeplitz_sensitivity([1.0], 1000, Participation(7, 1)).squared == 7
    assert toeplitz_sensitivity([1.0, 0.5, 0.25], 1000, Participation(7, 3)).squared == 7 * 1.3125
    assert toeplitz_sensitivity([1.0, 0.5], 1000, Participation(1000, 1)).squared == 1 + 999 * 2.25
    assert toeplitz_sensitivity([1.0, 0.1], 2, SINGLE).squared > 1.01
    assert toeplitz_sensitivity([1.0] * 300, 300, Participation(300)).squared > sum(t * t for t in range(301))


@pytest.mark.parametrize("coefficients", [[], [0.0], [0.0, 1.0], [-1.0], [1.0, math.nan], [1.0, math.inf]])
def test_what_is_no_strategy_is_refused(coefficients: list[float]) -> None:
    with pytest.raises(ValueError, match="finite coefficients"):
        toeplitz_sensitivity(coefficients, 3, SINGLE)
