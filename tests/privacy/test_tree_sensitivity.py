"""The dynamic program against every admissible set there is, and against closed forms and published anchors."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrho.privacy import tree_sensitivity as module
from fedrho.privacy.mechanism import Sensitivity
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree_sensitivity import (
    Tree,
    Trees,
    bound_by_levels,
    bound_by_merging,
    cyclic_squares,
    exact_squares,
    forest_sensitivity,
    is_affordable,
    tree_sensitivity,
)
from tests.privacy.dense import admissible_sets, node_by_leaf, nodes_of_trees


def sensitivity(steps: int, times: int, separation: int = 1) -> float:
    return forest([Tree(steps)], times, separation)


def forest(trees: Sequence[Tree], times: int, separation: int = 1) -> float:
    found = forest_sensitivity(trees, Participation(times, separation))
    assert found.exact
    return found.squared


def largest_of_all_sets(trees: Sequence[Tree], times: int, separation: int, cyclic: bool = False) -> float:
    """|C u|**2 for every admissible set there is, u its indicator."""
    strategy = nodes_of_trees(trees)
    sets = list(admissible_sets(strategy.shape[1], times, separation))
    if cyclic:
        sets = [chosen for chosen in sets if len({step % separation for step in chosen}) <= 1]
    indicators = np.zeros((strategy.shape[1], len(sets)))
    for j, chosen in enumerate(sets):
        indicators[list(chosen), j] = 1
    return float(((strategy @ indicators) ** 2).sum(axis=0).max())


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


def test_forests_with_restarts_and_completion_equal_exhaustive_search() -> None:
    """600 random ones; the bounds hold for them too."""
    dice = random.Random(11)
    for _ in range(600):
        trees = tuple(Tree(dice.randint(1, 6), dice.random() < 0.5) for _ in range(dice.randint(1, 3)))
        times, separation = dice.randint(1, 5), dice.randint(1, 6)
        worst = largest_of_all_sets(trees, times, separation)
        assert forest(trees, times, separation) == worst, (trees, times, separation)
        assert bound_by_levels(trees, times, separation) >= worst
        assert bound_by_merging(trees, times, separation) >= worst


def test_published_anchors_of_schedules() -> None:
    assert forest([Tree(5, completed=True), Tree(5)], 2, 5) == 7
    assert forest([Tree(5), Tree(5)], 2, 5) == 6
    assert forest([Tree(2000)], 100, 100) == 425
    assert forest([*[Tree(2000, completed=True)] * 4, Tree(2000)], 100, 100) == 4129


def test_the_published_example_of_passes_in_one_order() -> None:
    """CIFAR-10 in `google-research/DP-FTRL`: 5 trees of 20 epochs of 100 steps. Gaps that may vary cost a single tree more."""
    epochs = Participation.epochs(100, 100)
    assert forest_sensitivity([Tree(2000, completed=True)], epochs) == Sensitivity(926)
    assert forest_sensitivity([Tree(2000)], epochs) == Sensitivity(425)
    assert forest_sensitivity([*[Tree(2000, completed=True)] * 4, Tree(2000)], epochs) == Sensitivity(4129)
    assert forest([Tree(2000, completed=True)], 100, 100) == 928


@given(st.integers(1, 60), st.integers(2, 5))
def test_one_participation_in_each_tree_pays_for_each(length: int, count: int) -> None:
    assert forest([Tree(length)] * count, count, length) == count * (math.floor(math.log2(length)) + 1)


def test_one_participation_in_all_pays_for_the_highest_tree() -> None:
    trees = [Tree(5, completed=True), Tree(4), Tree(3)]
    assert forest(trees, 1) == 4
    assert forest_sensitivity(trees, Participation.single()) == Sensitivity(4)


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_tree_that_is_complete_anyway_is_not_changed_by_completion(times: int, separation: int) -> None:
    assert forest([Tree(256, completed=True)], times, separation) == sensitivity(256, times, separation)


def growing(trees: Sequence[Tree]) -> Iterator[Trees]:
    """The schedule after each of its steps."""
    for i, tree in enumerate(trees):
        for steps in range(1, tree.steps + 1):
            yield (*trees[:i], Tree(steps))


SCHEDULES = [
    (Tree(200),),
    (Tree(9), Tree(9), Tree(40)),
    (Tree(9, completed=True), Tree(5, completed=True), Tree(64, completed=True), Tree(40)),
    (Tree(33, completed=True), Tree(3), Tree(100)),
]


@pytest.mark.parametrize("work", [0, 3e4, 3e5, 3e6])
@pytest.mark.parametrize("trees", SCHEDULES, ids=str)
@pytest.mark.parametrize(("times", "separation"), [(4, 3), (100, 2), (7, 9)])
def test_the_price_never_falls_wherever_a_bound_takes_over(
    trees: Trees, times: int, separation: int, work: float, forgotten: Callable[[float], None]
) -> None:
    forgotten(work)
    found = [forest_sensitivity(prefix, Participation(times, separation)) for prefix in growing(trees)]
    kinds, prices = [each.exact for each in found], [each.squared for each in found]
    assert prices == sorted(prices)
    assert kinds == sorted(kinds, reverse=True)
    forgotten(1e9)
    for prefix, price, exact in zip(growing(trees), prices, kinds, strict=True):
        truth = forest(prefix, times, separation)
        assert price == truth if exact else price >= truth


def test_whatever_a_bound_says_the_price_is_not_below_that_of_fewer_steps(
    forgotten: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten(1e5)
    monkeypatch.setattr(module, "bound_by_levels", lambda *_: 0)
    found = [forest_sensitivity(prefix, Participation(100, 2)) for prefix in growing(SCHEDULES[2])]
    prices = [each.squared for each in found]
    assert found[0].exact
    assert not found[-1].exact
    assert prices == sorted(prices)
    assert prices[-1] == max(each.squared for each in found if each.exact)


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Sets the work that may be done, and empties the caches that depend on it."""
    caches = (module._separated, module._after, module._cached_table)

    def forget(work: float) -> None:
        monkeypatch.setattr(module, "MOST_WORK", work)
        for cache in caches:
            cache.cache_clear()

    yield forget
    for cache in caches:
        cache.cache_clear()


def some_forests(count: int, most_steps: int) -> Iterator[tuple[Trees, int, int]]:
    dice = random.Random(12)
    for _ in range(count):
        trees = tuple(Tree(dice.randint(1, most_steps), dice.random() < 0.5) for _ in range(dice.randint(1, 3)))
        yield trees, dice.randint(1, 40), dice.randint(1, 60)


@pytest.mark.slow
def test_the_bounds_are_never_below_the_exact_value() -> None:
    for trees, times, separation in some_forests(400, 300):
        exact = exact_squares(trees, times, separation)
        assert bound_by_levels(trees, times, separation) >= exact
        for merged in range(1, separation.bit_length()):
            coarse = tuple(Tree(-(-tree.steps >> merged), tree.completed) for tree in trees)
            assert exact_squares(coarse, times, separation >> merged, merged) >= exact, (trees, times, separation, merged)


def test_merging_leaves_costs_nothing_where_everything_is_divisible() -> None:
    for steps, times, separation in ((2000, 100, 100), (1024, 8, 128), (4000, 7, 320)):
        assert exact_squares((Tree(steps // 4),), times, separation // 4, 2) == sensitivity(steps, times, separation)


@pytest.mark.slow
def test_merging_four_leaves_is_tight_at_wide_separations() -> None:
    """At b >= 60, the merged program allows a separation that is at most 5 % smaller; measured on these seeds."""
    excess = []
    for trees, times, extra in some_forests(200, 3000):
        separation = 60 + extra
        coarse = tuple(Tree(-(-tree.steps >> 2), tree.completed) for tree in trees)
        merged = exact_squares(coarse, times, separation >> 2, 2)
        excess.append(merged / exact_squares(trees, times, separation))
    assert min(excess) >= 1.0
    assert np.median(excess) < 1.02
    assert max(excess) < 1.25


@pytest.mark.parametrize(("log_steps", "log_times"), [(4, 2), (8, 3), (10, 0), (11, 5)])
def test_the_bound_by_levels_is_exact_where_everything_is_a_power_of_two(log_steps: int, log_times: int) -> None:
    trees, times, separation = (Tree(2**log_steps),), 2**log_times, 2 ** (log_steps - log_times)
    assert bound_by_levels(trees, times, separation) == exact_squares(trees, times, separation)


@pytest.mark.parametrize(
    ("steps", "times", "separation"),
    [(100_000, 100, 1000), (20_000, 40, 200), (4096, 3, 1300), (100_000, 5, 20_000), (4096, 4096, 1), (10_000, 10**9, 50)],
)
def test_what_takes_about_a_second_is_exact(steps: int, times: int, separation: int) -> None:
    assert is_affordable((Tree(steps),), times, separation)
    assert tree_sensitivity(steps, Participation(times, separation)).exact


@pytest.mark.slow
def test_what_the_exact_program_cannot_afford_is_priced_by_the_lower_bound() -> None:
    trees, times, separation = (Tree(100_000),), 100_000, 1
    assert not is_affordable(trees, times, separation)
    found = tree_sensitivity(100_000, Participation(times, separation))
    assert not found.exact
    assert found.squared == bound_by_levels(trees, times, separation)
    with pytest.raises(ValueError, match="too large"):
        exact_squares(trees, times, separation)


@pytest.mark.slow
def test_passes_in_one_order_equal_exhaustive_search_and_fewer_passes_are_bounded() -> None:
    dice, exact = random.Random(13), 0
    for _ in range(600):
        trees = tuple(Tree(dice.randint(1, 8), dice.random() < 0.5) for _ in range(dice.randint(1, 3)))
        times, separation = dice.randint(1, 7), dice.randint(1, 7)
        worst = largest_of_all_sets(trees, times, separation, cyclic=True)
        found = forest_sensitivity(trees, Participation.epochs(times, separation))
        assert found.squared <= forest(trees, times, separation)
        assert found.squared == worst if found.exact else found.squared >= worst
        assert found.exact or times * separation < sum(tree.steps for tree in trees)
        exact += found.exact
    assert exact > 200


def test_passes_in_one_order_are_counted_at_their_place_in_the_whole_schedule() -> None:
    for trees, _, separation in some_forests(20, 300):
        strategy = nodes_of_trees(trees)
        squares = [float((strategy[:, start::separation].sum(axis=1) ** 2).sum()) for start in range(separation)]
        assert cyclic_squares(trees, separation) == max(squares)


def test_the_price_of_passes_never_falls() -> None:
    for trees in SCHEDULES:
        for times, separation in ((5, 7), (12, 4), (100, 3)):
            prices = [forest_sensitivity(some, Participation.epochs(times, separation)).squared for some in growing(trees)]
            assert prices == sorted(prices)
