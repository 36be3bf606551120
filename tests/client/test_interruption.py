"""A visit is broken off within a second, whatever it is at, and the seat is free again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fedrho.client.conditions import Conditions, Interrupted
from fedrho.client.participant import Train
from fedrho.client.transport import GrpcWire
from fedrho.privacy.vectors import FloatVector, Update
from fedrho.protos.messages import Abort, AbortReason, BeginUpload, Receipt, Reservation, RoundPlan, SessionStatus, Upload
from tests.client.fleet import contributions, gives, networked, one_hot, open_small_run, small_task
from tests.client.serving import dead_port, serving
from tests.server.one_run import OneRun

WITHIN = 1.0


@dataclass
class Switch:
    """A condition that a test turns off."""

    name: str = "switch"
    on: bool = True

    def unmet(self) -> str | None:
        return None if self.on else "it is off"


@dataclass
class Phase:
    """Where a visit is held up, and whether it has come there."""

    name: str
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    async def at(self, name: str) -> None:
        if name == self.name:
            self.reached.set()
            await asyncio.sleep(60.0)


class Held(GrpcWire):
    """A real wire that stands still at one phase."""

    def __init__(self, address: str, phase: Phase) -> None:
        super().__init__(address)
        self._phase = phase

    async def artifact(self, sha256: bytes, size: int) -> bytes:
        await self._phase.at("download")
        return await super().artifact(sha256, size)

    async def begin_upload(self, message: BeginUpload) -> Reservation:
        reservation = await super().begin_upload(message)
        if self._phase.name == "wait":
            self._phase.reached.set()
        return reservation

    async def upload(self, message: Upload, plan: RoundPlan, pace: Callable[[int], Awaitable[None]] | None = None) -> Receipt:
        sent = 0

        async def slow(size: int) -> None:
            nonlocal sent
            sent += size
            if sent > plan.size:  # some of it is on its way
                await self._phase.at("upload")

        return await super().upload(message, plan, slow)


def held_up(phase: Phase) -> Train:
    async def train(plan: RoundPlan, weights: FloatVector) -> Update:
        await phase.at("training")
        return Update(one_hot(3))

    return train


async def interrupted(engine: OneRun, address: str, path: Path, phase: Phase) -> float:
    """Seconds from the end of the condition to the end of the visit."""
    switch, wire = Switch(), Held(address, phase)
    device = networked(wire, path, held_up(phase))
    pausing = type(device)(**{**vars(device), "pause": asyncio.sleep})
    visit = asyncio.create_task(Conditions([switch]).during(pausing.take_part()))
    await asyncio.wait_for(phase.reached.wait(), 20.0)
    switch.on, began = False, time.monotonic()
    with pytest.raises(Interrupted, match="switch: it is off"):
        await visit
    ended = time.monotonic() - began
    await wire.close()
    return ended


@pytest.mark.parametrize("name", ["download", "training", "wait", "upload"])
def test_visit_ends_within_a_second_and_gives_its_seat_back(name: str, tmp_path: Path) -> None:
    engine, path = open_small_run(small_task(goal=1, steps=1), now=time.monotonic()), tmp_path / "device.sqlite"

    async def run() -> tuple[float, set[bytes]]:
        others: set[bytes] = set()
        if name == "wait":  # another device holds the only reservation
            other = engine.seat(time.monotonic())
            engine.reserve(other, time.monotonic())
            others.add(other.session)
        async with serving(engine) as address:
            return await interrupted(engine, address, path, Phase(name)), others

    seconds, others = asyncio.run(run())
    assert seconds < WITHIN
    engine.tick(time.monotonic())
    statuses = [session.status for key, session in engine.round.sessions.items() if key not in others]
    assert statuses == [SessionStatus.EXPIRED]
    assert contributions(path) == ([(engine.run, 1)] if name == "upload" else [])
    assert not engine.finished


def test_device_that_was_interrupted_while_it_uploaded_never_gives_to_that_step_again(tmp_path: Path) -> None:
    engine, path = open_small_run(small_task(goal=1, steps=2), now=time.monotonic()), tmp_path / "device.sqlite"

    async def run() -> None:
        async with serving(engine) as address:
            await interrupted(engine, address, path, Phase("upload"))
            wire = GrpcWire(address)
            await networked(wire, path, gives(one_hot(4))).take_part()
            await wire.close()

    asyncio.run(run())
    assert contributions(path) == [(engine.run, 1)]
    assert np.array_equal(engine.progress.weights, np.zeros_like(engine.progress.weights))


def test_visit_ends_within_a_second_though_its_server_is_gone(tmp_path: Path) -> None:
    engine, switch = open_small_run(small_task(), now=time.monotonic()), Switch()

    async def run() -> float:
        phase = Phase("training")
        async with serving(engine) as address:
            wire = GrpcWire(address)
            device = networked(wire, tmp_path / "device.sqlite", held_up(phase))
            visit = asyncio.create_task(Conditions([switch]).during(device.take_part()))
            await phase.reached.wait()
        switch.on, began = False, time.monotonic()
        with pytest.raises(Interrupted):
            await visit
        ended = time.monotonic() - began
        await wire.close()
        return ended

    assert asyncio.run(run()) < WITHIN


@pytest.mark.parametrize("silent", [False, True])
def test_abort_is_short_and_raises_nothing_where_nobody_answers(silent: bool) -> None:
    async def abort(address: str) -> float:
        wire, began = GrpcWire(address), time.monotonic()
        await wire.abort(Abort(bytes(16), AbortReason.CONDITIONS, bytes(16)))
        ended = time.monotonic() - began
        await wire.close()
        return ended

    with dead_port(listen=silent) as address:
        assert asyncio.run(abort(address)) < 0.6


def test_nothing_is_said_to_the_server_where_no_condition_holds(tmp_path: Path) -> None:
    engine = open_small_run(small_task(), now=time.monotonic())

    async def run() -> None:
        async with serving(engine) as address:
            wire = GrpcWire(address)
            with pytest.raises(Interrupted):
                await Conditions([Switch(on=False)]).during(networked(wire, tmp_path / "d.sqlite", gives(one_hot(0))).take_part())
            await wire.close()

    asyncio.run(run())
    assert engine.round.sessions == {}
