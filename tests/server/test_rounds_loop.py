"""The loop that releases: it finishes what it began before it stops, and stops at the first failure."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from fedrho.protos.messages import Assignment, BeginUpload, CheckIn, Refusal, SessionStatus, TryLater, Upload
from fedrho.server.coordinator import Coordinator
from fedrho.server.release import Commit, StoreConflict
from fedrho.server.service import DeviceService
from fedrho.server.store import MemoryStore

SIZE = 12
MakeEngine = Callable[..., Coordinator]


class SlowStore(MemoryStore):
    """Commits when it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.allowed = threading.Event(), threading.Event()

    def commit(self, commit: Commit) -> None:
        self.begun.set()
        assert self.allowed.wait(20)
        super().commit(commit)


class BrokenStore(MemoryStore):
    def commit(self, commit: Commit) -> None:
        raise StoreConflict("the disk is full")


def seat(engine: Coordinator) -> bytes:
    answer = engine.check_in(CheckIn(os.urandom(16), engine.run), 0.0)
    assert isinstance(answer, Assignment)
    return answer.session


def fill(engine: Coordinator, reports: int) -> None:
    for _ in range(reports):
        session = seat(engine)
        engine.begin_upload(BeginUpload(session), 0.0)
        assert engine.upload(Upload(session, np.zeros(SIZE, dtype=np.int32)), 0.0).status is SessionStatus.COUNTED


def test_stopping_in_a_release_waits_for_its_commit(make_engine: MakeEngine) -> None:
    store = SlowStore()
    engine = make_engine(store, size=SIZE)
    released: list[int] = []
    service = DeviceService(engine, lambda: 0.0, lambda run: released.append(run.progress.step))

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
    engine = make_engine(size=SIZE)
    waiting = seat(engine)
    fill(engine, 3)
    attempt = engine.take_full_round()
    with pytest.raises(RuntimeError):
        engine.take_full_round()
    assert isinstance(engine.check_in(CheckIn(os.urandom(16), engine.run), 1e9), TryLater)
    receipt = engine.upload(Upload(waiting, np.zeros(SIZE, dtype=np.int32)), 1e9)
    assert receipt.refusal is Refusal.TOO_LATE
    engine.tick(1e9)
    engine.install(engine.through_gate(attempt, 1e9), 1e9)
    assert engine.progress.step == 1
    with pytest.raises(ValueError, match="another length"):
        engine.through_gate(attempt, 1e9)


def test_a_release_that_fails_ends_the_loop(make_engine: MakeEngine) -> None:
    engine = make_engine(BrokenStore(), size=SIZE)
    service = DeviceService(engine, time.monotonic, lambda _: None)
    fill(engine, 3)
    with pytest.raises(StoreConflict, match="the disk is full"):
        asyncio.run(service.run_rounds(asyncio.Event()))
    assert engine.progress.step == 0


def test_an_attempt_without_devices_waits_for_the_first(make_engine: MakeEngine) -> None:
    engine = make_engine(size=SIZE)
    engine.tick(1e6)
    assert engine.round.attempt == 1
    answer = engine.check_in(CheckIn(os.urandom(16), engine.run), 1e6)
    assert isinstance(answer, Assignment)
    assert answer.expires_seconds == 10.0
    engine.tick(1e6 + 10.0)
    assert engine.round.attempt == 2


@pytest.mark.parametrize(("reports", "steps"), [(1, 0), (2, 1)])
def test_at_the_deadline_min_reports_decide(reports: int, steps: int, make_engine: MakeEngine) -> None:
    engine = make_engine(size=SIZE, **{"goal = 3": "goal = 3\nmin_reports = 2"})
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
