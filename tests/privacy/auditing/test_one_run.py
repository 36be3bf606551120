"""The one-run bound against exact tails, the paper's printed numbers, and runs whose epsilon is known."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from fedrho.privacy.auditing.one_run import epsilon_lower_bound, p_value, planned_guesses


def exact_p_value(canaries: int, guesses: int, right: int, odds: int, delta: Fraction) -> Fraction:
    """The corollary in fractions; exp(epsilon) = odds."""
    chance = Fraction(odds, 1 + odds)
    mass = [math.comb(guesses, w) * chance**w * (1 - chance) ** (guesses - w) for w in range(guesses + 1)]
    steepest = max((sum(mass[right - i : right], Fraction(0)) / i for i in range(1, right + 1)), default=Fraction(0))
    return min(Fraction(1), sum(mass[right:], Fraction(0)) + 2 * canaries * delta * steepest)


@pytest.mark.parametrize(("canaries", "guesses", "right"), [(10, 10, 10), (30, 12, 9), (40, 20, 20), (25, 25, 0), (9, 5, 1)])
def test_p_value_is_the_corollary_computed_in_fractions(canaries: int, guesses: int, right: int) -> None:
    for odds in (1, 2, 7):
        for delta in (Fraction(0), Fraction(1, 1000)):
            expected = float(exact_p_value(canaries, guesses, right, odds, delta))
            assert p_value(canaries, guesses, right, math.log(odds), float(delta)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "delta", "published"),
    [(1000, 100, 75, 1e-4, 0.673), (100_000, 1510, 1439, 1e-5, 2.675)],
    ids=["appendix D", "section 7"],
)
def test_bound_is_the_one_that_the_paper_prints(canaries: int, guesses: int, right: int, delta: float, published: float) -> None:
    """To one unit of the last digit: one of the two is printed rounded, the other cut off."""
    assert epsilon_lower_bound(canaries, guesses, right, delta) == pytest.approx(published, abs=1e-3)


def test_without_delta_the_bound_inverts_the_binomial_tail() -> None:
    """r right of r: q**r = 1 - confidence."""
    chance = 0.05 ** (1 / 50)
    assert epsilon_lower_bound(50, 50, 50, 0.0) == pytest.approx(math.log(chance / (1 - chance)), rel=1e-6)


def test_bound_grows_with_right_guesses_and_falls_with_delta_confidence_and_canaries() -> None:
    bounds = [epsilon_lower_bound(200, 100, right, 1e-6) for right in range(0, 101, 5)]
    assert bounds == sorted(bounds)
    assert bounds[10] == 0.0 < bounds[-1]
    assert epsilon_lower_bound(200, 100, 90, 1e-4) < epsilon_lower_bound(200, 100, 90, 1e-6)
    assert epsilon_lower_bound(200, 100, 90, 1e-6, 0.99) < epsilon_lower_bound(200, 100, 90, 1e-6, 0.95)
    assert epsilon_lower_bound(9000, 100, 90, 1e-6) < epsilon_lower_bound(200, 100, 90, 1e-6)


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_bound_of_correct_randomized_response_exceeds_the_truth_in_no_more_runs_than_allowed(share: float) -> None:
    """Worst case of pure epsilon: each guess is right with e**eps / (1 + e**eps).

    2,000 runs at 95 %: the number above the truth is at most Binomial(2000, .05), mean 100, deviation 9.75; 149 are five more
    deviations, which one sound bound in three million exceeds. Near 5 % it should be too, or the bound would be slack.
    """
    epsilon, canaries, runs = 1.5, 300, 2000
    guesses = round(canaries * share)
    random = np.random.Generator(np.random.PCG64(11))
    right = random.binomial(guesses, 1 / (1 + math.exp(-epsilon)), runs)
    bounds = {int(v): epsilon_lower_bound(canaries, guesses, int(v), 0.0) for v in set(right.tolist())}
    above = sum(bounds[int(v)] > epsilon for v in right)
    assert 40 <= above <= 149


def test_planned_guesses_are_even_feasible_and_better_than_guessing_all() -> None:
    for separation in (0.7, 1.3, 2.3, 12.0):
        planned = planned_guesses(separation, 1000, 1e-6)
        assert planned % 2 == 0
        assert 2 <= planned <= 1000
    assert planned_guesses(0.7, 1000, 1e-6) < planned_guesses(2.3, 1000, 1e-6) < 1000
    assert planned_guesses(50.0, 1000, 1e-6) == 1000


def test_numbers_that_cannot_be_counts_or_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="right <= guesses <= canaries"):
        epsilon_lower_bound(10, 11, 5, 0.0)
    with pytest.raises(ValueError, match="right <= guesses <= canaries"):
        p_value(10, 5, 6, 1.0, 0.0)
    with pytest.raises(ValueError, match="delta"):
        epsilon_lower_bound(10, 5, 5, 1.0)
    with pytest.raises(ValueError, match="confidence"):
        epsilon_lower_bound(10, 5, 5, 0.0, 1.0)
    with pytest.raises(ValueError, match="epsilon"):
        p_value(10, 5, 5, math.nan, 0.0)
