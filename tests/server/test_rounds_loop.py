"""The loop that releases: it finishes what it began before it stops, and stops at the first failure."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from fedrho.protos.messages import Assignment, BeginUpload, Go, Receipt, Refusal, SessionStatus, TryLater
from fedrho.server.release import Commit, RunState, StoreConflict
from fedrho.server.service import DeviceService
from fedrho.server.storage.store import MemoryStore
from tests.server.conftest import MakeEngine
from tests.server.one_run import OneRun


class SlowStore(MemoryStore):
    """Commits when it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.allowed = threading.Event(), threading.Event()

    def commit(self, run: bytes, commit: Commit) -> None:
        self.begun.set()
        assert self.allowed.wait(20)
        super().commit(run, commit)


class BrokenStore(MemoryStore):
    def commit(self, run: bytes, commit: Commit) -> None:
        raise StoreConflict("the disk is full")


def fill(engine: OneRun, reports: int) -> None:
    for _ in range(reports):
        assert engine.send(engine.reserve(engine.seat())).status is SessionStatus.COUNTED


def test_stopping_in_a_release_waits_for_its_commit(make_engine: MakeEngine) -> None:
    store = SlowStore()
    engine = make_engine(store)
    released: list[int] = []
    service = DeviceService(engine.population, lambda: 0.0, lambda run: released.append(run.progress.step))

    async def run() -> None:
        stop = asyncio.Event()
        fill(engine, 3)
        rounds = asyncio.create_task(service.run_rounds(stop))
        await asyncio.to_thread(store.begun.wait, 20)
        stop.set()
        await asyncio.sleep(0.1)
        assert not rounds.done()
        store.allowed.set()
        await rounds

    asyncio.run(run())
    assert (engine.progress.step, released) == (1, [1])


def test_calls_during_a_release_change_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine()
    late, *seats = [engine.seat() for _ in range(4)]
    for session in [engine.reserve(seat) for seat in seats]:
        assert engine.begin_upload(BeginUpload(late.session, late.ticket), 0.0).answer is Go.WAIT
        assert engine.send(session).status is SessionStatus.COUNTED
    attempt = engine.take_full_round()
    with pytest.raises(RuntimeError):
        engine.take_full_round()
    assert isinstance(engine.ask(1e9), TryLater)
    assert engine.send(late.session, now=1e9) == Receipt(SessionStatus.EXPIRED, Refusal.TOO_LATE)
    engine.tick(1e9)
    engine.install(engine.through_gate(attempt, 1e9), 1e9)
    assert engine.progress.step == 1
    with pytest.raises(ValueError, match="another length"):
        engine.through_gate(attempt, 1e9)


def test_a_release_that_fails_ends_the_loop(make_engine: MakeEngine) -> None:
    engine = make_engine(BrokenStore())
    service = DeviceService(engine.population, time.monotonic, lambda _: None)
    fill(engine, 3)
    with pytest.raises(StoreConflict, match="the disk is full"):
        asyncio.run(service.run_rounds(asyncio.Event()))
    assert engine.progress.step == 0


def test_a_run_cancelled_while_its_release_begins_is_released_first(make_engine: MakeEngine) -> None:
    """An operator's call may come between any two steps of the event loop."""
    engine = make_engine()
    service = DeviceService(engine.population, lambda: 0.0, lambda _: None)
    fill(engine, 3)

    async def run() -> bool:
        rounds = asyncio.create_task(service.run_rounds(asyncio.Event()))
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="being released"):
            engine.population.cancel(engine.run)
        while engine.progress.step == 0:
            await asyncio.sleep(0.001)
        engine.population.cancel(engine.run)
        await rounds
        return engine.population.finished

    assert asyncio.run(run())
    (member,) = engine.population.members.values()
    assert member.state is RunState.CANCELLED
    assert engine.progress.step == 1


def test_an_attempt_without_devices_waits_for_the_first(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.tick(1e6)
    assert engine.round.attempt == 1
    answer = engine.ask(1e6)
    assert isinstance(answer, Assignment)
    assert answer.expires_seconds == 10.0
    engine.tick(1e6 + 10.0)
    assert engine.round.attempt == 2


@pytest.mark.parametrize(("reports", "steps"), [(1, 0), (2, 1)])
def test_at_the_deadline_min_reports_decide(reports: int, steps: int, make_engine: MakeEngine) -> None:
    engine = make_engine(**{"goal = 3": "goal = 3\nmin_reports = 2"})
    fill(engine, reports)
    due = []
    for now in (9.99, 10.0):
        engine.tick(now)
        due.append(engine.release_due)
    assert due == [False, bool(steps)]
    if steps:
        engine.release(10.0)
    assert engine.progress.step == steps
    assert engine.round.attempt == (1 if steps else 2)
