"""The one engine: check-ins, uploads and ticks in, answers out. It is told the time, the noise and the store.

gRPC and simulations are two callers. Calls must not overlap, with one exception that the service uses: `through_gate` may run
elsewhere between `take_full_round` and `install`, because a closed round changes nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedrho.privacy.noise import NoiseSource
from fedrho.privacy.statement import PrivacyStatement
from fedrho.privacy.vectors import Clipped, FloatVector, InvalidVector
from fedrho.protos.messages import (
    ID_BYTES,
    Abort,
    Assignment,
    BeginUpload,
    CheckIn,
    Encoding,
    Go,
    LaterReason,
    PopulationSpec,
    PrivacyTerms,
    Receipt,
    Refusal,
    Reservation,
    RetryWindow,
    RoundPlan,
    SessionStatus,
    StatusAnswer,
    StatusRequest,
    TryLater,
    Upload,
)
from fedrho.server.aggregation import RunningSum
from fedrho.server.ledger import Charge, statement
from fedrho.server.release import Attempt, Commit, Progress, Store, release, restore
from fedrho.server.rounds import Phase, Round
from fedrho.server.tasks import Task

CHUNK_BYTES = 512 * 1024
LONGEST_DEADLINE_FACTOR = 8
"""Each abandoned attempt doubles the deadline of the next, up to this factor."""


@dataclass(frozen=True)
class Surroundings:
    """What the engine is handed: where noise comes from, where state goes, and fresh 16-byte identifiers."""

    noise: NoiseSource
    store: Store
    new_id: Callable[[], bytes]


class Coordinator:
    """One run of one task. Make one with `open_run`."""

    _sum: RunningSum
    _taken: bool

    def __init__(
        self,
        task: Task,
        around: Surroundings,
        run: bytes,
        tag_key: bytes,
        progress: Progress,
        past: dict[bytes, list[int]],
        now: float,
    ) -> None:
        self.task = task
        self.run = run
        self.progress = progress
        self._around = around
        self._tag_key = tag_key
        self._past = past
        self._previous: Round | None = None
        self.round = self._open(attempt=1, now=now)

    # -- what devices ask ------------------------------------------------------------------------------------------------

    def population(self) -> PopulationSpec:
        file, mechanism = self.task.file, self.task.mechanism
        terms = PrivacyTerms(
            mechanism=mechanism.name,
            clip_norm=mechanism.grid.clip_norm,
            noise_multiplier=mechanism.noise_multiplier,
            rho_budget=self.task.budget,
            max_participations=self.task.participation.max_times,
            min_separation=self.task.participation.min_separation,
            min_period_seconds=file.participation.min_period_seconds,
        )
        return PopulationSpec(
            run=self.run,
            task=file.name,
            model=file.model,
            size=int(self.progress.weights.size),
            steps=file.steps,
            released=self.progress.step,
            terms=terms,
            wants_device_tag=file.participation.server_window,
            retry=self._window(),
        )

    def check_in(self, message: CheckIn, now: float) -> Assignment | TryLater:
        """A seat in the open round, or when to come back; the same answer for the same request."""
        self.tick(now)
        if message.run != self.run:
            return self._later(LaterReason.OTHER_RUN)
        if self.finished:
            return self._later(LaterReason.FINISHED)
        if self.round.phase is not Phase.OPEN:
            return self._later(LaterReason.RELEASING)
        known = self.round.requests.get(message.request_id)
        if known is not None:
            return self._assignment(known, now)
        tag = self._tag(message.device_tag)
        if tag is None:
            return self._later(LaterReason.TAG_MISSING)
        if tag and not self._may_sit(tag):
            return self._later(LaterReason.NOT_ALLOWED)
        if self.round.seats_left() <= 0:
            return self._later(LaterReason.NO_SEATS)
        session = self._around.new_id()
        self.round.admit(message.request_id, session, tag, now)
        return self._assignment(session, now)

    def artifact(self, sha256: bytes) -> bytes | None:
        """The weights of the latest release as little-endian float32, if that is what was asked for."""
        return self._checkpoint if sha256 == self._checkpoint_sha256 else None

    def begin_upload(self, message: BeginUpload, now: float) -> Reservation:
        self.tick(now)
        answer = self.round.reserve(message.session, now)
        if answer.answer is Go.NOT_NEEDED and self._settled(message.session) is SessionStatus.COUNTED:
            return Reservation(Go.ALREADY_COUNTED)
        return answer

    def may_upload(self, session: bytes, now: float) -> Receipt | None:
        """The receipt that an upload of this session would get whatever it holds; None when it should be read."""
        self.tick(now)
        if self._settled(session) is SessionStatus.COUNTED:
            return Receipt(SessionStatus.COUNTED)
        refusal = self.round.refusal(session)
        return None if refusal is None else Receipt(self._settled(session), refusal)

    def upload(self, message: Upload, now: float) -> Receipt:
        """Checks everything, then adds, then counts; refused vectors leave no trace in the sum."""
        settled = self.may_upload(message.session, now)
        if settled is not None:
            return settled
        if message.vector.shape != self.progress.weights.shape:
            return self._refuse(message.session, Refusal.WRONG_LENGTH)
        try:
            clipped = Clipped(message.vector, self.task.mechanism.grid)
        except InvalidVector:
            return self._refuse(message.session, Refusal.NORM_TOO_LARGE)
        self._sum.add(clipped)
        self.round.count(message.session)
        return Receipt(SessionStatus.COUNTED)

    def upload_status(self, message: StatusRequest, now: float) -> StatusAnswer:
        self.tick(now)
        return StatusAnswer(self._settled(message.session))

    def abort(self, message: Abort, now: float) -> None:
        self.tick(now)
        self.round.abort(message.session)

    # -- what time and full rounds do ------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Ends leases; at the deadline drops the sum and opens the next attempt of the same step."""
        self.round.lapse(now)
        if self.round.phase is Phase.ABANDONED:
            self._sum.destroy()
            self._next(self.round.attempt + 1, now)

    @property
    def finished(self) -> bool:
        return self.progress.step >= self.task.file.steps

    @property
    def release_due(self) -> bool:
        """Whether the round is full and waits for its release."""
        return self.round.phase is Phase.CLOSED and not self.finished

    def release(self, now: float) -> None:
        """The full round's release, in one go; raises BudgetExhausted or StoreConflict."""
        self.install(self.through_gate(self.take_full_round(), now), now)

    def take_full_round(self) -> Attempt:
        """Takes the sum out of the closed round; this happens once."""
        if not self.release_due or self._taken:
            raise RuntimeError("no full round waits for its release")
        self._taken = True
        return Attempt(self.round.attempt, self._sum.close(), self.round.counted_tags(), self._opened_at)

    def through_gate(self, attempt: Attempt, now: float) -> Progress:
        return release(self.task, self.progress, attempt, self._around.noise, self._around.store, now)

    def install(self, progress: Progress, now: float) -> None:
        """Goes on from a committed release to the next step."""
        for tag in self.round.counted_tags():
            self._past.setdefault(tag, []).append(progress.step)
        self.progress = progress
        self._next(attempt=1, now=now)

    def statement(self) -> PrivacyStatement:
        return statement(self.task, self.progress.charge)

    # -- helpers ---------------------------------------------------------------------------------------------------------

    def _next(self, attempt: int, now: float) -> None:
        self._previous = self.round
        self.round = self._open(attempt, now)

    def _open(self, attempt: int, now: float) -> Round:
        file = self.task.file.round
        factor = min(2 ** (attempt - 1), LONGEST_DEADLINE_FACTOR)
        self._opened_at = now
        self._taken = False
        self._sum = RunningSum(int(self.progress.weights.size), self.task.mechanism.grid)
        self._checkpoint = self.progress.weights.astype("<f4").tobytes()
        self._checkpoint_sha256 = hashlib.sha256(self._checkpoint).digest()
        return Round(
            step=self.progress.step + 1,
            attempt=attempt,
            goal=file.goal,
            min_reports=file.min_reports or file.goal,
            seats=math.ceil(file.goal * file.overselect),
            deadline_seconds=file.deadline_seconds * factor,
            lease_seconds=file.lease_seconds,
            wait_seconds=min(max(file.retry_seconds[0], 0.05), 5.0),
        )

    def _assignment(self, session: bytes, now: float) -> Assignment:
        grid, local = self.task.mechanism.grid, self.task.file.local
        plan = RoundPlan(
            run=self.run,
            step=self.round.step,
            attempt=self.round.attempt,
            model=self.task.file.model,
            checkpoint_sha256=self._checkpoint_sha256,
            size=int(self.progress.weights.size),
            clip_norm=grid.clip_norm,
            grid_bits=grid.bits,
            encoding=Encoding.for_grid(grid.bits),
            epochs=local.epochs,
            batch_size=local.batch_size,
            learning_rate=local.learning_rate,
            chunk_bytes=CHUNK_BYTES,
            max_examples=local.max_examples,
        )
        return Assignment(session, plan, self.round.deadline - now)

    def _tag(self, device_tag: bytes) -> bytes | None:
        """The pseudonym under which this run remembers a device; empty when it remembers none, None when a tag is missing."""
        if not self.task.file.participation.server_window:
            return b""
        if len(device_tag) != ID_BYTES:
            return None
        return hmac.digest(self._tag_key, device_tag, "sha256")[:ID_BYTES]

    def _may_sit(self, tag: bytes) -> bool:
        past = self._past.get(tag, [])
        return self.task.participation.allows(past, self.round.step) and not self.round.seated(tag)

    def _refuse(self, session: bytes, refusal: Refusal) -> Receipt:
        self.round.refuse(session)
        return Receipt(SessionStatus.REFUSED, refusal)

    def _settled(self, name: bytes) -> SessionStatus:
        """The status of a session of this attempt, or what became of it in the one before."""
        if name in self.round.sessions:
            return self.round.sessions[name].status
        before = self._previous.sessions.get(name) if self._previous else None
        if before is None:
            return SessionStatus.LOST
        final = before.status in (SessionStatus.COUNTED, SessionStatus.REFUSED)
        return before.status if final else SessionStatus.EXPIRED

    def _later(self, reason: LaterReason) -> TryLater:
        return TryLater(reason, self._window())

    def _window(self) -> RetryWindow:
        return RetryWindow(*self.task.file.round.retry_seconds)


def open_run(task: Task, around: Surroundings, initial_weights: Callable[[], FloatVector], now: float) -> Coordinator:
    """Continues the run that the store holds, at the step it had reached; or starts one.

    Raises StoreConflict or NoiseMismatch when the stored run must not be continued.
    """
    stored = around.store.load(task)
    if stored is None:
        weights = np.ascontiguousarray(initial_weights(), dtype=np.float32)
        start = Commit(
            Charge(0, task.mechanism.cost(0, task.participation)),
            0,
            weights,
            task.optimizer.init(weights.size),
            (),
            frozenset(),
            (),
            now,
            now,
        )
        around.store.create(task, around.new_id(), around.new_id() + around.new_id(), start)
        stored = around.store.load(task)
        assert stored is not None
    past: dict[bytes, list[int]] = {}
    for tag, step in stored.participations:
        past.setdefault(tag, []).append(step)
    return Coordinator(task, around, stored.run, stored.tag_key, restore(task, stored), past, now)
