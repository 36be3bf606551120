"""The life of a round: one attempt at one step.

    phase | event                                    | next                     | owed
    ------+------------------------------------------+--------------------------+---------------------------------------
    OPEN  | check-in, a seat left                    | OPEN                     | a session, ASSIGNED
    OPEN  | check-in otherwise                       | OPEN                     | try later
    OPEN  | begin upload, reservations left          | OPEN                     | GO: the session is RESERVED for a lease
    OPEN  | begin upload otherwise                   | OPEN                     | WAIT
    OPEN  | upload, RESERVED, sound                  | OPEN, CLOSED at the goal | COUNTED; on CLOSED a release
    OPEN  | upload, RESERVED, unsound                | OPEN                     | REFUSED with its reason; the seat is free
    OPEN  | upload otherwise                         | OPEN                     | refusal; nothing changes
    OPEN  | lease over                               | OPEN                     | RESERVED -> ASSIGNED
    OPEN  | abort                                    | OPEN                     | EXPIRED; the seat is free
    OPEN  | deadline, min_reports counted            | CLOSED                   | a release (the divisor stays the goal)
    OPEN  | deadline otherwise                       | ABANDONED                | drop the sum; next attempt of the same step
    CLOSED, ABANDONED | anything                     | same                     | not needed, too late

A session is COUNTED at most once, and REFUSED, COUNTED and EXPIRED are final. Reservations and counted uploads together never
exceed the goal.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from fedrho.protos.messages import Go, Refusal, Reservation, SessionStatus


class Phase(Enum):
    OPEN = "open"
    CLOSED = "closed"
    ABANDONED = "abandoned"


HOLDS_SEAT = (SessionStatus.ASSIGNED, SessionStatus.RESERVED, SessionStatus.COUNTED)


@dataclass
class Session:
    """One device's part in one attempt. `tag` is the server's own pseudonym of the device, or empty."""

    tag: bytes
    status: SessionStatus = SessionStatus.ASSIGNED
    lease_until: float = math.inf


@dataclass
class Round:
    """All times are the caller's, in seconds. The cost of a call, but for the end of a lease, does not grow with the sessions."""

    step: int
    attempt: int
    goal: int
    min_reports: int
    seats: int
    deadline_seconds: float
    lease_seconds: float
    wait_seconds: float
    deadline: float = math.inf
    phase: Phase = Phase.OPEN
    sessions: dict[bytes, Session] = field(default_factory=dict)
    requests: dict[bytes, bytes] = field(default_factory=dict)
    _seated: dict[bytes, Session] = field(default_factory=dict)
    _number: Counter[SessionStatus] = field(default_factory=Counter)
    _earliest_lapse: float = math.inf

    def seats_left(self) -> int:
        return self.seats - sum(self._number[status] for status in HOLDS_SEAT)

    def seated(self, tag: bytes) -> bool:
        """Whether a device with this tag holds a seat already."""
        return tag in self._seated and self._seated[tag].status in HOLDS_SEAT

    def admit(self, request_id: bytes, name: bytes, tag: bytes, now: float) -> None:
        """Gives a seat to a new session called `name`; the first one starts the clock of the attempt."""
        if not self.sessions:
            self.deadline = now + self.deadline_seconds
        session = Session(tag)
        self.sessions[name] = session
        self.requests[request_id] = name
        self._number[session.status] += 1
        if tag:
            self._seated[tag] = session

    def reserve(self, name: bytes, now: float) -> Reservation:
        """The answer to a session that wants to upload."""
        session = self.sessions.get(name)
        if session is not None and session.status is SessionStatus.COUNTED:
            return Reservation(Go.ALREADY_COUNTED)
        if session is None or self.phase is not Phase.OPEN or session.status not in HOLDS_SEAT:
            return Reservation(Go.NOT_NEEDED)
        if session.status is SessionStatus.ASSIGNED and self._taken() >= self.goal:
            return Reservation(Go.WAIT, min(self.wait_seconds, self.deadline - now))
        self._move(session, SessionStatus.RESERVED)
        session.lease_until = min(now + self.lease_seconds, self.deadline)
        self._earliest_lapse = min(self._earliest_lapse, session.lease_until)
        return Reservation(Go.GO, session.lease_until - now)

    def refusal(self, name: bytes) -> Refusal | None:
        """Why an upload of this session cannot be counted, whatever it holds."""
        session = self.sessions.get(name)
        if session is None:
            return Refusal.UNKNOWN_SESSION
        if self.phase is not Phase.OPEN:
            return Refusal.TOO_LATE
        return None if session.status is SessionStatus.RESERVED else Refusal.NO_RESERVATION

    def count(self, name: bytes) -> None:
        self._move(self.sessions[name], SessionStatus.COUNTED)
        if self.counted() == self.goal:
            self.phase = Phase.CLOSED

    def refuse(self, name: bytes) -> None:
        self._move(self.sessions[name], SessionStatus.REFUSED)

    def abort(self, name: bytes) -> None:
        session = self.sessions.get(name)
        if session is not None and session.status in (SessionStatus.ASSIGNED, SessionStatus.RESERVED):
            self._move(session, SessionStatus.EXPIRED)

    def lapse(self, now: float) -> None:
        """Ends leases, and the attempt at its deadline."""
        if now >= self._earliest_lapse:
            self._end_leases(now)
        if self.phase is Phase.OPEN and now >= self.deadline:
            self.phase = Phase.CLOSED if self.counted() >= self.min_reports else Phase.ABANDONED

    def counted(self) -> int:
        return self._number[SessionStatus.COUNTED]

    def counted_tags(self) -> tuple[bytes, ...]:
        return tuple(s.tag for s in self.sessions.values() if s.tag and s.status is SessionStatus.COUNTED)

    def _taken(self) -> int:
        return self._number[SessionStatus.RESERVED] + self.counted()

    def _end_leases(self, now: float) -> None:
        reserved = [session for session in self.sessions.values() if session.status is SessionStatus.RESERVED]
        for session in reserved:
            if now >= session.lease_until:
                self._move(session, SessionStatus.ASSIGNED)
        running = (session.lease_until for session in reserved if session.status is SessionStatus.RESERVED)
        self._earliest_lapse = min(running, default=math.inf)

    def _move(self, session: Session, status: SessionStatus) -> None:
        self._number[session.status] -= 1
        self._number[status] += 1
        session.status = status
