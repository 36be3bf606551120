"""Who may take part again: the boundary on both sides, and the count against enumeration."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrho.privacy.participation import Participation
from tests.privacy.dense import admissible_sets


@pytest.mark.parametrize("separation", [1, 2, 5, 314])
def test_the_separation_is_a_difference_and_exactly_it_is_allowed(separation: int) -> None:
    participation = Participation(max_times=2, min_separation=separation)
    assert participation.allows([7], 7 + separation)
    assert not participation.allows([7], 7 + separation - 1)


@pytest.mark.parametrize("times", [1, 2, 6])
def test_the_last_time_is_allowed_and_one_more_is_refused(times: int) -> None:
    participation = Participation(max_times=times, min_separation=3)
    past = [3 * i + 1 for i in range(times)]
    assert participation.allows(past[:-1], past[-1])
    assert not participation.allows(past, past[-1] + 1000)


def test_nobody_takes_part_twice_in_one_step() -> None:
    assert not Participation(max_times=9).allows([4], 4)


def test_the_order_of_arrival_does_not_matter() -> None:
    participation = Participation(max_times=4, min_separation=3)
    for past in itertools.permutations([2, 9, 15]):
        allowed = [step for step in range(1, 20) if participation.allows(past, step)]
        assert allowed == [5, 6, 12, 18, 19]


@given(st.integers(1, 4), st.integers(1, 5), st.lists(st.integers(1, 20), max_size=8))
def test_accepting_one_by_one_never_leaves_the_admissible_sets(times: int, separation: int, arrivals: list[int]) -> None:
    participation = Participation(times, separation)
    past: list[int] = []
    for step in arrivals:
        if participation.allows(past, step):
            past.append(step)
    assert tuple(step - 1 for step in sorted(past)) in set(admissible_sets(20, times, separation))


def test_every_admissible_set_is_accepted_in_any_order() -> None:
    participation = Participation(max_times=3, min_separation=2)
    for chosen in admissible_sets(7, 3, 2):
        for order in itertools.permutations(chosen):
            assert all(participation.allows(order[:i], step) for i, step in enumerate(order))


@pytest.mark.parametrize("steps", range(0, 12))
def test_most_times_is_the_size_of_the_largest_admissible_set(steps: int) -> None:
    for times, separation in itertools.product(range(1, 6), range(1, 14)):
        largest = max(map(len, admissible_sets(steps, times, separation)))
        assert Participation(times, separation).most_times(steps) == largest


@pytest.mark.parametrize(("times", "separation"), [(0, 1), (-1, 1), (1, 0), (1, -3)])
def test_a_promise_that_means_nothing_is_refused(times: int, separation: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Participation(times, separation)


def test_single_is_once() -> None:
    assert Participation.single() == Participation(1)
    assert Participation.single().allows([], 5)
    assert not Participation.single().allows([1], 10**9)


def test_epochs_allow_the_same_place_in_every_pass_and_no_other() -> None:
    epochs = Participation.epochs(count=4, length=5)
    assert epochs == Participation(4, 5, cyclic=True)
    for past in itertools.permutations([3, 13]):
        assert [step for step in range(1, 30) if epochs.allows(past, step)] == [8, 18, 23, 28]
    assert not epochs.allows([3, 8, 13, 18], 23)


@given(st.integers(1, 4), st.integers(1, 5), st.lists(st.integers(1, 20), max_size=8))
def test_what_epochs_accept_is_admissible_and_in_one_place_of_the_passes(times: int, length: int, arrivals: list[int]) -> None:
    epochs = Participation.epochs(times, length)
    past: list[int] = []
    for step in arrivals:
        if epochs.allows(past, step):
            past.append(step)
    assert tuple(step - 1 for step in sorted(past)) in set(admissible_sets(20, times, length))
    assert len({step % length for step in past}) <= 1


@pytest.mark.parametrize("steps", range(0, 12))
def test_epochs_leave_as_much_room_as_the_separation_does(steps: int) -> None:
    for times, length in itertools.product(range(1, 6), range(1, 14)):
        assert Participation.epochs(times, length).most_times(steps) == Participation(times, length).most_times(steps)
