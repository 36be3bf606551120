"""The dynamic program against every admissible set there is, and against closed forms and published anchors."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrho.privacy.participation import Participation
from fedrho.privacy.tree_sensitivity import (
    bound_by_levels,
    exact_sensitivity_squared,
    is_exact,
    tree_sensitivity_squared,
)
from tests.privacy.dense import admissible_sets, node_by_leaf


def sensitivity(steps: int, times: int, separation: int = 1) -> int:
    return tree_sensitivity_squared(steps, Participation(times, separation))


@pytest.mark.parametrize(
    ("steps", "times", "separation", "expected"),
    [
        (24, 8, 3, 88),  # greedy packing gives less; unit test of TF Privacy
        (2000, 6, 314, 79),  # es-ES model of the DP-FTRL blog post
        (16, 2, 8, 12),
        (9, 3, 4, 11),
    ],
)
def test_published_anchors(steps: int, times: int, separation: int, expected: int) -> None:
    assert sensitivity(steps, times, separation) == expected


def test_a_gap_is_not_a_difference() -> None:
    assert (sensitivity(16, 2, 8), sensitivity(16, 2, 7)) == (12, 14)
    assert sensitivity(9, 3, 3) != sensitivity(9, 3, 4)
    assert sensitivity(2000, 7, 281) > 79


@pytest.mark.parametrize("steps", range(1, 15))
def test_every_small_case_equals_exhaustive_search(steps: int) -> None:
    """Sets are bit masks: all 2**n of them at once, for every k and b."""
    masks = np.arange(2**steps)
    chosen = (masks[:, None] >> np.arange(steps)) & 1
    times = chosen.sum(axis=1)
    squares = ((chosen @ node_by_leaf(steps).T.astype(np.int64)) ** 2).sum(axis=1)
    separated = np.ones(len(masks), dtype=bool)
    for separation in range(1, steps + 2):
        separated &= masks & masks >> (separation - 1) == 0 if separation > 1 else True
        for most in range(1, steps + 2):
            assert sensitivity(steps, most, separation) == squares[separated & (times <= most)].max(), (most, separation)


@pytest.mark.parametrize(
    ("steps", "times", "separation"), [(31, 3, 1), (32, 3, 5), (37, 4, 7), (45, 6, 8), (48, 2, 3), (24, 8, 3)]
)
def test_larger_cases_equal_the_norm_of_the_dense_strategy_over_all_sets(steps: int, times: int, separation: int) -> None:
    """The largest |C u|**2 with the 0/1 node-by-leaf matrix C and u the indicator of an admissible set."""
    strategy = node_by_leaf(steps)
    largest = max(
        float(np.sum(strategy[:, list(chosen)].sum(axis=1) ** 2)) for chosen in admissible_sets(steps, times, separation)
    )
    assert sensitivity(steps, times, separation) == largest


def test_no_other_directions_of_a_clients_vectors_cost_more() -> None:
    """Unit vectors that differ from step to step, also opposite ones, stay at or below the worst single direction."""
    random = np.random.Generator(np.random.PCG64(5))
    strategy = node_by_leaf(13)
    bound = sensitivity(13, 4, 3)
    sets = [chosen for chosen in admissible_sets(13, 4, 3) if chosen]
    for _ in range(2000):
        chosen = sets[random.integers(len(sets))]
        vectors = random.standard_normal((len(chosen), 3)) * [1, 0.2, 0.2]
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        assert np.sum((strategy[:, list(chosen)] @ vectors) ** 2) <= bound + 1e-9


@given(st.integers(1, 5000))
def test_one_participation_pays_for_the_nodes_above_one_leaf(steps: int) -> None:
    assert sensitivity(steps, 1) == math.floor(math.log2(steps)) + 1


@given(st.integers(1, 400))
def test_participation_in_every_step_pays_for_full_nodes(steps: int) -> None:
    expected = sum(2**d * (2 ** (d + 1) - 1) for d in range(9) if steps >> d & 1)
    assert sensitivity(steps, steps) == expected


@given(st.integers(2, 5000))
def test_two_participations_side_by_side(steps: int) -> None:
    assert sensitivity(steps, 2) == 2 + 4 * math.floor(math.log2(steps))


@pytest.mark.parametrize("height", range(1, 9))
def test_evenly_spread_participations_in_a_full_tree(height: int) -> None:
    steps = 2**height
    for j in range(height + 1):
        times = 2**j
        assert sensitivity(steps, times, steps // times) == times * (height - j + 2 * times - 1)


@given(st.integers(1, 80), st.integers(1, 8), st.integers(1, 30))
def test_more_steps_more_times_and_less_separation_never_cost_less(steps: int, times: int, separation: int) -> None:
    here = sensitivity(steps, times, separation)
    assert sensitivity(steps + 1, times, separation) >= here
    assert sensitivity(steps, times + 1, separation) >= here
    assert sensitivity(steps, times, separation + 1) <= here
    assert here <= times**2 * (math.floor(math.log2(steps)) + 1)


def test_a_separation_beyond_all_steps_leaves_one_participation() -> None:
    for steps, beyond in itertools.product((1, 5, 24), (0, 1, 10**9)):
        assert sensitivity(steps, 7, steps + beyond) == sensitivity(steps, 1)


@pytest.mark.parametrize("steps", [0, -1])
def test_nothing_released_costs_nothing(steps: int) -> None:
    assert sensitivity(steps, 3, 2) == 0


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 60))
def test_the_bound_by_levels_is_never_below_the_exact_value(steps: int, times: int, separation: int) -> None:
    participation = Participation(times, separation)
    assert exact_sensitivity_squared(steps, participation) <= bound_by_levels(steps, participation)


@pytest.mark.parametrize(("log_steps", "log_times"), [(4, 2), (8, 3), (10, 0), (11, 5)])
def test_the_bound_by_levels_is_exact_where_everything_is_a_power_of_two(log_steps: int, log_times: int) -> None:
    steps, times = 2**log_steps, 2**log_times
    participation = Participation(times, steps // times)
    assert bound_by_levels(steps, participation) == exact_sensitivity_squared(steps, participation)


@pytest.mark.parametrize(("steps", "times", "separation"), [(100_000, 100, 1000), (100_000, 100_000, 1), (4096, 3, 1300)])
def test_what_the_exact_program_cannot_afford_is_priced_by_the_bound(steps: int, times: int, separation: int) -> None:
    participation = Participation(times, separation)
    assert not is_exact(steps, participation)
    assert tree_sensitivity_squared(steps, participation) == bound_by_levels(steps, participation)


def test_the_price_does_not_fall_where_the_bound_takes_over() -> None:
    participation = Participation(40, 200)
    kinds = [is_exact(steps, participation) for steps in range(1, 3000, 50)]
    prices = [tree_sensitivity_squared(steps, participation) for steps in range(1, 3000, 50)]
    assert kinds == sorted(kinds, reverse=True)
    assert kinds[0]
    assert not kinds[-1]
    assert prices == sorted(prices)
