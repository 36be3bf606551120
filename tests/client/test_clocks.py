"""Clocks that leap, the device's or the one that the server signs: no two contributions come closer than the period."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrho.client.history import DeviceHistory
from tests.client.announcing import DAILY, DAY, KEY, OTHER, OTHER_KEY, RUN, YEAR, Clock, known, still, task

START = 1.75e9


@dataclass
class Visits:
    """A device, a population, and how wrong the clock of each is, while real time goes on."""

    path: Path
    real: float = START
    device_error: float = 0.0
    server_error: float = 0.0
    step: int = 0
    given: list[float] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.clock.now = self.real + self.device_error
        self.history = DeviceHistory(self.path, self.clock, steady=still)

    def visit(self, run: bytes = RUN, key: bytes = KEY) -> bool:
        """Hears the newest spec, and contributes if it may."""
        self.step += 1
        self.clock.now = self.real + self.device_error
        self.history.hear(known(task(run, DAILY), at=self.real + self.server_error, key=key))
        allowed = self.history.allows(run, self.step, DAILY)
        assert self.history.record(run, self.step, DAILY) is allowed
        self.given += [self.real] if allowed else []
        return allowed

    def restart(self) -> None:
        self.history.close()
        self.begin()

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.given, self.given[1:], strict=False)]


@contextmanager
def visits() -> Iterator[Visits]:
    with tempfile.TemporaryDirectory() as folder:
        own = Visits(Path(folder, "device.sqlite"))
        try:
            yield own
        finally:
            own.history.close()


def first_contribution(own: Visits) -> None:
    own.visit()
    own.real += DAY
    assert own.visit()


LEAPS = [-YEAR, -DAY, 0.0, DAY, YEAR]


@pytest.mark.parametrize("before", LEAPS)
@pytest.mark.parametrize("between", LEAPS)
@pytest.mark.parametrize("after", LEAPS)
def test_device_clock_that_leaps_a_year_gains_nothing_and_loses_one_opportunity(
    before: float, between: float, after: float
) -> None:
    with visits() as own:
        own.visit()
        own.real, own.device_error = own.real + DAY, before
        own.visit()
        for error in (between, after, 0.0):
            own.real, own.device_error = own.real + DAY / 4, error
            own.visit()
        for _ in range(10):
            own.real += DAY / 2
            own.visit()
        assert all(gap >= DAY for gap in own.gaps)
        assert len(own.given) >= 4


@pytest.mark.parametrize("leap", [-YEAR, YEAR])
def test_signed_time_that_leaps_a_year_gains_nothing(leap: float) -> None:
    with visits() as own:
        first_contribution(own)
        for hours, error in ((1, leap), (1, 0.0), (1, leap), (20, leap)):
            own.real, own.server_error = own.real + hours * 3600.0, error
            assert not own.visit()
        own.real += 3600.0
        own.server_error = max(leap, 0.0)
        assert own.visit()


@pytest.mark.parametrize(("passed", "allowed"), [(DAY - 1e-3, False), (DAY, True)])
def test_period_is_exact_by_both_clocks(passed: float, allowed: bool) -> None:
    with visits() as own:
        first_contribution(own)
        own.real += passed
        assert own.visit() is allowed


@pytest.mark.parametrize("slow", ["device", "server"])
def test_both_clocks_must_have_gone_on(slow: str) -> None:
    with visits() as own:
        first_contribution(own)
        own.real += DAY
        own.device_error -= 1.0 if slow == "device" else 0.0
        own.server_error -= 1.0 if slow == "server" else 0.0
        assert not own.visit()
        own.real += 1.0
        assert own.visit()


def test_board_without_a_clock_that_begins_in_1970_at_each_start_still_takes_part() -> None:
    with visits() as own:
        for _ in range(6):
            own.device_error = -own.real
            own.restart()
            own.visit()
            for _ in range(6):
                own.real += DAY / 4
                own.visit()
        assert all(gap >= DAY for gap in own.gaps)
        assert len(own.given) == 6


def test_a_population_whose_time_is_years_ahead_does_not_hold_up_another() -> None:
    with visits() as own:
        for _ in range(2):
            own.server_error = 0.0
            own.visit(RUN, KEY)
            own.server_error = 10 * YEAR
            own.visit(OTHER, OTHER_KEY)
            own.real += DAY
        assert len(own.given) == 1
        assert own.visit(OTHER, OTHER_KEY)
        own.server_error = 0.0
        assert not own.visit(RUN, KEY)
        own.real += DAY
        assert own.visit(RUN, KEY)


moves = st.lists(
    st.tuples(
        st.sampled_from([60.0, DAY / 3, DAY / 2, DAY - 1.0, DAY, 2 * DAY]),
        st.sampled_from(LEAPS),
        st.booleans(),
        st.sampled_from([(RUN, KEY), (OTHER, OTHER_KEY)]),
    ),
    max_size=14,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(moves=moves)
def test_whatever_the_device_clock_does_the_period_is_kept(moves: list[tuple[float, float, bool, tuple[bytes, bytes]]]) -> None:
    with visits() as own:
        for passed, error, restarted, whom in moves:
            own.real, own.device_error = own.real + passed, error
            if restarted:
                own.restart()
            own.visit(*whom)
        assert all(gap >= DAY for gap in own.gaps)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(moves=moves)
def test_whatever_the_signed_time_does_the_period_is_kept(moves: list[tuple[float, float, bool, tuple[bytes, bytes]]]) -> None:
    with visits() as own:
        for passed, error, restarted, whom in moves:
            own.real, own.server_error = own.real + passed, error
            if restarted:
                own.restart()
            own.visit(*whom)
        assert all(gap >= DAY for gap in own.gaps)
