"""The life of a round: one attempt at one step, as the coordinator sees it. What shards do with uploads stands in `intake.py`.

    phase   | event                                        | next      | owed
    --------+----------------------------------------------+-----------+---------------------------------------------
    OPEN    | check-in, a seat left                        | OPEN      | a session, ASSIGNED, and its ticket
    OPEN    | check-in otherwise                           | OPEN      | try later
    OPEN    | a shard says that a session was refused,     | OPEN      | its seat is free
            | given up, or lost with the shard             |           |
    OPEN    | a session that no shard has heard of is old, | OPEN      | its seat is free; it may still come
            | or one that had a reservation let it lapse   |           |
    OPEN    | shards have counted the goal, or deadline    | SEALING   | every shard seals its part
    SEALING | a shard is lost                              | SEALING   | its part is missing
    SEALING | all parts are in, and hold the goal          | CLOSED    | a release
    SEALING | all parts are in, they hold min_reports, and | CLOSED    | a release (the divisor stays the goal)
            | the deadline has passed, or the goal had     |           |
            | been counted before a shard was lost         |           |
    SEALING | all parts are in otherwise                   | ABANDONED | drop the parts; next attempt of the same step
    CLOSED, ABANDONED | anything                           | same      | try later

Seats are not the goal: there are more of them, because some devices drop out. What shards say on their way is only used to give
out seats; what is released, and who was counted, is what the sealed parts hold.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from fedrho.protos.messages import SessionStatus


class Phase(Enum):
    OPEN = "open"
    SEALING = "sealing"
    CLOSED = "closed"
    ABANDONED = "abandoned"


PATIENCE = 2.0
"""Times the median: nearly all devices that will come have come by then."""

GONE = (SessionStatus.REFUSED, SessionStatus.EXPIRED, SessionStatus.LOST)
STAYS = (SessionStatus.RESERVED, SessionStatus.COUNTED)


@dataclass
class Seat:
    """One device's part in one attempt. `tag` is the server's own pseudonym of the device, or empty.

    `heard_at` is when its shard first mentioned it; `held` is False once the seat is free for somebody else.
    """

    shard: int
    tag: bytes
    since: float
    status: SessionStatus = SessionStatus.ASSIGNED
    heard_at: float | None = None
    held: bool = True


@dataclass
class Round:
    """All times are the caller's, in seconds. No call looks at every session, but for the loss of a shard."""

    step: int
    attempt: int
    goal: int
    min_reports: int
    seats: int
    deadline_seconds: float
    training_seconds: float
    opened_at: float
    deadline: float = math.inf
    phase: Phase = Phase.OPEN
    was_full: bool = False
    sessions: dict[bytes, Seat] = field(default_factory=dict)
    requests: dict[bytes, bytes] = field(default_factory=dict)
    _seated: dict[bytes, Seat] = field(default_factory=dict)
    _held: Counter[int] = field(default_factory=Counter)
    _taken: int = 0
    _number: Counter[SessionStatus] = field(default_factory=Counter)
    _waiting: deque[Seat] = field(default_factory=deque)

    @property
    def began_at(self) -> float:
        """When the first device took its seat; before that, when the attempt was opened."""
        return self.deadline - self.deadline_seconds if self.sessions else self.opened_at

    def seats_left(self) -> int:
        return self.seats - self._taken

    def held_by(self, shard: int) -> int:
        """Seats of devices that were sent to a shard."""
        return self._held[shard]

    def seated(self, tag: bytes) -> bool:
        """Whether a device with this tag may still be counted in this attempt, or was."""
        return tag in self._seated and self._seated[tag].status not in GONE

    def admit(self, request_id: bytes, session: bytes, shard: int, tag: bytes, now: float) -> None:
        """Gives a seat to a new session; the first one starts the clock of the attempt."""
        if not self.sessions:
            self.deadline = now + self.deadline_seconds
        seat = Seat(shard, tag, now)
        self.sessions[session] = seat
        self.requests[request_id] = session
        self._number[seat.status] += 1
        self._held[shard] += 1
        self._taken += 1
        self._waiting.append(seat)
        if tag:
            self._seated[tag] = seat

    def note(self, session: bytes, status: SessionStatus, now: float) -> None:
        """What a shard says about a session; a final word stays."""
        seat = self.sessions.get(session)
        if seat is None or seat.status in GONE or seat.status is SessionStatus.COUNTED:
            return
        seat.heard_at = now if seat.heard_at is None else seat.heard_at
        lapsed = seat.status is SessionStatus.RESERVED and status is SessionStatus.ASSIGNED
        self._number[seat.status] -= 1
        self._number[status] += 1
        seat.status = status
        if status in GONE or lapsed:
            self._free(seat)

    def lose(self, shard: int) -> None:
        """The shard is gone, and with it everything that was sent there."""
        self.was_full = self.was_full or (self.phase is Phase.SEALING and self.full())
        for seat in self.sessions.values():
            if seat.shard == shard and seat.status not in GONE:
                self._number[seat.status] -= 1
                self._number[SessionStatus.LOST] += 1
                seat.status = SessionStatus.LOST
                self._free(seat)

    def lapse(self, now: float) -> None:
        """Frees the seats of devices that have not begun to upload in the time they had."""
        while self._waiting and (self._waiting[0].heard_at is not None or now - self._waiting[0].since >= self.training_seconds):
            seat = self._waiting.popleft()
            if seat.heard_at is None:
                self._free(seat)

    def counted(self) -> int:
        """As far as shards have said."""
        return self._number[SessionStatus.COUNTED]

    def kept_and_dropped(self, now: float) -> tuple[int, int]:
        """Of the devices that had time enough by now: how many came to upload, and how many did not, or in vain.

        Enough is PATIENCE times what half of those took that came. Without it a round that fills quickly would see who came but
        not yet who stays away. Devices that were sent to a shard that died do not count.
        """
        seats = [seat for seat in self.sessions.values() if seat.status is not SessionStatus.LOST]
        delays = sorted(seat.heard_at - seat.since for seat in seats if seat.heard_at is not None)
        enough = min(self.training_seconds, PATIENCE * delays[len(delays) // 2]) if delays else self.training_seconds
        old = [seat for seat in seats if now - seat.since > enough]
        kept = sum(seat.heard_at is not None and seat.status not in GONE and (seat.held or seat.status in STAYS) for seat in old)
        return kept, len(old) - kept

    def tags_of(self, sessions: Iterable[bytes]) -> tuple[bytes, ...]:
        tags = (self.sessions[session].tag for session in sessions if session in self.sessions)
        return tuple(tag for tag in tags if tag)

    def full(self) -> bool:
        return self.counted() >= self.goal

    def overdue(self, now: float) -> bool:
        return now >= self.deadline

    def settle(self, counted: int, now: float) -> None:
        """Every part is in, with this many sessions counted."""
        enough = counted >= self.goal or (counted >= self.min_reports and (self.overdue(now) or self.was_full))
        self.phase = Phase.CLOSED if enough else Phase.ABANDONED

    def _free(self, seat: Seat) -> None:
        if seat.held:
            seat.held = False
            self._held[seat.shard] -= 1
            self._taken -= 1
