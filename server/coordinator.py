"""The engine of one run: check-ins and ticks in, answers and releases out. It is told the time, the noise and the store.

A coordinator gives out seats and makes releases; uploads go to shards (`shard.py`), which it hears. A `Population` is several
coordinators behind one service. Calls must not overlap, with one exception that the service uses: `through_gate` may run
elsewhere between `take_full_round` and `install`, because a closed round changes nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedrho.privacy.noise import NoiseSource
from fedrho.privacy.statement import PrivacyStatement
from fedrho.privacy.vectors import FloatVector
from fedrho.protos.messages import (
    CHUNK_BYTES,
    ID_BYTES,
    Assignment,
    Encoding,
    LaterReason,
    PrivacyTerms,
    RetryWindow,
    RoundPlan,
    SessionStatus,
    TaskSpec,
    TryLater,
)
from fedrho.server.coarse import ShownDropOut
from fedrho.server.intake import AttemptId, Order
from fedrho.server.ledger import Charge, statement
from fedrho.server.pace import DropOut, Pace
from fedrho.server.release import Attempt, Commit, Legs, Progress, Store, release, restore, unobserved
from fedrho.server.rounds import GONE, Phase, Round
from fedrho.server.shard import ShardLink
from fedrho.server.shares import Shares
from fedrho.server.tasks import Task

LONGEST_DEADLINE_FACTOR = 8
"""Each abandoned attempt doubles the deadline of the next, up to this factor."""


@dataclass(frozen=True)
class Surroundings:
    """What the engine is handed: where noise comes from, where state goes, fresh 16-byte identifiers, and who takes uploads."""

    noise: NoiseSource
    store: Store
    new_id: Callable[[], bytes]
    shards: Sequence[ShardLink]


@dataclass(frozen=True)
class Measured:
    """What a coordinator has measured of its devices so far; a server measures it anew after a start, a simulation goes on."""

    drop_out: DropOut
    pace: Pace


class Coordinator:
    """One run of one task. Make one with `open_run`."""

    def __init__(
        self,
        task: Task,
        around: Surroundings,
        run: bytes,
        tag_key: bytes,
        progress: Progress,
        past: dict[bytes, list[int]],
        now: float,
        measured: Measured | None = None,
    ) -> None:
        file = task.file.round
        self.task = task
        self.run = run
        self.progress = progress
        self.paused = False
        self.drop_out = DropOut.of_task(file.overselect)
        population, seats = float(task.file.population), self.drop_out.seats(file.goal)
        self.pace = Pace(population, file.deadline_seconds / 2.0, seats, expected=population)
        if measured is not None:
            self.drop_out, self.pace = measured.drop_out, measured.pace
        self.shown_drop_out = ShownDropOut(self.drop_out.rate)
        self._around = around
        self._tag_key = tag_key
        self._past = past
        self._previous: Round | None = None
        self._publish()
        self.round = self._open(1, now)

    # -- what devices ask ------------------------------------------------------------------------------------------------

    def spec(self) -> TaskSpec:
        file, mechanism = self.task.file, self.task.mechanism
        terms = PrivacyTerms(
            mechanism=mechanism.name,
            clip_norm=mechanism.grid.clip_norm,
            noise_multiplier=mechanism.noise_multiplier,
            rho_budget=self.task.budget,
            max_participations=self.task.participation.max_times,
            min_separation=self.task.participation.min_separation,
            min_period_seconds=file.participation.min_period_seconds,
            labels=self.task.labels,
        )
        return TaskSpec(
            run=self.run,
            task=file.name,
            model=file.model,
            size=self.size,
            steps=file.steps,
            released=self.progress.step,
            terms=terms,
            wants_device_tag=file.participation.server_window,
            ended=self.finished,
        )

    def offer(self, request_id: bytes, device_tag: bytes, now: float) -> Assignment | TryLater:
        """A seat in the open round, or when to come back; the same answer for the same request."""
        answer = self.seat(request_id, device_tag, now)
        return answer if isinstance(answer, TryLater) else self._assignment(answer, now)

    def seat(self, request_id: bytes, device_tag: bytes, now: float) -> bytes | TryLater:
        """`offer` without what a device needs in order to use its seat: the session alone."""
        self.tick(now)
        reason = self._closed_because()
        if reason is not None:
            return self._later(reason, now)
        tag = self._tag(device_tag)
        if tag is None:
            return self._later(LaterReason.TAG_MISSING, now)
        known = self.round.requests.get(request_id)
        if known is not None:
            return self._again(known, tag, now)
        if tag and not self._may_sit(tag):
            return self._later(LaterReason.NOT_ALLOWED, now)
        self.pace = self.pace.visited(now)
        shard = self.shares.with_room(self.round)
        if shard is None or self.round.seats_left() <= 0:
            return self._later(LaterReason.NO_SEATS, now)
        session = self._around.new_id()
        self.round.admit(request_id, session, shard, tag, now)
        return session

    def artifact(self, sha256: bytes) -> bytes | None:
        """The weights of the latest release as little-endian float32, if that is what was asked for."""
        return self._checkpoint if sha256 == self.checkpoint_sha256 else None

    def status_of(self, session: bytes) -> SessionStatus:
        """What became of a session of this attempt or the one before, as far as its shard has said."""
        for round_ in (self.round, self._previous):
            if round_ is not None and session in round_.sessions:
                return round_.sessions[session].status
        return SessionStatus.LOST

    # -- what time and full rounds do ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Hears the shards, frees seats, seals a full or overdue round, and opens the next attempt after one that failed."""
        if self.round.phase is Phase.OPEN:
            self.shares.hear(self.round, now)
            self.round.lapse(now)
            if self.round.full() or self.round.overdue(now):
                self.round.phase = Phase.SEALING
        if self.round.phase is Phase.SEALING and self.shares.seal(self.round):
            self.round.settle(len(self.shares.counted), now)
            fates = self.round.kept_and_dropped(now)
            self.drop_out, self.shown_drop_out = self.drop_out.observed(*fates), self.shown_drop_out.observed(*fates)
        if self.round.phase is Phase.ABANDONED:
            self._next(self.round.attempt + 1, now)

    @property
    def finished(self) -> bool:
        return self.progress.step >= self.task.file.steps

    @property
    def size(self) -> int:
        return int(self.progress.weights.size)

    @property
    def release_due(self) -> bool:
        """Whether the round is closed and waits for its release."""
        return self.round.phase is Phase.CLOSED and not self._taken and not self.finished

    @property
    def releasing(self) -> bool:
        """Whether a release is on its way through the gate."""
        return self._taken

    def release(self, now: float) -> None:
        """The closed round's release, in one go; raises BudgetExhausted or StoreConflict."""
        self.install(self.through_gate(self.take_full_round(), now), now)

    def take_full_round(self) -> Attempt:
        """Takes the sum out of the closed round; this happens once."""
        if not self.release_due:
            raise RuntimeError("no full round waits for its release")
        self._taken = True
        tags = self.round.tags_of(self.shares.counted) if self._remembers else ()
        return Attempt(self.round.attempt, self.shares.take(), tags, self.round.opened_at)

    def through_gate(self, attempt: Attempt, now: float, legs: Legs = unobserved) -> Progress:
        return release(self.task, self.run, self.progress, attempt, self._around.noise, self._around.store, now, legs)

    def install(self, progress: Progress, now: float) -> None:
        """Goes on from a committed release to the next step."""
        for tag in self.round.tags_of(self.shares.counted) if self._remembers else ():
            self._past.setdefault(tag, []).append(progress.step)
        self.pace = self.pace.stepped(now - self.round.began_at)
        self.progress = progress
        self._publish()
        self._next(1, now)

    def close(self) -> None:
        """Drops what was collected; for the end of the process, or of the run."""
        self.shares.drop()

    def statement(self) -> PrivacyStatement:
        return statement(self.task, self.progress.charge)

    # -- helpers ---------------------------------------------------------------------------------------------------------

    @property
    def _remembers(self) -> bool:
        """Whether the server keeps a window of who took part when, beside the devices' own histories."""
        return self.task.file.participation.server_window

    def _next(self, attempt: int, now: float) -> None:
        self.close()
        self._previous = self.round
        self.round = self._open(attempt, now)

    def _publish(self) -> None:
        self._checkpoint = self.progress.weights.astype("<f4").tobytes()
        self.checkpoint_sha256 = hashlib.sha256(self._checkpoint).digest()

    def _open(self, attempt: int, now: float) -> Round:
        file = self.task.file.round
        factor = min(2 ** (attempt - 1), LONGEST_DEADLINE_FACTOR)
        self._taken = False
        self.pace = replace(self.pace, seats=self.drop_out.seats(file.goal))
        round_ = Round(
            step=self.progress.step + 1,
            attempt=attempt,
            goal=file.goal,
            min_reports=file.min_reports or file.goal,
            seats=self.pace.seats,
            deadline_seconds=file.deadline_seconds * factor,
            training_seconds=(file.training_seconds or file.deadline_seconds / 2.0) * factor,
            opened_at=now,
        )
        self._plan = round_plan(self.task, self.size, self.run, (round_.step, round_.attempt), self.checkpoint_sha256)
        self.shares = Shares(self._around.shards, self._order(round_), self._new_key)
        if not self.finished:
            self.shares.open()
        return round_

    def _order(self, round_: Round) -> Order:
        file = self.task.file.round
        return Order(
            attempt=AttemptId(self.run, round_.step, round_.attempt, self._around.new_id()),
            key=b"",
            size=self.size,
            grid=self.task.mechanism.grid,
            quota=round_.goal,
            lease_seconds=file.lease_seconds,
            wait_seconds=min(max(file.retry_seconds[0], 0.05), 5.0) if file.retry_seconds else 0.5,
        )

    def _new_key(self) -> bytes:
        return self._around.new_id() + self._around.new_id()

    def _closed_because(self) -> LaterReason | None:
        if self.finished:
            return LaterReason.FINISHED
        if self.paused:
            return LaterReason.PAUSED
        return None if self.round.phase is Phase.OPEN else LaterReason.RELEASING

    def _again(self, session: bytes, tag: bytes, now: float) -> bytes | TryLater:
        """The answer to a request that got this session. One that is gone gets no new ticket: its device may sit anew by now."""
        seat = self.round.sessions[session]
        if seat.tag != tag:
            return self._later(LaterReason.NOT_ALLOWED, now)
        return self._later(LaterReason.NO_SEATS, now) if seat.status in GONE else session

    def _assignment(self, session: bytes, now: float) -> Assignment | TryLater:
        way_in = self.shares.way_in(self.round.sessions[session].shard, session)
        if way_in is None:
            return self._later(LaterReason.NO_SEATS, now)
        return Assignment(session, self._plan, self.round.deadline - now, *way_in)

    def _tag(self, device_tag: bytes) -> bytes | None:
        """The pseudonym of a device in this run: empty when it shows nothing, None when a tag is missing.

        It keeps a device from sitting twice in one attempt; beyond that it is remembered only where the run has a window.
        """
        if not device_tag:
            return None if self._remembers else b""
        return hmac.digest(self._tag_key, device_tag, "sha256")[:ID_BYTES]

    def _may_sit(self, tag: bytes) -> bool:
        past = self._past.get(tag, [])
        return self.task.participation.allows(past, self.round.step) and not self.round.seated(tag)

    def _later(self, reason: LaterReason, now: float) -> TryLater:
        window = self.window(now)
        self.pace = self.pace.sent_away(window)
        return TryLater(reason, window)

    def window(self, now: float) -> RetryWindow:
        """When a device that is turned away now should come back."""
        fixed = self.task.file.round.retry_seconds
        if fixed is not None:
            return RetryWindow(*fixed)
        return self.pace.window(self.round.began_at + self.pace.step_seconds - now)


def round_plan(task: Task, size: int, run: bytes, place: tuple[int, int], checkpoint_sha256: bytes) -> RoundPlan:
    """What all devices of an attempt are told; `place` is its step and its number, `size` how many weights the model has."""
    grid, local = task.mechanism.grid, task.file.local
    return RoundPlan(
        run=run,
        step=place[0],
        attempt=place[1],
        model=task.file.model,
        checkpoint_sha256=checkpoint_sha256,
        size=size,
        clip_norm=grid.clip_norm,
        grid_bits=grid.bits,
        encoding=Encoding.for_grid(grid.bits),
        epochs=local.epochs,
        batch_size=local.batch_size,
        learning_rate=local.learning_rate,
        chunk_bytes=CHUNK_BYTES,
        max_examples=local.max_examples,
        optimizer=local.optimizer,
        momentum=local.momentum,
        local_steps=local.steps,
        labels=task.labels,
    )


def open_run(
    task: Task,
    around: Surroundings,
    initial_weights: Callable[[], FloatVector],
    now: float,
    measured: Measured | None = None,
) -> Coordinator:
    """Continues the task's run that the store holds, at the step it had reached; or starts one.

    `measured` is what the run's coordinator had measured before, where somebody kept it.

    Raises StoreConflict or NoiseMismatch when the stored run must not be continued.
    """
    run = around.store.find(task)
    if run is None:
        run = _start(task, around, initial_weights(), now)
    stored = around.store.load(task, run)
    past: dict[bytes, list[int]] = {}
    for tag, step in stored.participations:
        past.setdefault(tag, []).append(step)
    return Coordinator(task, around, stored.run, stored.tag_key, restore(task, stored), past, now, measured)


def _start(task: Task, around: Surroundings, initial: FloatVector, now: float) -> bytes:
    run, weights = around.new_id(), np.ascontiguousarray(initial, dtype=np.float32)
    charge = Charge(0, task.mechanism.cost(0, task.participation))
    start = Commit(charge, 0, weights, task.optimizer.init(weights.size), (), frozenset(), (), now, now)
    around.store.create(task, run, around.new_id() + around.new_id(), start)
    return run
