"""One shard's part of one attempt: who may upload, what was counted, and the sum of it.

    session  | event                                      | next                  | answer
    ---------+--------------------------------------------+-----------------------+------------------------------
    unknown  | begin upload with the ticket of this part  | ASSIGNED, and on      |
    ASSIGNED | begin upload, a reservation left           | RESERVED for a lease  | GO
    ASSIGNED | begin upload otherwise                     | ASSIGNED              | WAIT
    RESERVED | begin upload                               | RESERVED, new lease   | GO
    RESERVED | upload, sound                              | COUNTED               | COUNTED
    RESERVED | upload, unsound                            | REFUSED               | REFUSED with its reason
    RESERVED | lease over                                 | ASSIGNED              |
    ASSIGNED, RESERVED | abort                            | EXPIRED               |
    any      | anything, after the seal                   | same                  | NOT_NEEDED, TOO_LATE

COUNTED, REFUSED and EXPIRED are final. Counted sessions and reservations together never exceed the quota. Sum and sessions live
in the same object and die together: nothing of either is written down anywhere.
"""

from __future__ import annotations

import hmac
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedrho.privacy.vectors import Clipped, ClippedSum, Gathered, Grid
from fedrho.protos.messages import ID_BYTES, Encoding, Go, Refusal, Reservation, SessionStatus
from fedrho.server.aggregation import RunningSum

MANY_WAITING = 200
LONGEST_WAIT = 30.0

Change = tuple[bytes, SessionStatus]
"""A session, and the status that it has now."""

UNSETTLED = (SessionStatus.ASSIGNED, SessionStatus.RESERVED)


@dataclass(frozen=True)
class AttemptId:
    """One try at one step of one run, by one coordinator: `opened` is random, so that no other's orders are about it."""

    run: bytes
    step: int
    attempt: int
    opened: bytes = b""


@dataclass(frozen=True)
class Order:
    """What a shard is told to collect. `key` makes the tickets of this attempt on this shard, and of nothing else."""

    attempt: AttemptId
    key: bytes = field(repr=False)
    size: int
    grid: Grid
    quota: int
    lease_seconds: float
    wait_seconds: float

    @property
    def encoding(self) -> Encoding:
        return Encoding.for_grid(self.grid.bits)

    @property
    def update_bytes(self) -> int:
        """Of one encoded update."""
        return self.size * self.encoding.width

    def ticket(self, session: bytes) -> bytes:
        """What a device of this session shows: a MAC that nobody else can make, and that dies with the attempt."""
        attempt = self.attempt
        text = b"fedrho ticket" + attempt.run + attempt.step.to_bytes(8, "big") + attempt.attempt.to_bytes(8, "big") + session
        return hmac.digest(self.key, text, "sha256")[:ID_BYTES]

    def issued(self, session: bytes, ticket: bytes) -> bool:
        return hmac.compare_digest(self.ticket(session), ticket)


@dataclass(frozen=True, eq=False)
class Part:
    """A sealed part: the sessions that were counted, and the sum of exactly their updates."""

    counted: tuple[bytes, ...]
    total: ClippedSum


@dataclass
class Upload:
    """The state of one session."""

    status: SessionStatus = SessionStatus.ASSIGNED
    lease_until: float = math.inf


class Intake:
    """All times are the caller's, in seconds. The cost of a call, but for the end of a lease, does not grow with the sessions."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.log: list[Change] = []
        self._quota = order.quota
        self._sessions: dict[bytes, Upload] = {}
        self._number: Counter[SessionStatus] = Counter()
        self._sum: RunningSum | None = RunningSum(order.size, order.grid)
        self._part: Part | None = None
        self._earliest_lapse = math.inf

    @property
    def open(self) -> bool:
        return self._sum is not None

    @property
    def counted(self) -> int:
        return self._number[SessionStatus.COUNTED]

    @property
    def reserved_bytes(self) -> int:
        """Memory that updates on their way may take."""
        return self._number[SessionStatus.RESERVED] * self.order.update_bytes

    def grant(self, quota: int) -> None:
        """Another quota, never less than what is counted or reserved."""
        self._quota = max(quota, self._taken())

    def status(self, session: bytes) -> SessionStatus | None:
        """None for a session that never came here."""
        known = self._sessions.get(session)
        return known.status if known else None

    def admits(self, session: bytes, ticket: bytes) -> bool:
        """Whether the session is known here, or shows the ticket of this part."""
        if session in self._sessions:
            return True
        if not self.open or not self.order.issued(session, ticket):
            return False
        self._sessions[session] = Upload()
        self._number[SessionStatus.ASSIGNED] += 1
        self.log.append((session, SessionStatus.ASSIGNED))
        return True

    def reserve(self, session: bytes, room: bool, now: float) -> Reservation:
        """The answer to an admitted session that wants to upload; `room` says whether there is memory for one more."""
        upload = self._sessions[session]
        if upload.status is SessionStatus.COUNTED:
            return Reservation(Go.ALREADY_COUNTED)
        if not self.open or upload.status not in UNSETTLED:
            return Reservation(Go.NOT_NEEDED)
        if upload.status is SessionStatus.ASSIGNED and (self._taken() >= self._quota or not room):
            return Reservation(Go.WAIT, self._wait())
        self._move(session, SessionStatus.RESERVED)
        upload.lease_until = now + self.order.lease_seconds
        self._earliest_lapse = min(self._earliest_lapse, upload.lease_until)
        return Reservation(Go.GO, self.order.lease_seconds)

    def refusal(self, session: bytes) -> Refusal | None:
        """Why an upload of this session cannot be counted, whatever it holds."""
        if not self.open:
            return Refusal.TOO_LATE
        return None if self._sessions[session].status is SessionStatus.RESERVED else Refusal.NO_RESERVATION

    def add(self, session: bytes, clipped: Clipped | Gathered) -> None:
        """Adds and counts, in one step; raises ValueError for a session that has no reservation."""
        if self._sum is None or self.refusal(session) is not None:
            raise ValueError("the session cannot be counted")
        self._sum.add(clipped)
        self._move(session, SessionStatus.COUNTED)

    def refuse(self, session: bytes) -> None:
        self._move(session, SessionStatus.REFUSED)

    def abort(self, session: bytes) -> None:
        if self._sessions[session].status in UNSETTLED:
            self._move(session, SessionStatus.EXPIRED)

    def lapse(self, now: float) -> None:
        """Ends the leases that are over."""
        if now < self._earliest_lapse:
            return
        reserved = [(name, one) for name, one in self._sessions.items() if one.status is SessionStatus.RESERVED]
        for name, upload in reserved:
            if now >= upload.lease_until:
                self._move(name, SessionStatus.ASSIGNED)
        self._earliest_lapse = min(
            (one.lease_until for _, one in reserved if one.status is SessionStatus.RESERVED), default=math.inf
        )

    def seal(self) -> Part:
        """Closes for good; the same part however often it is asked for, until it is dropped."""
        if self._part is None:
            if self._sum is None:
                raise ValueError("the part was dropped")
            self._part = Part(tuple(self._with(SessionStatus.COUNTED)), self._sum.close())
            self._sum = None
            self._expire()
        return self._part

    def drop(self) -> None:
        """Overwrites the sum, if it is still here; what became of the sessions can still be asked."""
        if self._sum is not None:
            self._sum.destroy()
            self._sum = None
            self._expire()
        self._part = None

    def _wait(self) -> float:
        """Longer where many wait, so that their asking costs little."""
        return min(LONGEST_WAIT, self.order.wait_seconds * (1.0 + self._number[SessionStatus.ASSIGNED] / MANY_WAITING))

    def _expire(self) -> None:
        for session in [*self._with(SessionStatus.ASSIGNED), *self._with(SessionStatus.RESERVED)]:
            self._move(session, SessionStatus.EXPIRED)

    def _with(self, status: SessionStatus) -> Sequence[bytes]:
        return [name for name, upload in self._sessions.items() if upload.status is status]

    def _taken(self) -> int:
        return self._number[SessionStatus.RESERVED] + self.counted

    def _move(self, session: bytes, status: SessionStatus) -> None:
        upload = self._sessions[session]
        if upload.status is not status:
            self._number[upload.status] -= 1
            self._number[status] += 1
            upload.status = status
            self.log.append((session, status))
