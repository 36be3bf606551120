"""Several devices on one server: each counted at most once, whoever is faster, and whoever is a copy."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedrho.client.participant import Outcome, Participant, Result
from fedrho.privacy.vectors import FloatVector, Update
from fedrho.protos.messages import AbortReason, RoundPlan, SessionStatus
from tests.client.fleet import (
    contributions,
    device,
    one_hot,
    opened,
    released,
    small_wire,
    visit,
)


def test_device_that_is_not_needed_any_more_records_nothing(tmp_path: Path) -> None:
    wire = small_wire(goal=1)

    async def train(plan: RoundPlan, weights: FloatVector) -> Update:
        assert (await device(wire, tmp_path / "faster.sqlite").take_part()).result is Result.COUNTED
        return Update(one_hot(1))

    slower = replace(device(wire, tmp_path / "slower.sqlite"), train=train)
    assert visit(slower).result is Result.NOT_COUNTED
    assert contributions(tmp_path / "slower.sqlite") == []
    assert wire.calls.count("upload") == 1


def test_device_with_a_rival_on_the_same_history_gives_its_seat_back(tmp_path: Path) -> None:
    """Two processes share a history by mistake: the second one records first."""
    path = tmp_path / "device.sqlite"
    wire = small_wire(goal=2)

    async def train(plan: RoundPlan, weights: FloatVector) -> Update:
        assert (await device(wire, path).take_part()).result is Result.COUNTED
        return Update(one_hot(1))

    assert visit(replace(device(wire, path), train=train)).result is Result.LATER
    assert wire.aborts == [AbortReason.NOT_ALLOWED]
    assert wire.statuses() == {SessionStatus.COUNTED: 1, SessionStatus.EXPIRED: 1}
    assert len(contributions(path)) == 1


def test_copied_device_is_kept_out_by_its_tag_where_the_server_keeps_a_window(tmp_path: Path) -> None:
    wire = small_wire(goal=2, server_window=True)
    history = opened(tmp_path / "first.sqlite")
    history.tag(wire.server.run)
    history.close()
    shutil.copy(tmp_path / "first.sqlite", tmp_path / "copy.sqlite")
    results = [visit(device(wire, tmp_path / f"{name}.sqlite")).result for name in ("first", "copy", "another")]
    assert results == [Result.COUNTED, Result.LATER, Result.COUNTED]


def test_many_devices_at_once_are_each_counted_at_most_once(tmp_path: Path) -> None:
    """Device i uploads half the unit vector i, so the released sum shows who was counted how often."""
    wire, count = small_wire(goal=5, steps=1), 12
    paths = [tmp_path / f"{number}.sqlite" for number in range(count)]

    async def pause(seconds: float) -> None:
        await asyncio.sleep(0)

    async def train(place: int) -> Update:
        await asyncio.sleep(0.001 * (place % 3))
        return Update(one_hot(place))

    def one(place: int) -> Participant:
        return replace(device(wire, paths[place]), train=lambda plan, weights: train(place), pause=pause)

    async def all_of_them() -> list[Outcome]:
        return await asyncio.gather(*(one(place).take_part() for place in range(count)))

    outcomes = asyncio.run(all_of_them())
    counted = [place for place, outcome in enumerate(outcomes) if outcome.result is Result.COUNTED]
    assert len(counted) == 5
    mean = sum(one_hot(place) for place in counted) / 5
    assert np.abs(released(wire.server) - mean).max() < 1e-5
    assert {place for place in range(count) if contributions(paths[place])} == set(counted)
