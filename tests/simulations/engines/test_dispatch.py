"""Units and who trains them: whatever ends when, every device is summed exactly once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrho.privacy.vectors import ClippedSum
from fedrho.simulations.engines import base
from fedrho.simulations.engines.base import EngineError, Told
from fedrho.simulations.engines.dispatch import (
    PATIENCE,
    HandOver,
    Measurement,
    Round,
    Unit,
    empty_sum,
    held_out_units,
    units,
)
from tests.simulations.engines.small import GRID, Made, cohort, opened, workload


class Members:
    """Members that add a unit vector for every device, so that a place above 1 would prove a double count."""

    def __init__(self, job: Round, size: int) -> None:
        self.job, self.size = job, size
        self.at: dict[int, Unit | HandOver] = {}
        self.sums: dict[int, list[int]] = {}
        self.alive = [0, 1, 2]
        self.born = 3

    def give(self) -> None:
        for member in self.alive:
            turn = self.job.turn(member)
            if turn is not None:
                assert member not in self.at
                self.at[member] = turn

    def answer(self, member: int) -> None:
        turn = self.at.pop(member)
        if isinstance(turn, Unit):
            self.sums.setdefault(member, []).extend(turn.places)
            self.job.done(member, told(turn))
            return
        total = np.zeros(self.size, dtype=np.int64)
        np.add.at(total, self.sums.pop(member), 1)
        self.job.handed_over(member, ClippedSum(total, GRID))

    def end(self, member: int) -> None:
        self.alive.remove(member)
        self.at.pop(member, None)
        self.sums.pop(member, None)
        self.job.ended(member, "was ended by SIGKILL")
        self.alive.append(self.born)
        self.born += 1


def told(unit: Unit) -> Told:
    places = np.array(unit.places)
    return Told(places * 1.0, places * 2.0, places, places % 2 == 1)


def pieces(size: int, of: int) -> list[Unit]:
    order = np.random.default_rng(size).permutation(size)
    return [Unit(tuple(order[at : at + of].tolist()), tuple(order[at : at + of].tolist())) for at in range(0, size, of)]


@given(st.integers(0, 30), st.integers(1, 7), st.lists(st.tuples(st.booleans(), st.integers(0, 2)), max_size=60))
def test_every_device_is_summed_once_and_told_in_order_whatever_ends(size: int, of: int, events: list[tuple[bool, int]]) -> None:
    job = Round(pieces(size, of), ClippedSum(np.zeros(size, dtype=np.int64), GRID))
    members, deaths = Members(job, size), 0
    while job.open:
        members.give()
        ends, which = events.pop() if events else (False, 0)
        if ends and deaths < PATIENCE - 1:
            members.end(members.alive[which])
            deaths += 1
        elif members.at:
            members.answer(sorted(members.at)[which % len(members.at)])
    trained = job.result()
    assert opened(trained.total) == [1] * size
    assert trained.told.examples.tolist() == list(range(size))
    assert trained.told.norm.tolist() == [2.0 * place for place in range(size)]
    assert trained.told.failed.tolist() == [place % 2 == 1 for place in range(size)]


def test_a_unit_that_ends_every_worker_is_named() -> None:
    job = Round([Unit((0, 1), (512, 7))], ClippedSum(np.zeros(2, dtype=np.int64), GRID))
    for member in range(PATIENCE - 1):
        job.turn(member)
        job.ended(member, "was ended by SIGKILL")
    job.turn(PATIENCE)
    with pytest.raises(
        EngineError, match=r"5 workers ended, one after another, at devices 512, 7: the last was ended by SIGKILL"
    ):
        job.ended(PATIENCE, "was ended by SIGKILL")


def test_a_member_that_ends_idle_costs_nothing() -> None:
    job = Round(pieces(4, 2), ClippedSum(np.zeros(4, dtype=np.int64), GRID))
    for member in range(2 * PATIENCE):
        job.ended(member, "ended with exit code 1")
    assert job.turn(99) == job.units[0]


@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize("size", [0, 1, 31, 100, 1000])
def test_units_are_the_cohort_cut_in_pieces(size: int, vectorised: bool) -> None:
    devices, work = cohort(0, size), workload(vectorised=vectorised)
    made = units(work, Made(), devices, 4)
    assert sorted(place for unit in made for place in unit.places) == list(range(size))
    assert all(unit.devices == tuple(devices[place] for place in unit.places) for unit in made)
    assert all(len(unit.places) <= work.units_of for unit in made)


def test_vectorised_units_are_the_same_on_any_number_of_workers() -> None:
    devices, work = cohort(0, 100), workload(vectorised=True)
    assert units(work, Made(), devices, 1) == units(work, Made(), devices, 16)


def test_the_longest_units_go_first_and_the_last_is_one_device() -> None:
    devices, work = cohort(0, 100), workload()
    made = units(work, Made(), devices, 2)
    sizes = [len(unit.devices) for unit in made]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    batches = [-(-min(Made().count(device), work.plan.max_examples) // 8) for unit in made for device in unit.devices]
    assert batches == sorted(batches, reverse=True)


def test_held_out_examples_are_measured_in_units_and_their_loss_summed_in_one_order() -> None:
    job = Measurement(held_out_units(Made()))
    turns = [job.turn(member) for member in range(3)]
    for member in (2, 0, 1):
        turn = turns[member]
        assert isinstance(turn, Unit)
        job.done(member, base.Tested(member, len(turn.places), 0.5 + member, len(turn.places)))
    assert not job.open
    measured = job.result()
    assert (measured.correct, measured.examples) == (3, 2500)
    assert measured.loss == pytest.approx((0.5 * 1024 + 1.5 * 1024 + 2.5 * 452) / 2500)


def test_a_round_without_devices_is_a_sum_of_zeros() -> None:
    work = workload()
    job = Round(units(work, Made(), [], 2), empty_sum(work))
    assert not job.open
    trained = job.result()
    assert opened(trained.total) == [0] * work.plan.size
    assert len(trained.told.norm) == 0
