"""The device's own ledger, at both sides of every limit, and against a plain list of everything it allowed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrho.client.history import DeviceHistory
from fedrho.protos.messages import PrivacyTerms
from tests.client.fleet import opened

RUN, OTHER = bytes(16), bytes([1]) * 16
TERMS = PrivacyTerms("binary-tree", 1.0, 1.0, 1.0, max_participations=3, min_separation=4, min_period_seconds=0.0)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def history(tmp_path: Path, clock: Clock) -> DeviceHistory:
    """Begun long ago: every period has passed since."""
    return aged(opened, tmp_path / "device.sqlite", clock)


def aged(make: Callable[[Path, Clock], DeviceHistory], path: Path, clock: Clock) -> DeviceHistory:
    clock.now -= 10_000.0
    history = make(path, clock)
    clock.now += 10_000.0
    return history


@pytest.mark.parametrize(("difference", "allowed"), [(1, False), (3, False), (4, True), (5, True)])
def test_steps_must_differ_by_the_separation(history: DeviceHistory, difference: int, allowed: bool) -> None:
    assert history.record(RUN, 10, TERMS)
    assert history.allows(RUN, 10 + difference, TERMS) is allowed
    assert history.record(RUN, 10 + difference, TERMS) is allowed


def test_kth_contribution_is_allowed_and_the_next_is_not(history: DeviceHistory) -> None:
    assert [history.record(RUN, step, TERMS) for step in (1, 5)] == [True, True]
    assert not history.exhausted(RUN, TERMS)
    assert history.record(RUN, 9, TERMS)
    assert history.exhausted(RUN, TERMS)
    assert not history.allows(RUN, 1000, TERMS)
    assert not history.record(RUN, 1000, TERMS)


def test_server_that_went_backwards_gets_nothing(history: DeviceHistory) -> None:
    assert history.record(RUN, 100, TERMS)
    assert not any(history.record(RUN, step, TERMS) for step in (100, 99, 50, 1))


def test_limits_by_step_are_those_of_one_run(history: DeviceHistory) -> None:
    assert history.record(RUN, 100, TERMS)
    assert history.record(OTHER, 1, TERMS)
    assert not history.exhausted(OTHER, replace(TERMS, max_participations=2))


@pytest.mark.parametrize("run", [RUN, OTHER])
@pytest.mark.parametrize(("passed", "allowed"), [(0.0, False), (59.999, False), (60.0, True), (60.001, True)])
def test_period_must_have_passed_since_the_last_contribution_to_anything(
    history: DeviceHistory, clock: Clock, run: bytes, passed: float, allowed: bool
) -> None:
    terms = replace(TERMS, min_period_seconds=60.0)
    assert history.record(RUN, 1, terms)
    clock.now += passed
    assert history.allows(run, 5, terms) is allowed
    assert history.record(run, 5, terms) is allowed


@pytest.mark.parametrize("back", [1.0, 59.0, 365 * 86400.0])
def test_clock_set_back_gains_nothing(history: DeviceHistory, clock: Clock, back: float) -> None:
    terms = replace(TERMS, min_period_seconds=60.0)
    assert history.record(RUN, 1, terms)
    clock.now -= back
    assert not history.record(RUN, 5, terms)
    clock.now += back + 59.0
    assert not history.record(RUN, 5, terms)
    clock.now += 1.0
    assert history.record(RUN, 5, terms)


def test_refusal_leaves_no_trace(history: DeviceHistory, clock: Clock) -> None:
    terms = replace(TERMS, min_period_seconds=60.0)
    assert history.record(RUN, 1, terms)
    clock.now += 59.0
    assert not history.record(RUN, 5, terms)
    clock.now += 1.0
    assert history.record(RUN, 5, terms)


def test_asking_counts_nothing(history: DeviceHistory) -> None:
    assert all(history.allows(RUN, 1, TERMS) for _ in range(10))
    assert not history.exhausted(RUN, replace(TERMS, max_participations=1))


def test_tag_is_the_same_throughout_a_run_and_another_in_the_next(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    first = opened(path)
    tag = first.tag(RUN)
    assert (len(tag), first.tag(RUN)) == (16, tag)
    assert first.tag(OTHER) != tag
    first.close()
    assert opened(path).tag(RUN) == tag


def test_devices_have_different_tags(tmp_path: Path) -> None:
    assert len({opened(tmp_path / f"{name}.sqlite").tag(RUN) for name in range(5)}) == 5


attempts = st.tuples(st.sampled_from([RUN, OTHER]), st.integers(1, 12), st.sampled_from([-100.0, 0.0, 1.0, 5.0, 10.0]))


@settings(deadline=None, max_examples=30)
@given(
    tries=st.lists(attempts, max_size=15),
    times=st.integers(1, 4),
    separation=st.integers(1, 4),
    period=st.sampled_from([0.0, 5.0, 10.0]),
)
def test_whatever_is_asked_the_contributions_keep_every_limit(
    tries: list[tuple[bytes, int, float]], times: int, separation: int, period: float
) -> None:
    terms = replace(TERMS, max_participations=times, min_separation=separation, min_period_seconds=period)
    clock, accepted = Clock(), list[tuple[bytes, int, float]]()
    with tempfile.TemporaryDirectory() as folder:
        history = aged(DeviceHistory, Path(folder, "device.sqlite"), clock)
        for run, step, pause in tries:
            clock.now += pause
            both = [*accepted, (run, step, clock.now)]
            assert history.record(run, step, terms) is keeps(both, terms)
            accepted = both if keeps(both, terms) else accepted
        history.close()


def keeps(contributions: list[tuple[bytes, int, float]], terms: PrivacyTerms) -> bool:
    """The promise in its plainest form, over every pair and in the order of recording."""
    for run in (RUN, OTHER):
        steps = [step for of, step, _ in contributions if of == run]
        if len(steps) > terms.max_participations or any(b - a < terms.min_separation for a, b in combinations(steps, 2)):
            return False
    return terms.min_period_seconds == 0 or all(
        later - earlier >= terms.min_period_seconds for (*_, earlier), (*_, later) in combinations(contributions, 2)
    )
