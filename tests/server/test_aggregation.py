"""The running sum is the sum of Python's integers, whatever was added, in whatever pieces and order."""

from __future__ import annotations

import numpy as np
import pytest

from fedrho.privacy.vectors import Clipped, Gathered, Gathering, Grid, add_noise
from fedrho.server.aggregation import RunningSum


def gathered(values: list[int], grid: Grid) -> Gathered:
    gathering = Gathering(len(values), grid)
    assert gathering.add(np.array(values, dtype=np.int32))
    return gathering.clipped()


def opened(total: RunningSum, size: int) -> list[int]:
    return [int(value) for value in add_noise(total.close(), np.zeros(size, dtype=np.int64)).vector]


@pytest.mark.parametrize("bits", [1, 20, 24])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_lane_never_overflows_however_many_of_the_largest_coordinates_are_added(bits: int, sign: int) -> None:
    grid = Grid(1.0, bits)
    total, fit = RunningSum(2, grid), (2**31 - 1) // grid.radius
    if fit > 5000:
        total._fit = fit = 300  # a lane that is flushed sooner
    clipped = Clipped(np.array([sign * grid.radius, 0], dtype=np.int32), grid)
    many = 2 * fit + 3
    for _ in range(many):
        total.add(clipped)
    assert opened(total, 2) == [sign * many * grid.radius, 0]


def test_a_lane_holds_as_many_as_cannot_overflow_and_not_one_more() -> None:
    for bits in range(1, 25):
        total = RunningSum(1, Grid(1.0, bits))
        assert total._fit * 2**bits <= 2**31 - 1 < (total._fit + 1) * 2**bits


def test_gathered_vectors_of_any_width_and_whole_ones_add_up_to_the_exact_sum() -> None:
    random, grid, size = np.random.default_rng(3), Grid(1.0, 14), 1000
    total, truth = RunningSum(size, grid), np.zeros(size, dtype=np.int64)
    for turn in range(50):
        vector = random.integers(-400, 401, size).astype(np.int32)
        truth += vector
        if turn % 2:
            total.add(Clipped(vector, grid))
            continue
        gathering = Gathering(size, grid)
        for piece in np.split(vector.astype(np.int16 if turn % 4 else np.int32), np.sort(random.integers(0, size, 3))):
            gathering.add(piece)
        total.add(gathering.clipped())
    assert opened(total, size) == truth.tolist()


@pytest.mark.parametrize("many", [1, 3, 4, 5, 9])
def test_vectors_that_wait_to_be_added_are_in_the_sum(many: int) -> None:
    grid = Grid(1.0, 20)
    total = RunningSum(2, grid)
    for one in range(many):
        total.add(gathered([one, 40_000 * (one % 2)], grid))
    assert opened(total, 2) == [sum(range(many)), 40_000 * (many // 2)]


@pytest.mark.parametrize("bits", [1, 14, 24])
def test_the_lane_never_overflows_however_many_gathered_vectors_wait(bits: int) -> None:
    grid = Grid(1.0, bits)
    total = RunningSum(1, grid)
    total._fit = min(total._fit, 127)
    for _ in range(2 * total._fit + 3):
        total.add(gathered([grid.radius], grid))
    assert opened(total, 1) == [(2 * total._fit + 3) * grid.radius]


def test_a_destroyed_sum_forgets_the_vectors_that_wait() -> None:
    grid = Grid(1.0, 20)
    total = RunningSum(1, grid)
    total.add(gathered([7], grid))
    lane = total._lane
    total.destroy()
    assert total._waiting == []
    assert not lane.any()


def test_a_vector_of_another_grid_or_length_is_refused_and_leaves_no_trace() -> None:
    total = RunningSum(2, Grid(1.0, 10))
    for vector, grid in (([1, 1], Grid(1.0, 11)), ([1, 1], Grid(2.0, 10)), ([1], Grid(1.0, 10)), ([1, 1, 1], Grid(1.0, 10))):
        with pytest.raises(ValueError, match="does not belong"):
            total.add(Clipped(np.array(vector, dtype=np.int32), grid))
    assert opened(total, 2) == [0, 0]


def test_a_destroyed_sum_is_overwritten_and_a_closed_one_is_handed_over_once() -> None:
    grid = Grid(1.0, 10)
    total = RunningSum(2, grid)
    total.add(Clipped(np.array([3, 4], dtype=np.int32), grid))
    wide, lane = total._wide, total._lane
    total.destroy()
    assert not wide.any()
    assert not lane.any()
    assert total.close().size == 0
