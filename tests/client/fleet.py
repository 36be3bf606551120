"""A small run to visit: a real engine, a wire without a network, and devices that do as they are told."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedrho.client.history import DeviceHistory
from fedrho.client.participant import BEFORE_REPEATING, Outcome, Participant, Train, Wire
from fedrho.client.spec import SpecReader
from fedrho.privacy.vectors import FloatVector, Update
from fedrho.protos import codec
from fedrho.protos import messages as m
from fedrho.server.release import Store
from fedrho.server.tasks import Task, parse_task
from tests.server.one_run import OneRun, new_id, open_one_run

SIZE = 650
MODELS = {"digits-logistic"}
TASK = """
name = "small"
algorithm = "dp-fedavg"
model = "digits-logistic"
steps = {steps}
population = 1000
[round]
goal = {goal}
overselect = {overselect}
deadline_seconds = 100
lease_seconds = 10
retry_seconds = [0.125, 0.25]
[privacy]
clip_norm = 1.0
rho = 1e12   # noise below one grid unit: releases can be compared with what was uploaded
delta = 1e-9
grid_bits = 20
[participation]
max_times = {max_times}
min_separation = {min_separation}
server_window = {server_window}
"""


def small_task(
    steps: int = 2,
    goal: int = 1,
    overselect: float = 2.0,
    max_times: int = 2,
    min_separation: int = 1,
    server_window: bool = False,
) -> Task:
    window = str(server_window).lower()
    text = TASK.format(
        steps=steps, goal=goal, overselect=overselect, max_times=max_times, min_separation=min_separation, server_window=window
    )
    return parse_task(text, "small.toml")


def open_small_run(task: Task, store: Store | None = None, now: float = 0.0) -> OneRun:
    return open_one_run(task, store, SIZE, now)


@dataclass
class LocalWire:
    """`Wire` straight into an engine: what is sent is encoded and decoded, and every call is noted."""

    server: OneRun
    now: float = 1.0
    calls: list[str] = field(default_factory=list)
    aborts: list[m.AbortReason] = field(default_factory=list)

    def to(self, address: str) -> LocalWire:
        assert address == ""
        return self

    async def population(self, request: m.PopulationRequest) -> m.PopulationAnswer:
        self.calls.append("population")
        return codec.decode(m.PopulationAnswer, codec.encode(self.server.spec(request, self.now)))

    async def check_in(self, message: m.CheckIn) -> m.Assignment | m.TryLater:
        self.calls.append("check in")
        return codec.decode_answer(codec.encode_answer(self.server.check_in(message, self.now)))

    async def artifact(self, sha256: bytes, size: int) -> bytes:
        self.calls.append("artifact")
        data = self.server.artifact(sha256)
        assert data is not None
        return data

    async def begin_upload(self, message: m.BeginUpload) -> m.Reservation:
        self.calls.append("begin upload")
        return codec.decode(m.Reservation, codec.encode(self.server.begin_upload(message, self.now)))

    async def upload(self, message: m.Upload, plan: m.RoundPlan) -> m.Receipt:
        self.calls.append("upload")
        payload = codec.encode_vector(message.vector, plan.encoding)
        chunks = [payload[start : start + plan.chunk_bytes] for start in range(0, len(payload), plan.chunk_bytes)]
        arrived = codec.decode_vector(b"".join(chunks), plan.encoding)
        return self.server.upload(m.Upload(message.session, arrived), self.now)

    async def status(self, message: m.StatusRequest) -> m.StatusAnswer:
        self.calls.append("status")
        return self.server.upload_status(message, self.now)

    async def abort(self, message: m.Abort) -> None:
        self.calls.append("abort")
        self.aborts.append(message.reason)
        self.server.abort(message, self.now)

    def statuses(self) -> Counter[m.SessionStatus]:
        """What became of the sessions of the open attempt."""
        self.server.tick(self.now)
        return Counter(session.status for session in self.server.round.sessions.values())


def plan(**changes: Any) -> m.RoundPlan:
    """A plan for local work on the small run's model; `changes` are fields of it."""
    base = m.RoundPlan(
        run=bytes(16),
        step=1,
        attempt=1,
        model="digits-logistic",
        checkpoint_sha256=bytes(32),
        size=SIZE,
        clip_norm=1.0,
        grid_bits=20,
        encoding=m.Encoding.INT32_LE,
        epochs=1,
        batch_size=4,
        learning_rate=0.5,
        chunk_bytes=1024,
        max_examples=0,
    )
    return replace(base, **changes)


def small_wire(**limits: Any) -> LocalWire:
    return LocalWire(open_small_run(small_task(**limits)))


async def no_pause(seconds: float) -> None:
    """Time stands still: the only wait that a device without rivals may ask for is the one before it repeats an upload."""
    assert seconds == BEFORE_REPEATING, f"nobody should have to wait, but {seconds} s were asked for"


def one_hot(place: int, length: float = 0.5) -> FloatVector:
    """An update that shows in the sum who was counted, and how often."""
    vector = np.zeros(SIZE, dtype=np.float32)
    vector[place] = length
    return vector


def gives(vector: FloatVector) -> Train:
    """Training whose outcome is known."""

    async def train(plan: m.RoundPlan, weights: FloatVector) -> Update:
        return Update(vector)

    return train


OPENED: list[DeviceHistory] = []
"""Closed after each test, in conftest.py."""


def opened(path: Path, clock: Callable[[], float] = time.time) -> DeviceHistory:
    OPENED.append(DeviceHistory(path, clock))
    return OPENED[-1]


def specs(wire: LocalWire, history: DeviceHistory) -> SpecReader:
    return SpecReader(wire.population, lambda key, epoch: history.trust("here", key, epoch), lambda: wire.now)


def device(wire: LocalWire, path: Path, place: int = 0) -> Participant:
    """A device with a history at `path`, at a time when every period has passed, whose update is `one_hot(place)`."""
    history = opened(path)
    return Participant(wire, specs(wire, history), history, MODELS, gives(one_hot(place)), no_pause, new_id)


def networked(wire: Wire, path: Path, train: Train) -> Participant:
    """The same behind any wire."""
    history = opened(path)
    reader = SpecReader(wire.population, lambda key, epoch: history.trust("there", key, epoch), time.monotonic)
    return Participant(wire, reader, history, MODELS, train, no_pause, new_id)


def visit(participant: Participant) -> Outcome:
    return asyncio.run(participant.take_part())


def contributions(path: Path) -> list[tuple[bytes, int]]:
    """What the file of a history holds, read beside it."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return [(bytes(run), step) for run, step in database.execute("SELECT run, step FROM contributions ORDER BY step")]


def released(server: OneRun) -> FloatVector:
    """Goes through the gate, and returns by how much the weights moved."""
    before = server.progress.weights
    server.release(2.0)
    return server.progress.weights - before
