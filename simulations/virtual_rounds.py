"""Rounds in virtual time: the server's own coordinator, asked by virtual devices; nothing of it is imitated here.

    event            when                              what the coordinator hears
    -----------------+---------------------------------+-----------------------------------------------------------
    a device comes   | by its availability, if a seat  | `offer`
                     | is free                         |
    it uploads       | when it has trained, unless it  | its shard counts it, after its own history has recorded it
                     | drops out                       |
    a seat lapses    | when its time for training is   | `tick`
                     | over                            |
    the deadline     | of the attempt                  | `tick`

Devices that would be turned away because no seat is free are left out: they change nothing but the server's guess of how many
there are. One that trains when its attempt ends hears at its end that it is not needed, and is busy until then.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.vectors import FloatVector
from fedrho.protos.messages import TryLater
from fedrho.server.coordinator import LONGEST_DEADLINE_FACTOR, Measured, Surroundings, open_run
from fedrho.server.pace import DropOut, Pace
from fedrho.server.rounds import Phase, Round
from fedrho.server.storage.memory_store import MemoryStore
from fedrho.server.tasks import Task, TaskError
from fedrho.simulations.availability import (
    Arrivals,
    AvailabilitySection,
    Behaviour,
    Calls,
    CheckIns,
    Drawing,
    Visit,
    chances_of,
    check_availability,
    rate_of,
)
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.devices import Devices
from fedrho.simulations.engines.base import Engine
from fedrho.simulations.seeded import SeededNoise, key
from fedrho.simulations.state import BadState, SimulationOnly, State, StepRecord, fingerprint, packed, unpacked
from fedrho.simulations.virtual_shard import VirtualShard

MOST_ATTEMPTS = 100
"""At one step, before a simulation gives up: a server would go on, and so would the study, for ever."""


class NeverFinished(RuntimeError):
    """A step that no more attempts would bring to its release: which, and why."""


@dataclass(frozen=True)
class Rules:
    """What a simulation of rounds is about; `dataset` is needed where availability depends on the data."""

    task: Task
    seed: int
    availability: AvailabilitySection
    dataset: FederatedDataset | None = None

    @property
    def fingerprint(self) -> str:
        """Of what a state belongs to."""
        return fingerprint(self.task.file.model_dump(), self.seed, self.availability.model_dump())

    def check(self) -> None:
        """Raises TaskError for what cannot be simulated, before anything is trained."""
        check_availability(self.availability)
        longest = LONGEST_DEADLINE_FACTOR * self.task.file.round.deadline_seconds
        if (self.availability.training_seconds or 0.0) >= longest:
            raise TaskError(
                "availability.training_seconds",
                f"{self.availability.training_seconds:g} is as long as the longest deadline, {LONGEST_DEADLINE_FACTOR} times "
                f"round.deadline_seconds; allowed: below {longest:g}",
            )
        population = self.task.file.population
        if self.dataset is not None and self.dataset.size != population:
            raise TaskError("population", f"{population} is not the number of devices in the data; allowed: {self.dataset.size}")


class Ids:
    """16 bytes, never the same twice; at a step always the same again, so that nothing of it has to be kept."""

    def __init__(self, seed: int, name: str) -> None:
        self._start = key(seed, "ids", name)[:8]
        self._number = 0

    def begin(self, step: int) -> None:
        self._number = step << 32

    def __call__(self) -> bytes:
        self._number += 1
        return self._start + self._number.to_bytes(8, "big")


class Rounds:
    """One run of one task over virtual devices, step by step. `state` is what `state()` of the same rules returned before."""

    def __init__(self, rules: Rules, engine: Engine, initial_weights: FloatVector, state: State | None = None) -> None:
        """Raises TaskError, BadState."""
        rules.check()
        file = rules.task.file
        self.rules = rules
        self.now = 0.0
        self.devices = Devices(file.population, rules.task.participation, file.participation.min_period_seconds)
        self.shard = VirtualShard(engine, file.round.min_reports or file.round.goal)
        self._behaviour = Behaviour.of(rules.availability, file, rules.seed)
        self._chances = chances_of(rules.availability, rules.seed, rules.dataset)
        self._called = 0
        self._tagged = file.participation.server_window
        self._ids = Ids(rules.seed, file.name)
        self._store = MemoryStore()
        measured = self._restore(state) if state is not None else None
        around = Surroundings(SeededNoise(rules.seed, file.name), self._store, self._ids, [self.shard])
        self.coordinator = open_run(rules.task, around, lambda: initial_weights, self.now, measured)
        self._round: Round | None = None
        self._arrivals: Arrivals | None = None
        self._sitting: dict[bytes, Visit] = {}
        self._leave()

    # -- what a study asks -------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        return self.coordinator.finished

    @property
    def released(self) -> int:
        """Steps so far."""
        return self.coordinator.progress.step

    @property
    def weights(self) -> FloatVector:
        return self.coordinator.progress.weights

    def step(self) -> StepRecord:
        """Virtual time up to the next release. Raises NeverFinished, EngineError, BudgetExhausted."""
        if self.finished:
            raise ValueError("all steps were released")
        self.coordinator.tick(self.now)  # seals again where an engine has failed
        while not self.coordinator.release_due:
            self._attempt(self.coordinator.round)
        return self._release()

    def state(self) -> State:
        """Between two steps."""
        if self._round is not None:
            raise RuntimeError("a step is under way")
        run = self._store.load(self.rules.task, self.coordinator.run)
        values, arrays = packed(run)
        pace, drop_out = self.coordinator.pace, self.coordinator.drop_out
        arrays |= self.devices.arrays()
        arrays |= {
            "now": np.array([self.now]),
            "drop_out": np.array([drop_out.rate]),
            "pace": np.array(astuple(pace), dtype=float),
        }
        return State({**values, "kind": "rounds", "study": self.rules.fingerprint, "called": self._called}, arrays)

    # -- an attempt --------------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """No attempt is under way: who sits in one hears, when it has trained, that it is not needed."""
        self.devices.leave((visit.when + visit.seconds, visit.device) for visit in self._sitting.values())
        self._called = self._arrivals.called if isinstance(self._arrivals, Calls) else self._called
        self._round, self._arrivals, self._sitting = None, None, {}
        self._events: list[tuple[float, bool, bytes]] = []
        self._awaited: set[bytes] = set()

    def _enter(self, round_: Round) -> Arrivals:
        """The attempt that the coordinator has opened begins."""
        self._leave()
        self._round = round_
        if round_.attempt > MOST_ATTEMPTS:
            raise NeverFinished(
                f"step {round_.step} was abandoned {MOST_ATTEMPTS} times: too few devices come, stay and are done in time; "
                "lower round.goal or round.min_reports, or raise round.deadline_seconds"
            )
        needed, left = round_.min_reports, self.devices.may_ever()
        if left < needed:
            raise NeverFinished(
                f"step {round_.step} cannot be finished: {left} devices may still take part in it, {needed} reports are needed; "
                "raise population or participation.max_times, or lower participation.min_separation or round.goal"
            )
        self.shard.weights = self.coordinator.progress.weights
        self.devices.wake(self.now)
        self._arrivals = arrivals = self._new_arrivals(round_)
        return arrivals

    def _new_arrivals(self, round_: Round) -> Arrivals:
        drawing = Drawing(self.devices, self._behaviour, round_.step, round_.attempt)
        if self.rules.availability.model == "shuffled":
            return Calls(drawing, self._called)
        return CheckIns(drawing, rate_of(self.rules.availability, self.rules.task.file), self._chances)

    def _attempt(self, round_: Round) -> None:
        """One event after another, until the attempt is closed or abandoned."""
        arrivals = self._enter(round_)
        while round_.phase is Phase.OPEN:
            due = self._events[0][0] if self._events else math.inf
            visit = None
            if arrivals.wanted(round_, len(self._awaited)):
                visit = arrivals.next(self.now) or self._woken(arrivals, min(due, round_.deadline))
            if visit is not None and visit.when < min(due, round_.deadline):
                self._come(visit, round_, arrivals)
            elif due < round_.deadline:
                self._go_on(*heapq.heappop(self._events), round_)
            else:
                self._let_pass(round_)

    def _woken(self, arrivals: Arrivals, before: float) -> Visit | None:
        """Where nobody may come now: whoever comes after the next busy device is done, if that is soon enough."""
        when = self.devices.next_wake()
        if when is None or when > before:
            return None
        self.now = max(self.now, when)
        self.devices.wake(self.now)
        return arrivals.next(self.now)

    def _come(self, visit: Visit, round_: Round, arrivals: Arrivals) -> None:
        """A device checks in."""
        now = self.now = visit.when
        arrivals.taken()
        self.devices.pool.take(visit.device)
        session = self.coordinator.seat(self._ids(), self._tag(visit.device), now)
        if isinstance(session, TryLater):
            self.devices.leave([(now + session.retry.min_seconds, visit.device)])
            return
        self._sitting[session] = visit
        self._awaited.add(session)
        heapq.heappush(self._events, (now + visit.seconds, not visit.drops, session))
        if visit.drops or visit.seconds >= round_.training_seconds:
            heapq.heappush(self._events, (_not_before(now, round_.training_seconds), False, session))

    def _go_on(self, when: float, uploads: bool, session: bytes, round_: Round) -> None:
        """A device uploads, or drops out, or its seat lapses."""
        self.now = when
        self._awaited.discard(session)
        if uploads:
            visit = self._sitting.pop(session)
            if self.devices.record(visit.device, round_.step, when):
                self.shard.count(session, visit.device)
        self.coordinator.tick(when)

    def _let_pass(self, round_: Round) -> None:
        """Nothing happens before the deadline; or ever, where no device has come yet."""
        if math.isinf(round_.deadline):
            raise NeverFinished(f"step {round_.step} cannot be finished: no device comes")
        self.now = round_.deadline
        self.coordinator.tick(self.now)

    def _tag(self, device: int) -> bytes:
        return key(self.rules.seed, "tag", device)[:16] if self._tagged else b""

    # -- a release ---------------------------------------------------------------------------------------------------------

    def _release(self) -> StepRecord:
        round_, before = self.coordinator.round, self.coordinator.progress
        counted = len(self.shard.devices)
        _, dropped = round_.kept_and_dropped(self.now)
        self._leave()
        self._ids.begin(round_.step)
        self.coordinator.release(self.now)
        self.devices.open(round_.step + 1, self.now)
        task, after = self.rules.task, self.coordinator.progress
        mean = after.velocity - task.optimizer.momentum * before.velocity
        grid = task.mechanism.grid
        return StepRecord(
            step=round_.step,
            attempt=round_.attempt,
            seconds=self.now,
            counted=counted,
            seats=len(round_.sessions),
            dropped=dropped,
            abandoned=round_.attempt - 1,
            rho=float(after.charge.rho),
            node_stddev=task.mechanism.stddev * grid.unit / task.file.round.goal,
            sum_stddev=float(self._sum_stddevs[round_.step - 1]),
            mean_norm=float(np.linalg.norm(mean)),
            simulation_only=SimulationOnly.of(self.shard.told, grid.clip_norm),
        )

    @cached_property
    def _sum_stddevs(self) -> NDArray[np.float64]:
        """Of the noise in the sum of the means of the first t steps, in units of the weights."""
        task = self.rules.task
        node = task.mechanism.stddev * task.mechanism.grid.unit / task.file.round.goal
        stddevs: NDArray[np.float64] = node * np.sqrt(task.mechanism.prefix_variances(task.file.steps))
        return stddevs

    def _restore(self, state: State) -> Measured:
        """What the coordinator had measured; everything else is put in its place."""
        state.check("rounds", self.rules.fingerprint)
        try:
            self._store = MemoryStore.holding(self.rules.task, unpacked(state))
            self.now = float(state.arrays["now"][0])
            self._called = int(state.values["called"])
            numbers = state.arrays["pace"].tolist()
            whole = {2, 6, 7}
            pace = Pace(*(int(number) if place in whole else number for place, number in enumerate(numbers)))
            rate = float(state.arrays["drop_out"][0])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise BadState(f"the state of the simulation cannot be read: {error}") from error
        self.devices.restore(state.arrays, state.step + 1)
        self._ids.begin(state.step)
        return Measured(DropOut(rate, self.rules.task.file.round.overselect), pace)


def _not_before(since: float, patience: float) -> float:
    """The first time that is `patience` after `since`, in floating point too."""
    when = since + patience
    while when - since < patience:
        when = math.nextafter(when, math.inf)
    return when
