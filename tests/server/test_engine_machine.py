"""Random histories of the engine, every device's upload a distinct unit vector, against a list of what was counted.

The noise multiplier is so small that all noise rounds to zero, so a release shows its sum: any entry that is not 0 or 1 is a
double count, any entry of a device that the releasing attempt did not count is a leak from somewhere else.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.participation import Participation
from fedrho.protos.messages import (
    Abort,
    AbortReason,
    Assignment,
    BeginUpload,
    CheckIn,
    Go,
    LaterReason,
    Receipt,
    Refusal,
    SessionStatus,
    StatusRequest,
    TryLater,
    Upload,
)
from fedrho.server.coordinator import Coordinator, Surroundings, open_run
from fedrho.server.release import Commit, StoreConflict
from fedrho.server.store import MemoryStore
from fedrho.server.tasks import Task, parse_task

DEVICES = 10
GOAL = 2
TASK = """
name = "machine"
algorithm = "{algorithm}"
model = "digits-logistic"
steps = 5
population = 10
[round]
goal = 2
min_reports = {min_reports}
overselect = 1.5
deadline_seconds = 10
lease_seconds = 4
retry_seconds = [1, 2]
[privacy]
clip_norm = 1.0
rho = 1e13
noise_multiplier = 1e-5
delta = 1e-3
grid_bits = 8
[participation]
max_times = 2
min_separation = 2
server_window = {window}
[server]
learning_rate = 1.0
"""


class FailingStore(MemoryStore):
    """A store whose next commit fails, before or after it took effect."""

    def __init__(self) -> None:
        super().__init__()
        self.fail: str | None = None

    def commit(self, commit: Commit) -> None:
        fail, self.fail = self.fail, None
        if fail == "before":
            raise OSError("the disk is full")
        super().commit(commit)
        if fail == "after":
            raise OSError("the process is gone")


class Engine(RuleBasedStateMachine):
    """Devices here are liars: they never look at a history of their own. The server's window must hold the separation."""

    window = True

    @initialize(algorithm=st.sampled_from(["dp-ftrl", "dp-fedavg"]), min_reports=st.sampled_from([1, 2]))
    def start(self, algorithm: str, min_reports: int) -> None:
        text = TASK.format(algorithm=algorithm, window=str(self.window).lower(), min_reports=min_reports)
        self.task: Task = parse_task(text, "machine.toml")
        self.ids = (number.to_bytes(16, "big") for number in itertools.count(1))
        self.store = FailingStore()
        self.now = 0.0
        self.sessions: dict[bytes, int] = {}
        self.counted: set[int] = set()
        self.released: list[set[int]] = []
        self.weights = [np.zeros(DEVICES, dtype=np.float32)]
        self.engine = self.open()

    def open(self) -> Coordinator:
        around = Surroundings(SystemNoise(), self.store, lambda: next(self.ids))
        return open_run(self.task, around, lambda: np.zeros(DEVICES, dtype=np.float32), self.now)

    # -- devices

    @rule(device=st.integers(0, DEVICES - 1))
    def check_in(self, device: int) -> None:
        self.settle_deadline()
        message = CheckIn(next(self.ids), self.engine.run, device.to_bytes(16, "big"))
        answer = self.engine.check_in(message, self.now)
        assert self.engine.check_in(message, self.now) == answer or isinstance(answer, TryLater)
        if isinstance(answer, Assignment):
            assert answer.plan.step == len(self.released) + 1
            self.sessions[answer.session] = device
        elif self.engine.finished:
            assert answer.reason is LaterReason.FINISHED

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.settle_deadline()
        self.engine.begin_upload(BeginUpload(self.pick(data)), self.now)
        number = self.engine.round.counted() + sum(
            session.status is SessionStatus.RESERVED for session in self.engine.round.sessions.values()
        )
        assert number <= GOAL

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def upload(self, data: st.DataObject) -> None:
        """Any session of any time, reserved or not, first time or again."""
        self.settle_deadline()
        session = self.pick(data)
        device, reserved = self.sessions[session], self.status(session) is SessionStatus.RESERVED
        receipt = self.send(session, self.unit(device))
        assert not reserved or receipt == Receipt(SessionStatus.COUNTED)
        if reserved:
            assert device not in self.counted
            self.counted.add(device)

    @precondition(lambda self: self.sessions)
    @rule(data=st.data(), kind=st.sampled_from(["norm", "length", "minimum"]))
    def upload_nonsense(self, data: st.DataObject, kind: str) -> None:
        self.settle_deadline()
        session = self.pick(data)
        before = self.status(session)
        vector = {
            "norm": 2 * self.unit(self.sessions[session]),
            "length": np.zeros(DEVICES + 1, dtype=np.int32),
            "minimum": np.full(DEVICES, -(2**31), dtype=np.int32),
        }[kind]
        receipt = self.send(session, vector)
        if before is SessionStatus.RESERVED:
            assert receipt.refusal in (Refusal.NORM_TOO_LARGE, Refusal.WRONG_LENGTH)
        else:
            assert receipt.status is not SessionStatus.RESERVED

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.settle_deadline()
        self.engine.abort(Abort(self.pick(data), AbortReason.CONDITIONS), self.now)

    @rule(device=st.integers(0, DEVICES - 1))
    def visit(self, device: int) -> None:
        """All of it in one go, and the release if that was the last report wanting."""
        self.settle_deadline()
        answer = self.engine.check_in(CheckIn(next(self.ids), self.engine.run, device.to_bytes(16, "big")), self.now)
        if isinstance(answer, Assignment):
            self.sessions[answer.session] = device
            if self.may_contribute(device) and self.engine.begin_upload(BeginUpload(answer.session), self.now).answer is Go.GO:
                self.contribute(answer.session)
        if self.engine.release_due:
            self.release()

    # -- time, releases and crashes

    @rule(seconds=st.sampled_from([0.5, 3.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.settle_deadline()

    @precondition(lambda self: self.engine.release_due)
    @rule()
    def release(self) -> None:
        self.engine.release(self.now)
        self.check_release()

    @precondition(lambda self: self.engine.release_due)
    @rule(when=st.sampled_from(["before", "after"]))
    def crash_in_commit(self, when: str) -> None:
        self.store.fail = when
        try:
            self.engine.release(self.now)
        except OSError:
            pass
        else:
            raise AssertionError("the failure of the store was swallowed")
        self.engine = self.open()
        if when == "after":
            self.check_release()
        self.counted.clear()

    @rule()
    def crash(self) -> None:
        self.engine = self.open()
        self.counted.clear()

    # -- what must hold

    @invariant()
    def rho_is_the_price_of_what_was_released_and_within_the_budget(self) -> None:
        if hasattr(self, "engine"):
            rho = self.engine.statement().rho
            assert rho == self.task.mechanism.cost(len(self.released), self.task.participation)
            assert rho <= self.task.budget

    @invariant()
    def participation_holds(self) -> None:
        if hasattr(self, "engine"):
            for device in range(DEVICES):
                self.check_participation([step for step, devices in enumerate(self.released, 1) if device in devices])

    def check_participation(self, steps: list[int]) -> None:
        limits = self.task.participation
        for index, step in enumerate(steps):
            assert Participation(limits.max_times, limits.min_separation).allows(steps[:index], step)

    # -- helpers

    def may_contribute(self, device: int) -> bool:
        return True

    def contribute(self, session: bytes) -> None:
        device = self.sessions[session]
        assert self.send(session, self.unit(device)) == Receipt(SessionStatus.COUNTED)
        assert device not in self.counted
        self.counted.add(device)
        assert len(self.counted) < GOAL or self.engine.release_due

    def check_release(self) -> None:
        """The release's sum is the indicator of exactly those that its own attempt counted."""
        grown = (self.engine.progress.weights - self.weights[-1]) * GOAL
        expected = np.zeros(DEVICES, dtype=np.float32)
        expected[list(self.counted)] = 1.0
        np.testing.assert_array_equal(grown, expected)
        self.weights.append(self.engine.progress.weights)
        self.released.append(set(self.counted))
        self.counted.clear()

    def settle_deadline(self) -> None:
        """Notices an attempt that ended by its deadline, before anything else happens."""
        attempt = (self.engine.round.step, self.engine.round.attempt)
        self.engine.tick(self.now)
        if (self.engine.round.step, self.engine.round.attempt) != attempt:
            self.counted.clear()

    def pick(self, data: st.DataObject) -> bytes:
        return data.draw(st.sampled_from(sorted(self.sessions)))

    def send(self, session: bytes, vector: np.ndarray) -> Receipt:
        return self.engine.upload(Upload(session, vector), self.now)

    def status(self, session: bytes) -> SessionStatus:
        return self.engine.upload_status(StatusRequest(session), self.now).status

    def unit(self, device: int) -> np.ndarray:
        vector = np.zeros(DEVICES, dtype=np.int32)
        vector[device] = self.task.mechanism.grid.radius
        return vector


class EngineWithoutWindow(Engine):
    """Without a window the devices keep the promise: these look at their own history, written before the first byte."""

    window = False

    @initialize()
    def forget(self) -> None:
        self.histories: dict[int, list[int]] = {device: [] for device in range(DEVICES)}

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def upload(self, data: st.DataObject) -> None:
        self.settle_deadline()
        session = self.pick(data)
        if self.engine.begin_upload(BeginUpload(session), self.now).answer is not Go.GO:
            return
        if self.may_contribute(self.sessions[session]):
            self.contribute(session)
            assert self.send(session, self.unit(self.sessions[session])) == Receipt(SessionStatus.COUNTED)
        else:
            self.engine.abort(Abort(session, AbortReason.NOT_ALLOWED), self.now)

    def may_contribute(self, device: int) -> bool:
        """What a device's own history says, which then remembers, whatever becomes of the upload."""
        step = self.engine.round.step
        allowed = self.task.participation.allows(self.histories[device], step)
        if allowed:
            self.histories[device].append(step)
        return allowed


TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestEngineWithoutWindow = EngineWithoutWindow.TestCase
TestEngineWithoutWindow.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)


def test_a_store_never_takes_a_step_twice() -> None:
    store = MemoryStore()
    task = parse_task(TASK.format(algorithm="dp-ftrl", window="false", min_reports=1), "machine.toml")
    ids = (number.to_bytes(16, "big") for number in itertools.count(1))
    engine = open_run(task, Surroundings(SystemNoise(), store, lambda: next(ids)), lambda: np.zeros(3, dtype=np.float32), 0.0)
    stored = store.load(task)
    assert stored is not None
    again = Commit(replace(stored.charge), 1, stored.weights, stored.velocity, (), frozenset(), (), 0.0, 0.0)
    try:
        store.commit(again)
    except StoreConflict:
        assert engine.progress.step == 0
    else:
        raise AssertionError("step 0 was committed twice")
