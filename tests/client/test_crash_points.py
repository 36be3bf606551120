"""A device that dies between any two steps of an upload: what the server counts is in the ledger, and no step is given twice."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrho.client import marker
from fedrho.client.history import DeviceHistory
from fedrho.client.history_file import HistoryFile
from fedrho.client.participant import Participant, Result
from fedrho.client.spec import SpecReader
from fedrho.privacy.vectors import FloatVector, Update
from fedrho.protos import messages as m
from tests.client.fleet import (
    MODELS,
    SIZE,
    LocalWire,
    contributions,
    one_hot,
    open_small_run,
    released,
    small_task,
    visit,
)
from tests.client.serving import serving
from tests.server.one_run import new_id


class Crash(BaseException):
    """The process is gone; nothing catches it."""


@dataclass
class Dying(LocalWire):
    """Counts the steps of a visit, and dies at one of them."""

    left: int = 10**9
    passed: list[str] = field(default_factory=list)

    def step(self, name: str) -> None:
        self.passed.append(name)
        self.left -= 1
        if self.left == 0:
            raise Crash(name)

    async def population(self, request: m.PopulationRequest) -> m.PopulationAnswer:
        answer = await super().population(request)
        self.step("population")
        return answer

    async def check_in(self, message: m.CheckIn) -> m.Assignment | m.TryLater:
        answer = await super().check_in(message)
        self.step("check in")
        return answer

    async def artifact(self, sha256: bytes, size: int) -> bytes:
        data = await super().artifact(sha256, size)
        self.step("artifact")
        return data

    async def begin_upload(self, message: m.BeginUpload) -> m.Reservation:
        reservation = await super().begin_upload(message)
        self.step("go")
        return reservation

    async def upload(self, message: m.Upload, plan: m.RoundPlan) -> m.Receipt:
        self.step("upload begun")
        receipt = await super().upload(message, plan)
        self.step("upload counted")
        return receipt


@contextmanager
def dying_in_the_file(wire: Dying) -> Iterator[None]:
    """Between the steps of the record, too."""
    write, mark, keep = marker.write, HistoryFile.mark, HistoryFile.keep_time

    def stepped_keep(self: HistoryFile) -> None:
        wire.step("recording")
        keep(self)

    def stepped_mark(self: HistoryFile) -> None:
        wire.step("committed")
        mark(self)
        wire.step("marked")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HistoryFile, "keep_time", stepped_keep)
        patch.setattr(HistoryFile, "mark", stepped_mark)
        yield
    assert marker.write is write


@dataclass
class Device:
    """Begins anew after each death, with nothing but its history."""

    wire: Dying
    path: Path
    place: int

    def visit(self, dies_at: int) -> Result | str:
        self.wire.left, self.wire.passed = dies_at, []
        history = DeviceHistory(self.path)
        try:
            with dying_in_the_file(self.wire):
                return visit(self._participant(history)).result
        except Crash as crash:
            return str(crash)
        finally:
            history.close()

    def _participant(self, history: DeviceHistory) -> Participant:
        async def train(plan: m.RoundPlan, weights: FloatVector) -> Update:
            self.wire.step("trained")
            return Update(one_hot(self.place))

        async def pause(seconds: float) -> None:
            self.wire.now += seconds

        reader = SpecReader(self.wire.population, lambda key, epoch: history.trust("here", key, epoch), lambda: self.wire.now)
        return Participant(self.wire, reader, history, MODELS, train, pause, new_id)

    def given(self) -> list[int]:
        return [step for _, step in contributions(self.path)] if self.path.exists() else []


STEPS = [
    "population",
    "check in",
    "artifact",
    "trained",
    "go",
    "recording",
    "committed",
    "marked",
    "upload begun",
    "upload counted",
]


def run_of_three() -> Dying:
    return Dying(open_small_run(small_task(steps=3, goal=1, overselect=9.0, max_times=3)))


def test_visit_has_the_steps_that_are_tested_here(tmp_path: Path) -> None:
    wire = run_of_three()
    assert Device(wire, tmp_path / "device.sqlite", 0).visit(10**9) is Result.COUNTED
    assert wire.passed == STEPS


@pytest.mark.parametrize("number", range(1, len(STEPS) + 1), ids=STEPS)
def test_death_at_each_step_counts_at_most_once_and_only_what_is_recorded(tmp_path: Path, number: int) -> None:
    wire = run_of_three()
    device = Device(wire, tmp_path / "device.sqlite", 2)
    assert device.visit(number) == STEPS[number - 1]
    recorded = number >= STEPS.index("committed") + 1
    assert device.given() == ([1] if recorded else [])
    again = device.visit(10**9)
    assert (again is Result.COUNTED) is not recorded
    counted = wire.statuses()[m.SessionStatus.COUNTED]
    assert counted == (0 if recorded and STEPS[number - 1] != "upload counted" else 1)
    if counted:
        assert np.abs(released(wire.server) - one_hot(2)).max() < 1e-5


@settings(deadline=None, max_examples=25)
@given(deaths=st.lists(st.tuples(st.integers(0, 1), st.integers(1, len(STEPS) + 2)), max_size=10))
def test_whenever_devices_die_what_was_counted_is_in_their_ledgers_once(deaths: list[tuple[int, int]]) -> None:
    wire, moved = run_of_three(), np.zeros(SIZE, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        devices = [Device(wire, Path(folder, f"{place}.sqlite"), place) for place in range(2)]
        for which, dies_at in [*deaths, (0, 10**9), (1, 10**9)]:
            if wire.server.finished:
                break
            devices[which].visit(dies_at)
            if wire.server.release_due:
                moved = moved + released(wire.server)
        for place, one in enumerate(devices):
            given = one.given()
            assert len(given) == len(set(given)) <= 3
            assert moved[place] <= 0.5 * len(given) + 1e-4
            assert Counter(given) == Counter(dict.fromkeys(given, 1))


# -- a real server, a real process, a real signal ----------------------------------------------------------------------------

CHILD = """
import asyncio, os, signal, sys, time
from pathlib import Path
import numpy as np
from fedrho.client import marker, transport
from fedrho.client.history import DeviceHistory
from fedrho.client.history_file import HistoryFile
from fedrho.client.participant import Participant
from fedrho.client.spec import SpecReader
from fedrho.client.transport import GrpcWire
from fedrho.privacy.vectors import Update

address, path, point = sys.argv[1], Path(sys.argv[2]), sys.argv[3]

def die(*arguments, **named): os.kill(os.getpid(), signal.SIGKILL)

async def run():
    wire, history = GrpcWire(address), DeviceHistory(path)
    async def train(plan, weights): return Update(np.full(plan.size, 0.01, dtype=np.float32))
    async def pause(seconds): await asyncio.sleep(seconds)
    if point == "at go":
        history.record = die
    if point == "in the transaction":
        HistoryFile.keep_time = die
    if point == "before the marker":
        HistoryFile.mark = die
    upload = wire.upload
    async def dying(message, plan):
        if point == "before the first byte": die()
        if point == "in the upload":
            asyncio.get_running_loop().call_later(0.002, die)
        receipt = await upload(message, plan)
        if point in ("after the receipt", "in the upload"): die()
        return receipt
    wire.upload = dying
    reader = SpecReader(wire.population, lambda key, epoch: history.trust("there", key, epoch), time.monotonic)
    device = Participant(wire, reader, history, {"digits-logistic"}, train, pause, lambda: os.urandom(16))
    print((await device.take_part()).result.value, flush=True)
    await wire.close()
    history.close()

asyncio.run(run())
"""
POINTS = ["at go", "in the transaction", "before the marker", "before the first byte", "in the upload", "after the receipt"]


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_killed_process_is_counted_only_for_what_its_ledger_holds(tmp_path: Path, point: str) -> None:
    path = tmp_path / "device.sqlite"
    engine = open_small_run(replace(small_task(steps=2, goal=1, overselect=9.0, max_times=2)), now=time.monotonic())

    async def child(address: str, point: str) -> int | None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, address, str(path), point)
        await asyncio.wait_for(process.wait(), 60)
        return process.returncode

    def counted() -> int:
        sessions = engine.round.sessions.values()
        return engine.progress.step + sum(one.status is m.SessionStatus.COUNTED for one in sessions)

    async def run() -> None:
        async with serving(engine) as address:
            assert await child(address, point) == -signal.SIGKILL
            await asyncio.sleep(0.3)
            assert counted() <= len(contributions(path)) == (0 if point in POINTS[:2] else 1)
            assert await child(address, "never") == 0
            await asyncio.sleep(0.3)
            assert counted() <= len(contributions(path))
            if point in POINTS[:2]:
                assert counted() == 1

    asyncio.run(run())
