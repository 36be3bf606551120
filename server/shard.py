"""A shard: takes uploads for every run, in the memory of one process, and hands over a part when a coordinator seals it.

A shard knows no task, no weights and no noise. It is disposable: when it dies its parts are gone with the sessions they counted,
and the coordinator collects again what is missing. The total is the same integers for any number of shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from fedrho.privacy.vectors import Clipped, Gathered, InvalidVector
from fedrho.protos.messages import (
    Abort,
    BeginUpload,
    Go,
    Receipt,
    Refusal,
    Reservation,
    SessionStatus,
    StatusAnswer,
    StatusRequest,
    Upload,
)
from fedrho.server.intake import AttemptId, Change, Intake, Order, Part

DEFAULT_MEMORY = 512 * 1024 * 1024
"""Bytes of updates that may be on their way at once."""


class ShardLost(Exception):
    """The shard has died, or started anew: its part of the attempt is gone."""


class ShardLink(Protocol):
    """What a coordinator sees of a shard, in the same process or behind a wire.

    Every method but `open` may raise ShardLost; after that the attempt has to be opened there anew, with another key.
    """

    address: str
    """Where devices reach it, HOST:PORT; empty for where they checked in."""

    @property
    def alive(self) -> bool:
        """Whether it is worth sending devices there."""
        ...

    def open(self, order: Order) -> None: ...
    def ready(self, attempt: AttemptId) -> bool:
        """Whether devices may be sent there for it."""
        ...

    def grant(self, attempt: AttemptId, quota: int) -> None: ...
    def changes(self, attempt: AttemptId, now: float) -> Sequence[Change]:
        """What has become of sessions since the last call, leases that are over by `now` among it; final ones at last."""
        ...

    def seal(self, attempt: AttemptId) -> Part | None:
        """The part, once it has arrived; the shard takes no more uploads for it."""
        ...

    def drop(self, attempt: AttemptId) -> None: ...


class Shard:
    """Every run's open attempt and the one before, with what devices ask about them."""

    def __init__(self, memory: int = DEFAULT_MEMORY) -> None:
        self._memory = memory
        self._intakes: dict[bytes, Intake] = {}
        self._before: dict[bytes, Intake] = {}

    # -- what a coordinator asks -----------------------------------------------------------------------------------------

    def open(self, order: Order) -> None:
        """Opens an attempt; the run's attempt before it is dropped, and remembered for its devices. Twice is once."""
        before = self._intakes.get(order.attempt.run)
        if before is not None and before.order == order:
            return
        if before is not None:
            before.drop()
            self._before[order.attempt.run] = before
        self._intakes[order.attempt.run] = Intake(order)

    def intake(self, attempt: AttemptId) -> Intake:
        """Raises ShardLost when this shard does not collect that attempt."""
        intake = self._intakes.get(attempt.run)
        if intake is None or intake.order.attempt != attempt:
            raise ShardLost(f"attempt {attempt.attempt} at step {attempt.step} is not here")
        return intake

    def orphan(self, run: bytes) -> None:
        """Drops the attempt of a run that no coordinator asks about; its devices still hear what became of them."""
        intake = self._intakes.pop(run, None)
        if intake is not None:
            intake.drop()
            self._before[run] = intake

    def drop_all(self) -> None:
        """For the end of the process."""
        for intake in self._intakes.values():
            intake.drop()

    # -- what devices ask ------------------------------------------------------------------------------------------------

    def begin_upload(self, message: BeginUpload, now: float) -> Reservation:
        for intake in self._intakes.values():
            intake.lapse(now)  # of every run, for they share the memory
        for intake in self._all():
            if intake.admits(message.session, message.ticket):
                return intake.reserve(message.session, self._room_for(intake), now)
        return Reservation(Go.NOT_NEEDED)

    def may_upload(self, session: bytes, now: float) -> Receipt | None:
        """The receipt that an upload of this session would get whatever it holds; None when it should be read."""
        intake = self._home(session)
        if intake is None:
            return Receipt(SessionStatus.LOST, Refusal.UNKNOWN_SESSION)
        intake.lapse(now)
        status = intake.status(session) or SessionStatus.LOST
        if status is SessionStatus.COUNTED:
            return Receipt(status)
        refusal = intake.refusal(session)
        return None if refusal is None else Receipt(status, refusal)

    def order_of(self, session: bytes) -> Order:
        """What an upload of this session must look like; raises KeyError for one that is not here."""
        intake = self._home(session)
        if intake is None:
            raise KeyError("no such session")
        return intake.order

    def upload(self, message: Upload, now: float) -> Receipt:
        """Checks everything, then counts; a refused vector leaves no trace in the sum."""
        settled = self.may_upload(message.session, now)
        if settled is not None:
            return settled
        order = self.order_of(message.session)
        if message.vector.shape != (order.size,):
            return self.refuse(message.session, Refusal.WRONG_LENGTH, now)
        try:
            clipped = Clipped(message.vector, order.grid)
        except InvalidVector:
            return self.refuse(message.session, Refusal.NORM_TOO_LARGE, now)
        return self.count(message.session, clipped, now)

    def count(self, session: bytes, clipped: Clipped | Gathered, now: float) -> Receipt:
        """Adds a checked vector, unless its session lost its reservation meanwhile."""
        settled = self.may_upload(session, now)
        intake = self._home(session)
        if settled is not None or intake is None:
            return settled or Receipt(SessionStatus.LOST, Refusal.UNKNOWN_SESSION)
        intake.add(session, clipped)
        return Receipt(SessionStatus.COUNTED)

    def refuse(self, session: bytes, refusal: Refusal, now: float) -> Receipt:
        """Ends a session whose vector was not what it should be, unless it has ended already."""
        settled = self.may_upload(session, now)
        intake = self._home(session)
        if settled is not None or intake is None:
            return settled or Receipt(SessionStatus.LOST, Refusal.UNKNOWN_SESSION)
        intake.refuse(session)
        return Receipt(SessionStatus.REFUSED, refusal)

    def upload_status(self, message: StatusRequest, now: float) -> StatusAnswer:
        intake = self._home(message.session)
        if intake is None:
            return StatusAnswer(SessionStatus.LOST)
        intake.lapse(now)
        return StatusAnswer(intake.status(message.session) or SessionStatus.LOST)

    def abort(self, message: Abort, now: float) -> None:
        for intake in self._all():
            if intake.admits(message.session, message.ticket):
                intake.abort(message.session)

    def _all(self) -> Iterator[Intake]:
        yield from self._intakes.values()
        yield from self._before.values()

    def _home(self, session: bytes) -> Intake | None:
        return next((intake for intake in self._all() if intake.status(session) is not None), None)

    def _room_for(self, intake: Intake) -> bool:
        """Whether one more update fits into memory; a single one always does."""
        taken = sum(one.reserved_bytes for one in self._all())
        return taken == 0 or taken + intake.order.update_bytes <= self._memory


class LocalShard:
    """A shard in the coordinator's own process: it never dies alone."""

    address = ""
    alive = True

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._heard: dict[AttemptId, int] = {}

    def open(self, order: Order) -> None:
        self._shard.open(order)
        self._heard = {attempt: heard for attempt, heard in self._heard.items() if attempt.run != order.attempt.run}

    def ready(self, attempt: AttemptId) -> bool:
        return True

    def grant(self, attempt: AttemptId, quota: int) -> None:
        self._shard.intake(attempt).grant(quota)

    def changes(self, attempt: AttemptId, now: float) -> Sequence[Change]:
        intake = self._shard.intake(attempt)
        intake.lapse(now)
        log = intake.log
        heard, self._heard[attempt] = self._heard.get(attempt, 0), len(log)
        return log[heard:]

    def seal(self, attempt: AttemptId) -> Part | None:
        return self._shard.intake(attempt).seal()

    def drop(self, attempt: AttemptId) -> None:
        self._shard.intake(attempt).drop()
