"""Days and hours made into rounds, against a clock that is simulated round by round."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrho.privacy.participation import Participation

counts = st.integers(1, 60)
spans = st.fractions(Fraction(1, 50), 20, max_denominator=50)
pauses = st.fractions(1, 72, max_denominator=8)


def eager(steps: int, days: Fraction, hours: Fraction, first: int) -> list[int]:
    """The rounds of a device that comes in round `first` and then whenever `hours` have passed since its latest round."""
    clock = [step * days * 24 / steps for step in range(steps)]
    rounds: list[int] = []
    for step in range(first, steps):
        if not rounds or clock[step] - clock[rounds[-1]] >= hours:
            rounds.append(step)
    return [step + 1 for step in rounds]


@settings(deadline=None)
@given(
    st.integers(1, 60), st.fractions(Fraction(1, 50), 20, max_denominator=50), st.fractions(1, 72, max_denominator=8), st.data()
)
def test_whoever_keeps_the_hours_keeps_the_promise_in_rounds(
    steps: int, days: Fraction, hours: Fraction, data: st.DataObject
) -> None:
    promise = Participation.from_days(steps, float(days), float(hours))
    rounds = eager(steps, days, hours, data.draw(st.integers(0, steps - 1)))
    assert all(promise.allows(rounds[:i], step) for i, step in enumerate(rounds))


@settings(deadline=None)
@given(counts, spans, pauses)
def test_the_promise_is_no_stricter_than_it_must_be(steps: int, days: Fraction, hours: Fraction) -> None:
    """The most rounds of the eager device is what is promised, or one less where the last window holds no round."""
    promise = Participation.from_days(steps, float(days), float(hours))
    visits = [eager(steps, days, hours, first) for first in range(steps)]
    most, gaps = max(map(len, visits)), [later - earlier for visit in visits for earlier, later in itertools.pairwise(visit)]
    assert promise.most_times(steps) >= most
    if gaps:
        assert min(gaps) - 1 <= promise.min_separation <= min(gaps)


def test_the_founding_model_in_days() -> None:
    assert Participation.from_days(2000, 6) == Participation(6, 333)
    assert Participation.from_days(2000, 6.4) == Participation(7, 312)
    assert Participation.from_days(100, 1) == Participation(1, 100)
    assert Participation.from_days(10, 5, hours_between=12) == Participation(10, 1)


@pytest.mark.parametrize("nonsense", [0.0, -1.0, math.nan, math.inf])
def test_no_length_of_time(nonsense: float) -> None:
    with pytest.raises(ValueError, match="days"):
        Participation.from_days(10, nonsense)
    with pytest.raises(ValueError, match="hours"):
        Participation.from_days(10, 1.0, nonsense)
    with pytest.raises(ValueError, match="steps"):
        Participation.from_days(0, 1.0)


@pytest.mark.parametrize(("days", "hours"), [(1e300, 1.0), (1e-300, 1.0), (1.0, 1e-300), (1.0, 1e300)])
def test_absurd_lengths_of_time_stay_within_the_run(days: float, hours: float) -> None:
    promise = Participation.from_days(10, days, hours)
    assert 1 <= promise.max_times <= 10
    assert 1 <= promise.min_separation <= 10
