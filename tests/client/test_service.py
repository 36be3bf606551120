"""Devices as a service: they outlive servers, runs, conditions and mistakes, and say a line about each visit with an outcome."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fedrho.client import service as service_module
from fedrho.client.app import Owner, Server
from fedrho.client.conditions import Condition, Conditions
from fedrho.client.examples import ArrayExamples, Batch, ExampleStore
from fedrho.client.participant import Outcome, Result
from fedrho.client.scheduler import DAY_SECONDS, Schedule
from fedrho.client.service import Held, first_contact, run_service, span, told
from fedrho.client.transport import GrpcWire
from fedrho.protos.messages import LaterReason, RetryWindow, RoundPlan, SessionStatus
from fedrho.protos.signing import SigningKey
from fedrho.server.storage.store import MemoryStore
from fedrho.server.tasks import Task
from tests.client.fleet import MODELS, SIZE, contributions, open_small_run, small_task
from tests.client.serving import answering, dead_port, listening, serving
from tests.models.reference import made_up
from tests.server.one_run import OneRun, open_one_run


@dataclass
class Elsewhere:
    """A server that may move between two tests of its presence; everybody goes on calling it `here`."""

    address: str = "127.0.0.1:1"
    population_key: bytes | None = None

    def wire(self) -> GrpcWire:
        return Following(self)

    def name_for(self, key: bytes) -> str:
        return f"here {key.hex()}"

    def check(self, key: bytes, epoch: int) -> None:
        pass


class Following(GrpcWire):
    """A wire to wherever the server is now."""

    def __init__(self, server: Elsewhere) -> None:
        super().__init__(server.address)
        self._server, self._at = server, server.address

    async def population(self, request: Any) -> Any:
        if self._at != self._server.address:
            await self._channel.close()
            super().__init__(self._server.address)
            self._at = self._server.address
        return await super().population(request)


def renamed(task: Task, name: str) -> Task:
    return replace(task, file=task.file.model_copy(update={"name": name}))


def held(examples: ExampleStore | None = None) -> Held:
    store = examples or ArrayExamples(*made_up(6, seed=0))
    return Held(("device-0",), lambda model: model in MODELS, lambda name, model: store)


@dataclass
class Switch:
    name: str = "switch"
    on: bool = True

    def unmet(self) -> str | None:
        return None if self.on else "it is off"


class Running:
    """A service under way, and the lines that it has said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, name: str, line: str) -> None:
        self.lines.append(f"{name}: {line}")

    async def until(self, *parts: str, seconds: float = 30.0) -> None:
        """A line with all these parts was said."""
        async with asyncio.timeout(seconds):
            while not any(all(part in line for part in parts) for line in self.lines):
                await asyncio.sleep(0.02)


@asynccontextmanager
async def running(
    server: Any, folder: Path, conditions: list[Condition] | None = None, what: Held | None = None
) -> AsyncIterator[Running]:
    service = Running()
    task = asyncio.create_task(
        run_service(server, what or held(), folder, Owner(conditions=Conditions(conditions or [])), service.say)
    )
    try:
        yield service
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.slow
def test_service_outlives_the_end_of_a_run_and_joins_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "within", lambda window: 0.2)  # where every run has ended, windows are minutes
    store, server = MemoryStore(), Elsewhere()
    first = open_small_run(small_task(steps=1), store, time.monotonic())

    async def run() -> bytes:
        async with running(server, tmp_path) as service:
            async with serving(first) as server.address:
                await service.until("counted, 0 of 1 steps")
                await service.until("nothing more to give")
            service.lines.clear()
            second = open_small_run(renamed(small_task(steps=1), "next"), store, time.monotonic())
            async with serving(second) as server.address:
                await service.until("counted, 0 of 1 steps")
            return second.run

    second_run = asyncio.run(run())
    assert {run for run, _ in contributions(tmp_path / "device-0.sqlite")} == {first.run, second_run}


def test_server_that_is_away_is_tried_again_later_each_time(tmp_path: Path) -> None:
    async def run() -> list[str]:
        with dead_port() as address:
            async with running(Server(address), tmp_path) as service:
                await service.until("away")
                return service.lines

    (line,) = asyncio.run(run())
    assert re.fullmatch(r"device-0: the server is away; next try in \d\.\d s", line)
    assert 0 < Schedule(tmp_path / "device-0.next.json").left(next(iter(_names(tmp_path)))) <= 3.0


def vouched(task: Task) -> OneRun:
    """A run for devices with a token alone."""
    return open_one_run(task, None, SIZE, time.monotonic(), issuer=SigningKey.generate().public)


def test_device_without_a_token_is_told_what_it_needs(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(vouched(small_task())) as address, running(Server(address), tmp_path) as service:
            await service.until(
                "device-0: later, because the server wants a token of its set", "--tokens shows it", "next visit in"
            )

    asyncio.run(run())


def test_why_a_device_was_turned_away_is_said_where_others_were_not_just_first() -> None:
    def line(reason: LaterReason) -> str:
        return told(Outcome(Result.LATER, 0, 3, RetryWindow(0.0, 1.0), reason=reason))

    assert line(LaterReason.NO_SEATS) == line(LaterReason.RELEASING) == "later, 0 of 3 steps released"
    assert line(LaterReason.PAUSED) == "later, because the operator has paused the run, 0 of 3 steps released"


def _names(folder: Path) -> Iterator[str]:
    yield from re.findall(r'"(127[^"]+)"', (folder / "device-0.next.json").read_text())


def test_server_that_sends_nonsense_is_left_alone_for_a_day(tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def nonsense(request: bytes, context: Any) -> bytes:
        asked.append(request)
        return b""

    async def run() -> str:
        async with listening(answering(GetPopulation=nonsense)) as address, running(Server(address), tmp_path) as service:
            await service.until("next try in a day")
            await asyncio.sleep(1.0)
            return address

    address = asyncio.run(run())
    assert len(asked) == 1
    assert DAY_SECONDS - 10 < Schedule(tmp_path / "device-0.next.json").left(address) <= DAY_SECONDS + 3600

    async def again() -> list[str]:
        async with running(Server(address), tmp_path) as service:
            await asyncio.sleep(0.5)
            return service.lines

    assert asyncio.run(again()) == []  # a restart changes nothing


def test_nothing_begins_before_the_conditions_hold_and_what_has_begun_is_broken_off(tmp_path: Path) -> None:
    engine, switch = open_small_run(small_task(steps=1), now=time.monotonic()), Switch(on=False)

    class Slow(ArrayExamples):
        def batches(self, plan: RoundPlan) -> Iterator[Batch]:
            for batch in super().batches(plan):
                time.sleep(0.3)
                yield batch

    slow = held(Slow(*made_up(400, seed=0)))

    async def run() -> None:
        async with serving(engine) as address, running(Server(address), tmp_path, [switch], slow) as service:
            await service.until("waits, switch: it is off")
            assert engine.round.sessions == {}
            switch.on = True
            async with asyncio.timeout(20):
                while not engine.round.sessions:
                    await asyncio.sleep(0.02)
            switch.on = False
            began = time.monotonic()
            await service.until("interrupted, switch: it is off; next try in")
            assert time.monotonic() - began < 1.0
            engine.tick(time.monotonic())
            assert [session.status for session in engine.round.sessions.values()] == [SessionStatus.EXPIRED]

    asyncio.run(run())
    assert contributions(tmp_path / "device-0.sqlite") == []


def test_stopping_gives_the_seat_back_within_a_second(tmp_path: Path) -> None:
    engine = open_small_run(small_task(steps=1), now=time.monotonic())

    class Slow(ArrayExamples):
        def batches(self, plan: RoundPlan) -> Iterator[Batch]:
            for batch in super().batches(plan):
                time.sleep(0.2)
                yield batch

    async def run() -> float:
        async with serving(engine) as address:
            async with running(Server(address), tmp_path, [], held(Slow(*made_up(400, seed=0)))):
                async with asyncio.timeout(20):
                    while not engine.round.sessions:
                        await asyncio.sleep(0.02)
                began = time.monotonic()
            return time.monotonic() - began

    assert asyncio.run(run()) < 1.0
    engine.tick(time.monotonic())
    assert [session.status for session in engine.round.sessions.values()] == [SessionStatus.EXPIRED]


@pytest.mark.slow
def test_lines_hold_nothing_of_examples_or_tags(tmp_path: Path) -> None:
    engine = open_small_run(small_task(steps=2, server_window=True), now=time.monotonic())

    class Telling(ArrayExamples):
        def batches(self, plan: RoundPlan) -> Iterator[Batch]:
            raise LookupError("patient 4711 has no blood pressure")

    async def run(what: Held, *parts: str) -> list[str]:
        async with serving(engine) as address, running(Server(address), tmp_path, what=what) as service:
            await service.until(*parts)
            return service.lines

    lines = asyncio.run(run(held(), "counted"))
    lines += asyncio.run(run(held(Telling(*made_up(6, seed=0))), "device-0"))
    assert not any("4711" in line or "blood" in line for line in lines)
    tag = _tag(tmp_path / "device-0.sqlite")
    assert not any(tag.hex() in line or repr(tag)[2:-1] in line for line in lines)


def _tag(path: Path) -> bytes:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(path)) as database:
        return bytes(database.execute("SELECT tag FROM tags").fetchone()[0])


def test_first_contact_waits_for_a_server(tmp_path: Path) -> None:
    engine, server = open_small_run(small_task(), now=time.monotonic()), Elsewhere()
    lines: list[str] = []

    def say(name: str, line: str) -> None:
        lines.append(line)

    async def run() -> str:
        at: Any = server
        waiting = asyncio.create_task(first_contact(at, tmp_path / "new", Conditions([]), say))
        while not lines:
            await asyncio.sleep(0.02)
        async with serving(engine) as server.address:
            return (await asyncio.wait_for(waiting, 20.0)).tasks[0].task

    assert asyncio.run(run()) == "small"
    assert "the server is away; next try in" in lines[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.05, "0.1 s"), (9.94, "9.9 s"), (89.0, "89 s"), (90.0, "2 min"), (1800.0, "30 min"), (5400.0, "2 h"), (86_400.0, "24 h")],
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert span(seconds) == text
