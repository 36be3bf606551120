"""When a device comes back: within the window, drawn once; neither at once nor never, whatever files, clocks and servers say."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrho.client import scheduler
from fedrho.client.scheduler import (
    DAY_SECONDS,
    LONGEST_BACKOFF_SECONDS,
    LONGEST_SECONDS,
    SHORTEST_SECONDS,
    Schedule,
    a_day,
    backoff,
    draw,
)

HERE = "fl.example.org:7070"
YEAR = 365 * DAY_SECONDS


@dataclass
class Clock:
    now: float = 1e9

    def __call__(self) -> float:
        return self.now


@dataclass
class Machine:
    """A schedule on a machine whose clock may be set; `restarted` is the same one after a restart."""

    path: Path
    clock: Clock
    steady: Clock
    schedule: Schedule

    @staticmethod
    def at(path: Path) -> Machine:
        clock, steady = Clock(), Clock(5.0)
        return Machine(path, clock, steady, Schedule(path, clock, steady))

    def pass_by(self, seconds: float) -> None:
        self.clock.now += seconds
        self.steady.now += seconds

    def restarted(self) -> Machine:
        steady = Clock(1.0)  # the machine's own clock began again
        return Machine(self.path, self.clock, steady, Schedule(self.path, self.clock, steady))

    @property
    def left(self) -> float:
        return self.schedule.left(HERE)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.at(tmp_path / "next.json")


def test_first_visit_is_due_at_once(machine: Machine) -> None:
    assert machine.left == 0


def test_instant_is_kept_over_a_restart(machine: Machine) -> None:
    machine.schedule.end(HERE, 100.0)
    machine.pass_by(30.0)
    assert machine.left == pytest.approx(70.0)
    assert machine.restarted().left == pytest.approx(70.0)
    machine.pass_by(80.0)
    assert machine.left == machine.restarted().left == 0


def test_each_population_has_an_instant_of_its_own(machine: Machine) -> None:
    machine.schedule.end(HERE, 100.0)
    machine.schedule.end("elsewhere:7070", 10.0)
    again = machine.restarted().schedule
    assert (again.left(HERE), again.left("elsewhere:7070")) == pytest.approx((100.0, 10.0))


@pytest.mark.parametrize("jump", [-YEAR, -1.0, 1.0, YEAR])
def test_clock_that_is_set_changes_nothing_while_the_process_runs(machine: Machine, jump: float) -> None:
    machine.schedule.end(HERE, 100.0)
    machine.clock.now += jump
    assert machine.left == pytest.approx(100.0)


def test_clock_that_went_back_makes_nobody_wait_longer_than_was_drawn(machine: Machine) -> None:
    machine.schedule.end(HERE, 100.0)
    machine.clock.now -= YEAR
    assert machine.restarted().left == pytest.approx(100.0)


def test_clock_that_went_forward_gives_one_visit_and_no_more(machine: Machine) -> None:
    machine.schedule.end(HERE, 100.0)
    machine.clock.now += YEAR
    again = machine.restarted()
    assert again.left == 0
    again.schedule.begin(HERE)
    again.schedule.end(HERE, 100.0)
    assert again.restarted().left == pytest.approx(100.0)


def test_process_that_dies_in_every_visit_backs_off(machine: Machine) -> None:
    waits = []
    for _ in range(12):
        machine.pass_by(machine.left)
        machine.schedule.begin(HERE)
        machine = machine.restarted()
        waits.append(machine.left)
    assert waits[0] >= 1.0
    assert waits[-1] >= 0.5 * LONGEST_BACKOFF_SECONDS
    assert sum(waits) > 1800.0
    machine.schedule.end(HERE, 1.0)
    machine.schedule.begin(HERE)
    assert machine.left <= 3.0


def test_backoff_counts_from_the_end_of_a_visit_that_took_long(machine: Machine) -> None:
    machine.schedule.begin(HERE)
    machine.pass_by(60.0)
    assert machine.left == 0
    machine.schedule.failed(HERE)
    assert 1.0 <= machine.left <= 3.0
    machine.schedule.begin(HERE)
    machine.schedule.failed(HERE)
    assert 2.0 <= machine.left <= 6.0


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(allow_nan=True, allow_infinity=True))
def test_no_window_floods_the_server_or_sends_a_device_away_for_years(least: float, most: float) -> None:
    assert SHORTEST_SECONDS <= draw(least, most) <= LONGEST_SECONDS


@given(st.floats(min_value=1.0, max_value=1e5), st.floats(min_value=0.0, max_value=1e5))
def test_draw_is_within_the_window(least: float, more: float) -> None:
    assert least <= draw(least, least + more) <= least + more


def test_draws_are_spread_over_the_window() -> None:
    drawn = sorted(draw(100.0, 200.0) for _ in range(2000))
    tenths = [sum(100 + 10 * k <= one < 110 + 10 * k for one in drawn) for k in range(10)]
    assert min(tenths) > 130  # 200 each on average, standard deviation 13.4: five of them below


def test_backoff_doubles_with_jitter_up_to_a_limit() -> None:
    for failures in (1, 2, 5, 20, 10_000):
        middle = min(2.0**failures, LONGEST_BACKOFF_SECONDS) if failures < 64 else LONGEST_BACKOFF_SECONDS
        drawn = [backoff(failures) for _ in range(50)]
        assert all(0.5 * middle <= one <= 1.5 * middle for one in drawn)
        assert len(set(drawn)) == 50


def test_a_day_is_a_day() -> None:
    assert DAY_SECONDS <= a_day() <= DAY_SECONDS + 3600.0


WRONG = [
    "",
    "{",
    "[]",
    "null",
    '{"x": 1}',
    "[" * 100_000,
    '{"fl.example.org:7070": {"drawn_at": 1e9, "seconds": 1e300, "failures": 0}}',
    '{"fl.example.org:7070": {"drawn_at": 1e9, "seconds": -5, "failures": 0}}',
    '{"fl.example.org:7070": {"drawn_at": NaN, "seconds": 5, "failures": 0}}',
    '{"fl.example.org:7070": {"drawn_at": 1e9, "seconds": 5, "failures": -1}}',
    '{"fl.example.org:7070": {"drawn_at": "x", "seconds": 5, "failures": 0}}',
]


@pytest.mark.parametrize("text", WRONG)
def test_damaged_file_says_at_once_and_is_mended_by_the_next_visit(text: str, tmp_path: Path) -> None:
    path = tmp_path / "next.json"
    path.write_text(text)
    machine = Machine.at(path)
    assert machine.left == 0
    machine.schedule.end(HERE, 50.0)
    assert machine.restarted().left == pytest.approx(50.0)


def test_file_says_nothing_but_when(machine: Machine) -> None:
    machine.schedule.begin(HERE)
    assert set(json.loads(machine.path.read_text())[HERE]) == {"drawn_at", "seconds", "failures"}
    assert [path.name for path in machine.path.parent.iterdir()] == ["next.json"]


def test_steady_clock_goes_on() -> None:
    first = scheduler.steady()
    assert math.isfinite(first)
    assert scheduler.steady() >= first


TIME = st.tuples(st.just("time passes"), st.floats(0, 1e5))
VISIT = st.tuples(st.just("visit"), st.floats(0.05, 1e5))
DEATH = st.tuples(st.just("visit dies"), st.just(0.0))
RESTART = st.tuples(st.just("restart"), st.just(0.0))
JUMP = st.tuples(st.just("clock is set"), st.floats(-1e10, 1e10))
ROUNDING = 1e-4


def left_after(happens: list[tuple[str, float]]) -> Iterator[tuple[float, float]]:
    """After each thing that happens: seconds that are left, and that were drawn at the latest visit, at most."""
    with tempfile.TemporaryDirectory() as folder:
        machine, drawn = Machine.at(Path(folder) / "next.json"), 0.0
        for what, seconds in happens:
            if what == "time passes":
                machine.pass_by(seconds)
            elif what == "clock is set":
                machine.clock.now += seconds
            elif what == "restart":
                machine = machine.restarted()
            else:
                machine.schedule.begin(HERE)
                drawn = 1.5 * LONGEST_BACKOFF_SECONDS
                if what == "visit":
                    machine.schedule.end(HERE, seconds)
                    drawn = seconds
            yield machine.left, drawn


@given(st.lists(st.one_of(TIME, VISIT, DEATH, RESTART, JUMP), max_size=30))
def test_whatever_happens_nobody_waits_longer_than_was_drawn(happens: list[tuple[str, float]]) -> None:
    assert all(0.0 <= left <= drawn + ROUNDING for left, drawn in left_after(happens))


@given(st.floats(1, 1e5), st.lists(st.one_of(TIME, RESTART), max_size=30))
def test_restarts_make_no_visit_come_sooner_or_later(seconds: float, happens: list[tuple[str, float]]) -> None:
    passed = sum(length for what, length in happens if what == "time passes")
    *_, (left, _) = left_after([("visit", seconds), *happens])
    assert left == pytest.approx(max(seconds - passed, 0.0), abs=ROUNDING)
