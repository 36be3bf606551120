"""Adaptive clipping: the noise is split as claimed, the clip norm follows the quantile, and nothing un-noised steers it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedrho.privacy.adaptive import AdaptiveGaussian
from fedrho.privacy.clipping import clip, clip_with_count
from fedrho.privacy.noise import NoiseMismatch, ReplayedNoise, SystemNoise
from fedrho.privacy.participation import Participation
from fedrho.privacy.vectors import LARGEST_CLIP_NORM, SMALLEST_CLIP_NORM, ClippedSum, Grid, Update
from tests.privacy.dense import SeededNoise

GRID = Grid(0.1, 20)


def mechanism(noise_multiplier: float = 1.0, goal: int = 100, **options: Any) -> AdaptiveGaussian:
    return AdaptiveGaussian(GRID, noise_multiplier, goal, **options)


def summed(updates: list[Update], grid: Grid) -> ClippedSum:
    return ClippedSum(np.sum([clip_with_count(update, grid).vector for update in updates], axis=0, dtype=np.int64), grid)


def update_of_norm(norm: float, size: int = 3) -> Update:
    vector = np.zeros(size, dtype=np.float32)
    vector[-1] = norm
    return Update(vector)


def test_the_split_is_the_published_one() -> None:
    """TFF's adaptive_clip_noise_params for z = 1 and a count deviation of 5."""
    assert mechanism(1.0, count_stddev=5.0).vector_multiplier == pytest.approx(1.005037815, rel=1e-9)
    assert mechanism(1.0, goal=100).count_multiplier == 10.0


@pytest.mark.parametrize(("multiplier", "count_stddev"), [(1.0, 5.0), (7.0, 3.6), (0.01, 100.0), (1e3, 501.0)])
def test_both_queries_together_cost_one_gaussian(multiplier: float, count_stddev: float) -> None:
    split = mechanism(multiplier, count_stddev=count_stddev)
    both = split.vector_multiplier**-2 + split.count_multiplier**-2
    assert both == pytest.approx(multiplier**-2, rel=1e-12)
    assert split.cost(10, Participation(3, 2)) == pytest.approx(3 / 2 * both, rel=1e-12)


def test_the_two_noises_have_the_split_s_deviations() -> None:
    """20,000 coordinates and 4,000 counts: six standard errors, sqrt(1 / 2n) relatively, of a sample deviation."""
    split, size = mechanism(2.0, goal=50), 20_000
    source = SeededNoise("split")
    released, _ = split.release(ClippedSum(np.zeros(size + 1, np.int64), GRID), split.init(size), source)
    assert released.vector.std() / GRID.radius == pytest.approx(split.vector_multiplier, rel=6 / math.sqrt(2 * size))
    assert released.vector.size == size
    counts = []
    for number in range(4000):
        _, state = split.release(ClippedSum(np.zeros(2, np.int64), GRID), split.init(1), SeededNoise(f"count {number}"))
        counts.append((state.fraction - 0.5) * split.goal)  # the centred count, sensitivity 1/2
    assert np.std(counts) == pytest.approx(split.count_multiplier / 2, rel=6 / math.sqrt(8000))


def test_the_clip_norm_follows_the_formula() -> None:
    """60 of 100 within, so 20 more than not: C * exp(-0.2 * (fraction - 0.7)) with fraction = 0.6 + noise / 100."""
    split = mechanism(goal=100, quantile=0.7, learning_rate=0.2, count_stddev=5.0)
    updates = [update_of_norm(0.05)] * 60 + [update_of_norm(3.0)] * 40
    _, state = split.release(summed(updates, GRID), split.init(3), source := SeededNoise("formula"))
    noise, _ = source.replayed().draw("count.1", 1, 10.0)
    assert state.fraction == pytest.approx(0.6 + noise[0] / 200, abs=1e-12)
    assert state.clip_norm == pytest.approx(0.1 * math.exp(-0.2 * (state.fraction - 0.7)), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("start", [1e-3, 50.0])
def test_the_clip_norm_finds_the_quantile(start: float) -> None:
    """Norms uniform over (0, 2): the 0.75 quantile is 1.5. The last 50 of 300 steps average out the count's noise."""
    split = AdaptiveGaussian(Grid(start, 20), 0.5, 200, quantile=0.75)
    norms = np.linspace(0.005, 1.995, 200)
    state, path, source = split.init(2), [], SeededNoise("quantile")
    for _ in range(300):
        total = summed([update_of_norm(norm, 2) for norm in norms], split.grid_at(state))
        _, state = split.release(total, state, source)
        path.append(state.clip_norm)
    assert np.mean(path[-50:]) == pytest.approx(1.5, rel=0.05)


def test_a_sum_clipped_for_yesterday_s_norm_is_refused() -> None:
    split = mechanism()
    _, state = split.release(summed([update_of_norm(1.0)], GRID), split.init(3), SystemNoise())
    assert split.grid_at(state) != GRID
    with pytest.raises(ValueError, match="grid"):
        split.release(summed([update_of_norm(1.0)], GRID), state, SystemNoise())


def test_a_sum_without_the_count_is_refused() -> None:
    split = mechanism()
    without = ClippedSum(clip(update_of_norm(1.0), GRID).vector.astype(np.int64), GRID)
    with pytest.raises(ValueError, match="another length"):
        split.release(without, split.init(3), SystemNoise())


@pytest.mark.parametrize(("norm", "bit"), [(0.0, 1), (0.05, 1), (0.1, 1), (0.100001, -1), (1e6, -1)])
def test_the_count_says_whether_the_norm_was_within(norm: float, bit: int) -> None:
    clipped = clip_with_count(update_of_norm(norm), Grid(float(np.float32(0.1)), 20))
    assert clipped.vector[-1] == bit
    alone = clip(update_of_norm(norm), Grid(float(np.float32(0.1)), 20)).vector
    assert np.abs(clipped.vector[:-1] - alone).max() <= 1


def test_both_noise_nodes_are_reported_for_storing_and_have_their_own_names() -> None:
    split, source, names = mechanism(), SeededNoise("names"), []
    state = split.init(3)
    for _ in range(5):
        total = ClippedSum(np.zeros(4, np.int64), split.grid_at(state))
        _, state = split.release(total, state, source)
        names += [node.name for node in state.drawn]
    assert names == [node.name for node in source.drawn]
    assert len(set(names)) == 10


def test_going_on_without_the_clip_norm_is_refused() -> None:
    split = mechanism()
    _, state = split.release(summed([update_of_norm(1.0)], GRID), split.init(3), SystemNoise())
    restored = split.restore(3, 1, ReplayedNoise([]), state.kept)
    assert (restored.step, restored.clip_norm, restored.fraction) == (1, state.clip_norm, state.fraction)
    with pytest.raises(NoiseMismatch, match=r"clip_norm\.1"):
        split.restore(3, 1, ReplayedNoise([]))
    with pytest.raises(NoiseMismatch, match=r"clip_norm\.2"):
        split.restore(3, 2, ReplayedNoise([]), state.kept)
    assert split.restore(3, 0, ReplayedNoise([])) == split.init(3)


def test_the_clip_norm_stays_where_a_grid_can_be_laid() -> None:
    for start, fraction_sign in ((SMALLEST_CLIP_NORM, 1), (LARGEST_CLIP_NORM, -1)):
        split = AdaptiveGaussian(Grid(start, 20), 0.1, 10, learning_rate=100.0, count_stddev=0.1)
        total = ClippedSum(np.array([0, 10 * fraction_sign], np.int64), split.grid)
        _, state = split.release(total, split.init(1), SeededNoise("edge"))
        assert state.clip_norm == start
        assert split.grid_at(state).clip_norm == start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": 0}, "goal"),
        ({"quantile": 1.5}, "quantile"),
        ({"quantile": math.nan}, "quantile"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"count_stddev": 0.5}, "above half the noise_multiplier, 0.5"),
        ({"count_stddev": 0.0}, "above half"),
        ({"count_stddev": math.nan}, "above half"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"goal": 10, "noise_multiplier": 1.0}, "above half"),
    ],
)
def test_a_split_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mechanism(**options)
