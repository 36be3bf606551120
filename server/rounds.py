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

from dataclasses import dataclass, field
from enum import Enum

from fedrho.protos.messages import Go, Refusal, Reservation, SessionStatus


class Phase(Enum):
    OPEN = "open"
    CLOSED = "closed"
    ABANDONED = "abandoned"


HOLDS_SEAT = {SessionStatus.ASSIGNED, SessionStatus.RESERVED, SessionStatus.COUNTED}


@dataclass
class Session:
    """One device's part in one attempt. `tag` is the server's own pseudonym of the device, or empty."""

    tag: bytes = b""
    status: SessionStatus = SessionStatus.ASSIGNED
    lease_until: float = 0.0


@dataclass
class Round:
    """All times are the caller's, in seconds."""

    step: int
    attempt: int
    goal: int
    min_reports: int
    seats: int
    deadline: float
    lease_seconds: float
    wait_seconds: float
    phase: Phase = Phase.OPEN
    sessions: dict[bytes, Session] = field(default_factory=dict)
    requests: dict[bytes, bytes] = field(default_factory=dict)

    def seats_left(self) -> int:
        return self.seats - sum(session.status in HOLDS_SEAT for session in self.sessions.values())

    def seated(self, tag: bytes) -> bool:
        """Whether a device with this tag holds a seat already."""
        return any(session.tag == tag and session.status in HOLDS_SEAT for session in self.sessions.values())

    def admit(self, request_id: bytes, session: bytes, tag: bytes) -> None:
        self.sessions[session] = Session(tag)
        self.requests[request_id] = session

    def reserve(self, name: bytes, now: float) -> Reservation:
        """The answer to a session that wants to upload."""
        session = self.sessions.get(name)
        if session is not None and session.status is SessionStatus.COUNTED:
            return Reservation(Go.ALREADY_COUNTED)
        if session is None or self.phase is not Phase.OPEN or session.status not in HOLDS_SEAT:
            return Reservation(Go.NOT_NEEDED)
        if session.status is SessionStatus.ASSIGNED and self._taken() >= self.goal:
            return Reservation(Go.WAIT, min(self.wait_seconds, self.deadline - now))
        session.status = SessionStatus.RESERVED
        session.lease_until = min(now + self.lease_seconds, self.deadline)
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
        self.sessions[name].status = SessionStatus.COUNTED
        if self.counted() == self.goal:
            self.phase = Phase.CLOSED

    def refuse(self, name: bytes) -> None:
        self.sessions[name].status = SessionStatus.REFUSED

    def abort(self, name: bytes) -> None:
        session = self.sessions.get(name)
        if session is not None and session.status in (SessionStatus.ASSIGNED, SessionStatus.RESERVED):
            session.status = SessionStatus.EXPIRED

    def lapse(self, now: float) -> None:
        """Ends leases, and the attempt at its deadline."""
        for session in self.sessions.values():
            if session.status is SessionStatus.RESERVED and now >= session.lease_until:
                session.status = SessionStatus.ASSIGNED
        if self.phase is Phase.OPEN and now >= self.deadline:
            self.phase = Phase.CLOSED if self.counted() >= self.min_reports else Phase.ABANDONED

    def counted(self) -> int:
        return sum(session.status is SessionStatus.COUNTED for session in self.sessions.values())

    def counted_tags(self) -> tuple[bytes, ...]:
        return tuple(s.tag for s in self.sessions.values() if s.tag and s.status is SessionStatus.COUNTED)

    def _taken(self) -> int:
        taken = (SessionStatus.RESERVED, SessionStatus.COUNTED)
        return sum(session.status in taken for session in self.sessions.values())
