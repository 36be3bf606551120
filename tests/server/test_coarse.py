"""What operators see of who came, at every moment and for whoever knows all other devices: one of them moves next to nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise, product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from prometheus_client import generate_latest

from fedrho.protos.messages import Receipt, Refusal, SessionStatus
from fedrho.server.coarse import FATES, GROUP, MOST_HELD, Groups, ShownDropOut, shown_fill, whole
from fedrho.server.operations.metrics import Metrics
from fedrho.server.pace import DropOut

Fates = tuple[int, int]
"""Of an attempt: how many devices came to upload, and how many did not."""

# -- how full a round is ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("goal", range(1, 61))
def test_between_two_fills_there_is_a_whole_group_whatever_the_goal(goal: int) -> None:
    shown = [shown_fill(counted, goal) for counted in range(goal + 1)]
    moves = [0, *(counted for counted in range(1, goal + 1) if shown[counted] != shown[counted - 1])]
    assert (shown[0], moves[-1]) == (0.0, goal), "that it is full is seen by the release"
    assert all(later - earlier >= min(GROUP, goal) for earlier, later in pairwise(moves))
    assert all(fill <= counted / goal for counted, fill in enumerate(shown))
    assert all(10 * fill == pytest.approx(round(10 * fill)) for fill in shown)


@pytest.mark.parametrize(("goal", "seen"), [(3, 2), (9, 2), (10, 3), (12, 3), (30, 7), (200, 11)])
def test_a_round_is_seen_to_fill(goal: int, seen: int) -> None:
    assert len({shown_fill(counted, goal) for counted in range(goal + 1)}) == seen


# -- the drop-out ----------------------------------------------------------------------------------------------------------------


def rates(history: Sequence[Fates]) -> list[float]:
    """What is shown after each attempt."""
    shown, seen = ShownDropOut(0.25), []
    for fates in history:
        shown = shown.observed(*fates)
        seen.append(shown.rate)
    return seen


def shares(history: Sequence[Fates]) -> list[tuple[int, int, int]]:
    """The plain way: after which attempt a share is shown, of how many devices, and how many of them dropped out."""
    found, kept, dropped = [], 0, 0
    for place, fates in enumerate(history):
        kept, dropped = kept + fates[0], dropped + fates[1]
        if kept + dropped >= FATES:
            found.append((place, kept + dropped, dropped))
            kept = dropped = 0
    return found


HISTORIES = st.integers(1, 60).flatmap(
    lambda most: st.lists(st.tuples(st.integers(0, most), st.integers(0, most)), min_size=1, max_size=60)
)


def test_a_share_is_of_many_and_in_tenths() -> None:
    assert rates([(4, 1)] * 9) == [0.25] * 9, "what the task expects, until there are enough"
    assert rates([(4, 1)] * 20)[9:] == [0.2] * 11
    assert rates([(4, 1)] * 10 + [(2, 3)] * 10)[-1] == 0.6


@given(HISTORIES, st.data())
def test_whether_one_device_dropped_out_shows_once_at_most_and_only_where_it_makes_a_tenth(
    history: list[Fates], data: st.DataObject
) -> None:
    """Both histories have the same attempts and the same devices; one of them dropped out in one and not in the other."""
    places = [place for place, (kept, _) in enumerate(history) if kept]
    assume(places)
    place = data.draw(st.sampled_from(places))
    other = [(kept - (at == place), dropped + (at == place)) for at, (kept, dropped) in enumerate(history)]
    ours, theirs = rates(history), rates(other)
    differ = [at for at, (one, two) in enumerate(zip(ours, theirs, strict=True)) if one != two]
    shown = [share for share in shares(history) if share[0] >= place][:1]
    if not differ:
        return
    ((at, seated, dropped),) = shown
    until = [share[0] for share in shares(history) if share[0] > at][:1] or [len(history)]
    assert set(differ) <= set(range(at, until[0])), "while the share that the device is in is shown"
    assert round(10 * dropped / seated) != round(10 * (dropped + 1) / seated), "it makes a tenth"
    assert abs(ours[at] - theirs[at]) == pytest.approx(0.1)


@pytest.mark.parametrize("goal", range(1, 13))
def test_it_makes_a_tenth_in_one_case_of_five_at_most(goal: int) -> None:
    """Over all that the others may have done: of a goal's seats, as many times as it takes."""
    seated = -(-FATES // goal) * goal
    moved = [rates([(seated - dropped, dropped)]) != rates([(seated - dropped - 1, dropped + 1)]) for dropped in range(seated)]
    assert sum(moved) == 10
    assert sum(moved) / len(moved) <= 1 / GROUP


def test_a_device_that_was_not_there_at_all_shows_no_earlier_than_its_share_is_full() -> None:
    for kept, dropped in product(range(4), range(4)):
        for attempts in range(1, 40):
            with_it, without = [(kept + 1, dropped)] + [(kept, dropped)] * attempts, [(kept, dropped)] * (attempts + 1)
            seen = zip(rates(with_it), rates(without), strict=True)
            differ = [at for at, (one, two) in enumerate(seen, 1) if one != two]
            assert all(at * (kept + dropped) + 1 >= FATES for at in differ[:1])


@given(HISTORIES)
def test_that_a_share_was_measured_follows_from_the_number_of_seats_alone(history: list[Fates]) -> None:
    shown, seats = ShownDropOut(0.25), 0
    for kept, dropped in history:
        shown, seats = shown.observed(kept, dropped), seats + kept + dropped
        assert shown.measured == (seats >= FATES)
        assert shown.measured or shown.rate == 0.25


def test_the_rate_that_makes_the_seats_does_tell_which_is_why_it_is_not_shown() -> None:
    """So the tests above could fail: after one small attempt, two histories that differ in one device differ by its seats."""
    one, other = DropOut.of_task(None).observed(5, 2), DropOut.of_task(None).observed(4, 3)
    assert round(one.rate, 2) != round(other.rate, 2)
    assert [ShownDropOut(0.25).observed(5, 2).rate, ShownDropOut(0.25).observed(4, 3).rate] == [0.25, 0.25]


# -- counters --------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), max_size=60))
def test_values_are_told_by_the_group_each_once_and_in_their_order(values: list[tuple[str, int]]) -> None:
    told: dict[str, list[float]] = {"a": [], "b": []}
    groups = Groups[str](lambda key, value: told[key].append(value))
    for count, (key, value) in enumerate(values, 1):
        groups.add(key, value)
        for name in "ab":
            came = [number for other, number in values[:count] if other == name]
            assert told[name] == came[: whole(len(came))]


def test_what_is_held_is_told_on_demand_and_does_not_fill_the_memory() -> None:
    told: list[float] = []
    groups = Groups[str](lambda key, value: told.append(value))
    for number in range(MOST_HELD - 1):
        groups.hold("a", number)
    assert told == []
    groups.hold("a")
    assert len(told) == whole(MOST_HELD)
    groups.hold("a")
    groups.tell_all()
    assert len(told) == whole(MOST_HELD + 1)


def happens(metrics: Metrics, event: str) -> None:
    """What one caller does."""
    match event:
        case "counted":
            metrics.uploaded(Receipt(SessionStatus.COUNTED))
            with metrics.open("UploadUpdate"):
                metrics.called("UploadUpdate", "OK", 0.25)
        case "refused":
            metrics.uploaded(Receipt(SessionStatus.REFUSED, Refusal.TOO_LATE))
        case "gone":
            metrics.called("UploadUpdate", "CANCELLED", 0.5)
        case "junk":
            metrics.refused("MALFORMED")
        case "moved":
            metrics.observe(())


def scraped(events: Sequence[str]) -> list[bytes]:
    metrics = Metrics(with_runs=True)
    metrics.expect(["UploadUpdate"])
    seen = []
    for event in events:
        happens(metrics, event)
        seen.append(without_births(generate_latest(metrics.registry)))
    return seen


def without_births(text: bytes) -> bytes:
    """When a series began, which differs between any two processes."""
    return b"\n".join(line for line in text.splitlines() if b"_created" not in line)


@pytest.mark.parametrize("kind", ["counted", "refused", "gone", "junk"])
def test_every_value_of_every_series_is_a_whole_group_and_nothing_moves_for_one_caller(kind: str) -> None:
    seen = scraped(["moved", *([kind] * 3 * GROUP)])
    changed = [number for number, (before, after) in enumerate(pairwise(seen), 1) if before != after]
    assert all(number % GROUP == 0 for number in changed)
    assert bool(changed) == (kind != "counted"), "of updates that are counted nothing is told before a run has moved"
    assert scraped(["moved", *([kind] * GROUP), "moved"])[-1] != seen[0]


def test_updates_that_are_counted_move_no_metric_but_when_a_run_is_seen_to_move() -> None:
    draw = random.Random(5)
    for _ in range(20):
        events = draw.choices(["counted", "moved"], [5, 1], k=60)
        seen = scraped(events)
        for event, (before, after) in zip(events[1:], pairwise(seen), strict=True):
            assert event == "moved" or before == after
