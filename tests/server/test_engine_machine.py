"""Random histories of a population, every device's upload a distinct unit vector, against a list of what was counted.

Two runs share the devices and one to three shards that may die. The noise multiplier is so small that all noise rounds to zero,
so a release shows its sum: any entry that is not 0 or 1 is a double count, any entry of a device that the releasing attempt did
not count is a leak from somewhere else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.participation import Participation
from fedrho.privacy.vectors import Clipped, FloatVector
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
    Willing,
)
from fedrho.server.coordinator import Coordinator, Surroundings, open_run
from fedrho.server.intake import AttemptId
from fedrho.server.population import Population
from fedrho.server.release import Commit, RunState
from fedrho.server.rounds import GONE
from fedrho.server.shard import Shard
from fedrho.server.storage.store import MemoryStore
from fedrho.server.tasks import Task, parse_task
from tests.server.mortal import MortalShard
from tests.server.one_run import SIGNER, new_id

DEVICES = 10
GOAL = 3
COUNTED = Receipt(SessionStatus.COUNTED)
TASK = """
name = "{name}"
algorithm = "{algorithm}"
model = "digits-logistic"
steps = {steps}
population = 10
[round]
goal = 3
min_reports = {min_reports}
overselect = 1.5
deadline_seconds = 10
training_seconds = 2
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

    fail: str | None = None

    def commit(self, run: bytes, commit: Commit) -> None:
        fail, self.fail = self.fail, None
        if fail == "before":
            raise OSError("the disk is full")
        super().commit(run, commit)
        if fail == "after":
            raise OSError("the process is gone")


@dataclass(frozen=True)
class Seat:
    """What a device was given, and how often the shard that it was sent to had died by then."""

    device: int
    message: CheckIn
    assignment: Assignment
    life: int
    attempt: AttemptId

    @property
    def begin(self) -> BeginUpload:
        return BeginUpload(self.assignment.session, self.assignment.ticket)


def unit(device: int, length: int = 2**8) -> NDArray[np.int32]:
    vector = np.zeros(DEVICES, dtype=np.int32)
    vector[device] = length
    return vector


class Machine(RuleBasedStateMachine):
    """Devices here are liars: they never look at a history of their own. The server's window must hold the separation."""

    window = True

    @initialize(
        algorithm=st.sampled_from(["dp-ftrl", "dp-fedavg"]),
        min_reports=st.sampled_from([1, 3]),
        slow=st.lists(st.booleans(), min_size=1, max_size=3),
    )
    def start(self, algorithm: str, min_reports: int, slow: list[bool]) -> None:
        window = str(self.window).lower()
        self.tasks: list[Task] = [
            parse_task(TASK.format(name=name, algorithm=algorithm, steps=steps, window=window, min_reports=min_reports), name)
            for name, steps in (("one", 5), ("two", 3))
        ]
        self.store = FailingStore()
        self.now = 0.0
        self.links = {f"shard-{number}": MortalShard(f"shard-{number}", slow) for number, slow in enumerate(slow)}
        self.seats: dict[bytes, Seat] = {}
        self.counted: defaultdict[AttemptId, dict[str, list[bytes]]] = defaultdict(lambda: defaultdict(list))
        self.done: set[bytes] = set()
        self.released: defaultdict[bytes, list[set[int]]] = defaultdict(list)
        self.weights: dict[bytes, FloatVector] = {}
        self.opened()

    def opened(self) -> None:
        """Every run that may go on, from what the store holds; what was open is gone."""
        self.counted.clear()
        around = Surroundings(SystemNoise(), self.store, new_id, list(self.links.values()))
        ended = {record.file.name for record in self.store.runs() if record.state is RunState.CANCELLED}
        going = [task for task in self.tasks if task.file.name not in ended]
        runs = [open_run(task, around, lambda: np.zeros(DEVICES, dtype=np.float32), self.now) for task in going]
        self.population = Population(runs, self.store, SIGNER)
        for run in self.population.members:
            self.weights.setdefault(run, np.zeros(DEVICES, dtype=np.float32))

    # -- devices

    @rule(device=st.integers(0, DEVICES - 1), choice=st.sampled_from([(0,), (1,), (0, 1)]))
    def check_in(self, device: int, choice: tuple[int, ...]) -> None:
        """The same answer when asked again, unless it was only to come later."""
        runs = [run for number, run in enumerate(self.population.members) if number in choice]
        message = CheckIn(new_id(), tuple(Willing(run, device.to_bytes(16, "big")) for run in runs))
        answer = self.population.check_in(message, self.now)
        again = self.population.check_in(message, self.now)
        if isinstance(answer, TryLater):
            return self.explained(answer, runs)
        assert isinstance(again, Assignment)
        assert (again.session, again.ticket, again.upload_address) == (answer.session, answer.ticket, answer.upload_address)
        self.seated(device, message, answer)

    @precondition(lambda self: self.seats)
    @rule(data=st.data())
    def check_in_again_later(self, data: st.DataObject) -> None:
        """A request that was answered before, repeated at any time."""
        seat = self.pick(data)
        answer = self.population.check_in(seat.message, self.now)
        if isinstance(answer, Assignment):
            self.seated(seat.device, seat.message, answer)

    def seated(self, device: int, message: CheckIn, answer: Assignment) -> None:
        member = self.population.members[answer.plan.run]
        assert member.state is RunState.ACTIVE
        assert member.coordinator.status_of(answer.session) not in GONE
        assert answer.plan.step == len(self.released[answer.plan.run]) + 1
        attempt = self.population.members[answer.plan.run].coordinator.shares.attempt
        self.seats[answer.session] = Seat(device, message, answer, self.links[answer.upload_address].life, attempt)

    def explained(self, answer: TryLater, runs: list[bytes]) -> None:
        states = {self.population.members[run].state for run in runs}
        if answer.reason is LaterReason.FINISHED:
            assert states <= {RunState.FINISHED, RunState.CANCELLED}
        if answer.reason is LaterReason.PAUSED:
            assert RunState.PAUSED in states

    @precondition(lambda self: self.seats)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        seat = self.pick(data)
        if self.shard_of(seat).begin_upload(seat.begin, self.now).answer is Go.GO:
            assert self.is_open(seat)

    @precondition(lambda self: len(self.seats) > 1)
    @rule(data=st.data(), elsewhere=st.booleans())
    def begin_with_what_is_not_its_own(self, data: st.DataObject, elsewhere: bool) -> None:
        """Another's ticket, or one's own at another shard, admits nobody."""
        seat, other = self.pick(data), self.pick(data)
        address = data.draw(st.sampled_from(sorted(self.links)))
        shard, message = self.links[address].shard, BeginUpload(seat.begin.session, other.begin.ticket)
        if (seat is not other or address != seat.assignment.upload_address) and self.status(seat, shard) is SessionStatus.LOST:
            assert shard.begin_upload(message, self.now).answer is Go.NOT_NEEDED
            shard.abort(Abort(message.session, AbortReason.CONDITIONS, message.ticket), self.now)
            assert self.status(seat, shard) is SessionStatus.LOST

    @precondition(lambda self: self.seats)
    @rule(data=st.data(), streamed=st.booleans())
    def upload(self, data: st.DataObject, streamed: bool) -> None:
        """Any session of any time, reserved or not, first time or again, as a whole or as the end of a stream."""
        self.send(self.pick(data), streamed)

    @precondition(lambda self: self.seats)
    @rule(data=st.data(), kind=st.sampled_from(["norm", "length", "minimum"]))
    def upload_nonsense(self, data: st.DataObject, kind: str) -> None:
        seat = self.pick(data)
        before = self.status(seat)
        vector = {
            "norm": 2 * unit(seat.device),
            "length": np.zeros(DEVICES + 1, dtype=np.int32),
            "minimum": np.full(DEVICES, -(2**31), dtype=np.int32),
        }[kind]
        receipt = self.shard_of(seat).upload(Upload(seat.begin.session, vector), self.now)
        if before is SessionStatus.RESERVED:
            assert receipt.refusal in (Refusal.NORM_TOO_LARGE, Refusal.WRONG_LENGTH)
        else:
            assert receipt.status is not SessionStatus.RESERVED

    @precondition(lambda self: self.seats)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        seat = self.pick(data)
        self.shard_of(seat).abort(Abort(seat.begin.session, AbortReason.CONDITIONS, seat.begin.ticket), self.now)
        assert self.status(seat) not in (SessionStatus.ASSIGNED, SessionStatus.RESERVED)

    @rule(devices=st.permutations(range(DEVICES)), which=st.integers(0, 1), count=st.integers(1, 6), acknowledged=st.booleans())
    def visits(self, devices: list[int], which: int, count: int, acknowledged: bool) -> None:
        """All of it in one go, the upload again where no acknowledgement arrives, and whatever release is due after that."""
        for device in devices[:count]:
            before = set(self.seats)
            self.check_in(device, (which,))
            for session in set(self.seats) - before:
                self.contribute(self.seats[session], acknowledged)
            self.release()

    def contribute(self, seat: Seat, acknowledged: bool = True) -> None:
        if self.shard_of(seat).begin_upload(seat.begin, self.now).answer is not Go.GO or not self.may_contribute(seat):
            return
        assert self.send(seat) == COUNTED
        if not acknowledged:
            assert self.status(seat) is SessionStatus.COUNTED
            assert self.send(seat) == COUNTED

    # -- time, shards, operators, releases and crashes

    @rule(seconds=st.sampled_from([0.5, 3.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.population.tick(self.now)

    @precondition(lambda self: self.seats)
    @rule(data=st.data(), heard=st.booleans())
    def shard_dies(self, data: st.DataObject, heard: bool) -> None:
        """Sum and sessions die together; only a part that was handed over before is still in the attempt."""
        link = self.links[data.draw(st.sampled_from(sorted(self.links)))]
        for attempt in [attempt for attempt in self.counted if attempt not in link.handed]:
            self.counted[attempt].pop(link.address, None)
        link.die()
        if heard:
            self.population.tick(self.now)
        link.revive()

    @rule(which=st.integers(0, 1))
    def pause_or_resume(self, which: int) -> None:
        members = list(self.population.members.values())
        if which < len(members) and not members[which].ended:
            run = members[which].coordinator.run
            (self.population.resume if members[which].state is RunState.PAUSED else self.population.pause)(run)

    @precondition(lambda self: self.now > 30)
    @rule()
    def cancel(self) -> None:
        """The second run: ended for good, whatever it was at."""
        member = list(self.population.members.values())[-1]
        if len(self.population.members) == 2 and not member.ended:
            self.population.cancel(member.coordinator.run)
            self.counted = defaultdict(
                lambda: defaultdict(list), {a: c for a, c in self.counted.items() if a.run != member.coordinator.run}
            )

    @rule()
    def release(self) -> None:
        self.population.tick(self.now)
        for coordinator in self.population.due():
            attempt = coordinator.shares.attempt
            coordinator.release(self.now)
            self.population.released(coordinator, self.now)
            self.check_release(attempt, coordinator.progress.weights)

    @precondition(lambda self: self.population.due())
    @rule(when=st.sampled_from(["before", "after"]))
    def crash_in_commit(self, when: str) -> None:
        coordinator = self.population.due()[0]
        attempt, self.store.fail = coordinator.shares.attempt, when
        try:
            coordinator.release(self.now)
        except OSError:
            expected = self.counted[attempt]
        else:
            raise AssertionError("the failure of the store was swallowed")
        self.opened()
        if when == "after":
            self.counted[attempt] = expected
            self.check_release(attempt, self.population.members[attempt.run].coordinator.progress.weights)

    @precondition(lambda self: self.seats)
    @rule()
    def crash(self) -> None:
        """Of the coordinators; the shards live on, and hold what nobody will ask for."""
        self.opened()

    # -- what must hold

    @invariant()
    def rho_is_the_price_of_what_was_released_and_within_the_budget(self) -> None:
        for coordinator in self.coordinators():
            rho = coordinator.statement().rho
            assert rho == coordinator.task.mechanism.cost(len(self.released[coordinator.run]), coordinator.task.participation)
            assert rho <= coordinator.task.budget

    @invariant()
    def participation_holds(self) -> None:
        for coordinator in self.coordinators():
            limits = coordinator.task.participation
            for device in range(DEVICES):
                given = [step for step, devices in enumerate(self.released[coordinator.run], 1) if device in devices]
                for index, step in enumerate(given):
                    assert Participation(limits.max_times, limits.min_separation).allows(given[:index], step)

    @invariant()
    def neither_quotas_nor_seats_are_more_than_there_are(self) -> None:
        for coordinator in self.coordinators():
            assert sum(share.quota for share in coordinator.shares.shares) <= GOAL
            assert coordinator.round.seats_left() >= 0
            assert coordinator.round.counted() <= GOAL

    # -- helpers

    def coordinators(self) -> list[Coordinator]:
        return [one.coordinator for one in self.population.members.values()] if hasattr(self, "population") else []

    def may_contribute(self, seat: Seat) -> bool:
        return True

    def send(self, seat: Seat, streamed: bool = False) -> Receipt:
        """Uploads, and notes what is counted for the first time."""
        shard, session = self.shard_of(seat), seat.begin.session
        reserved, vector = self.status(seat) is SessionStatus.RESERVED, unit(seat.device)
        if streamed:
            receipt = shard.count(session, Clipped(vector, self.tasks[0].mechanism.grid), self.now)
        else:
            receipt = shard.upload(Upload(session, vector), self.now)
        assert reserved == (receipt == COUNTED and session not in self.done)
        if reserved:
            assert self.is_open(seat)
            self.done.add(session)
            self.counted[seat.attempt][seat.assignment.upload_address].append(session)
        return receipt

    def is_open(self, seat: Seat) -> bool:
        """Whether the seat is of the attempt that its run is at, and of a shard that has not died since."""
        run, link = seat.assignment.plan.run, self.links[seat.assignment.upload_address]
        member = self.population.members.get(run)
        return (
            member is not None
            and member.coordinator.shares.attempt == seat.attempt
            and seat.life == link.life
            and not member.ended
        )

    def check_release(self, attempt: AttemptId, weights: FloatVector) -> None:
        """The release's sum is the indicator of exactly those that its own attempt counted."""
        sessions = [session for part in self.counted.pop(attempt).values() for session in part]
        devices = Counter(self.seats[session].device for session in sessions)
        assert len(sessions) <= GOAL
        assert set(devices.values()) <= {1}
        expected = np.zeros(DEVICES, dtype=np.float32)
        expected[list(devices)] = 1.0
        np.testing.assert_allclose((weights - self.weights[attempt.run]) * GOAL, expected, atol=1e-6)
        self.weights[attempt.run] = weights
        self.released[attempt.run].append(set(devices))

    def pick(self, data: st.DataObject) -> Seat:
        self.population.tick(self.now)
        return self.seats[data.draw(st.sampled_from(sorted(self.seats)))]

    def shard_of(self, seat: Seat) -> Shard:
        return self.links[seat.assignment.upload_address].shard

    def status(self, seat: Seat, shard: Shard | None = None) -> SessionStatus:
        return (shard or self.shard_of(seat)).upload_status(StatusRequest(seat.begin.session), self.now).status


class MachineWithoutWindow(Machine):
    """Without a window the devices keep the promise: these look at their own history, written before the first byte."""

    window = False

    @initialize()
    def forget(self) -> None:
        self.histories: defaultdict[tuple[bytes, int], dict[int, bytes]] = defaultdict(dict)

    @precondition(lambda self: self.seats)
    @rule(data=st.data(), streamed=st.booleans())
    def upload(self, data: st.DataObject, streamed: bool) -> None:
        self.contribute(self.pick(data), acknowledged=not streamed)

    def may_contribute(self, seat: Seat) -> bool:
        """What a device's own history says, which then remembers, whatever becomes of the upload."""
        plan, session = seat.assignment.plan, seat.begin.session
        past = self.histories[plan.run, seat.device]
        if plan.step in past:
            return past[plan.step] == session
        if not self.tasks[0].participation.allows(sorted(past), plan.step):
            return False
        past[plan.step] = session
        return True

    def check_release(self, attempt: AttemptId, weights: FloatVector) -> None:
        for session in [session for part in self.counted[attempt].values() for session in part]:
            assert self.histories[attempt.run, self.seats[session].device][attempt.step] == session
        super().check_release(attempt, weights)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
TestMachineWithoutWindow = MachineWithoutWindow.TestCase
TestMachineWithoutWindow.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
