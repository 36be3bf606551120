"""Intervals cover the truth as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom, nct

from fedrho.privacy.auditing.intervals import Interval, auc_ends, auc_interval, separation_interval, share_interval

RUNS = 2000


@pytest.fixture(scope="module", params=[0.0, 0.7, 2.3])
def samples(request: pytest.FixtureRequest) -> tuple[float, np.ndarray, np.ndarray]:
    """A separation, and scores of 200 included and 220 excluded canaries in RUNS runs."""
    random = np.random.Generator(np.random.PCG64(21))
    return request.param, request.param + random.standard_normal((RUNS, 200)), random.standard_normal((RUNS, 220))


def missed(intervals: list[Interval], truth: float) -> tuple[int, int]:
    """How often the truth lies below the low end, and above the high end."""
    return sum(truth < one.low for one in intervals), sum(truth > one.high for one in intervals)


def within_binomial(count: int, miss: float) -> bool:
    """Five deviations of Binomial(RUNS, miss), and a tenth for the normal approximations."""
    return abs(count - RUNS * miss) <= 5 * math.sqrt(RUNS * miss) + 0.1 * RUNS * miss


def test_separation_is_missed_on_either_side_as_often_as_said(samples: tuple[float, np.ndarray, np.ndarray]) -> None:
    truth, included, excluded = samples
    counts = missed([separation_interval(*pair, 0.05) for pair in zip(included, excluded, strict=True)], truth)
    assert all(within_binomial(count, 0.05) for count in counts), counts


def test_auc_is_missed_no_more_often_than_said(samples: tuple[float, np.ndarray, np.ndarray]) -> None:
    """Hanley and McNeil's variance is on the safe side for Gaussian scores, so only too many are wrong."""
    truth, included, excluded = samples
    counts = missed(
        [auc_interval(*pair, 0.05) for pair in zip(included, excluded, strict=True)], float(ndtr(truth / math.sqrt(2)))
    )
    assert all(count <= RUNS * 0.05 + 5 * math.sqrt(RUNS * 0.05) for count in counts), counts


@pytest.mark.parametrize("miss", [0.025, 2.5e-5])
@pytest.mark.parametrize("distance", [0.0, 0.7, 2.3, 20.0])
def test_ends_of_the_separation_are_those_of_the_noncentral_t(distance: float, miss: float) -> None:
    """A difference of means of exactly `distance` between samples of variance 1; far out the ends are a little too cautious."""
    half = np.concatenate([np.ones(250), -np.ones(250)]) * math.sqrt(998 / 1000)
    found = separation_interval(half + distance, half, miss)
    scale, tolerance = math.sqrt(1 / 500 + 1 / 500), 0.1 if miss > 0.01 else 0.3
    assert found.estimate == pytest.approx(distance)
    assert nct.sf(distance / scale, 998, found.low / scale) == pytest.approx(miss, rel=tolerance)
    assert nct.cdf(distance / scale, 998, found.high / scale) == pytest.approx(miss, rel=tolerance)


def test_auc_counts_pairs_and_ties_half() -> None:
    included, excluded = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])
    pairs = np.mean([(a > b) + 0.5 * (a == b) for a in included for b in excluded])
    assert auc_interval(included, excluded, 0.05).estimate == pytest.approx(pairs)


def test_scores_that_separate_completely_still_leave_doubt() -> None:
    above = auc_interval(np.arange(5, 10.0), np.arange(5.0), 0.025)
    assert above.estimate == above.high == 1.0
    assert 0.5 < above.low < 0.95
    assert auc_ends(0.0, 5, 5, 0.025).low == 0.0
    assert auc_ends(1.0, 500, 500, 0.025).low > above.low


def test_identical_scores_of_either_kind_are_infinitely_far_apart_rather_than_an_error() -> None:
    found = separation_interval(np.ones(9), np.zeros(9), 0.05)
    assert found.low > 1e6
    assert np.isfinite(found.high)


@pytest.mark.parametrize(("right", "guesses"), [(0, 10), (7, 10), (10, 10), (430, 1000)])
def test_ends_of_a_share_are_where_the_binomial_tail_is_the_miss(right: int, guesses: int) -> None:
    found = share_interval(right, guesses, 0.01)
    assert found.low == 0.0 if right == 0 else binom.sf(right - 1, guesses, found.low) == pytest.approx(0.01)
    assert found.high == 1.0 if right == guesses else binom.cdf(right, guesses, found.high) == pytest.approx(0.01)


def test_scores_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        separation_interval(np.array([1.0, math.nan]), np.zeros(2), 0.05)
    with pytest.raises(ValueError, match="two scores"):
        auc_interval(np.zeros(1), np.zeros(5), 0.05)
    with pytest.raises(ValueError, match="miss"):
        auc_interval(np.zeros(5), np.zeros(5), 0.5)
