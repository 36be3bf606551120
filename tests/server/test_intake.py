"""One shard's part of one attempt, event by event: the table at the head of `intake.py`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrho.privacy.vectors import Clipped, Grid, pack
from fedrho.protos.messages import Go, Refusal, SessionStatus
from fedrho.server.intake import LONGEST_WAIT, MANY_WAITING, AttemptId, Intake, Order

GRID = Grid(1.0, 8)
ORDER = Order(AttemptId(bytes(16), 3, 2), b"k" * 32, 4, GRID, quota=2, lease_seconds=4.0, wait_seconds=0.5)
ONE, TWO, THREE = (bytes([number]) * 16 for number in (1, 2, 3))


def vector(place: int) -> Clipped:
    coordinates = np.zeros(4, dtype=np.int32)
    coordinates[place] = GRID.radius
    return Clipped(coordinates, GRID)


@pytest.fixture
def intake() -> Intake:
    made = Intake(ORDER)
    assert all(made.admits(session, ORDER.ticket(session)) for session in (ONE, TWO, THREE))
    return made


def begin(intake: Intake, session: bytes, now: float = 0.0, room: bool = True) -> Go:
    return intake.reserve(session, room, now).answer


def test_a_ticket_is_of_one_session_attempt_step_run_and_key() -> None:
    ticket = ORDER.ticket(ONE)
    assert ORDER.issued(ONE, ticket)
    assert not ORDER.issued(TWO, ticket)
    others = [replace(ORDER, key=b"l" * 32)]
    for change in ({"run": ONE}, {"step": 4}, {"attempt": 3}, {"step": 2, "attempt": 3}):
        others.append(replace(ORDER, attempt=replace(ORDER.attempt, **change)))
    assert len({order.ticket(ONE) for order in (ORDER, *others)}) == 6
    assert not any(order.issued(ONE, ticket) for order in others)


@pytest.mark.parametrize("ticket", [b"", bytes(16), ORDER.ticket(TWO), ORDER.ticket(ONE)[:15], ORDER.ticket(ONE) + b"x"])
def test_what_is_not_its_ticket_admits_no_session_and_leaves_no_trace(ticket: bytes) -> None:
    intake = Intake(ORDER)
    assert not intake.admits(ONE, ticket)
    assert (intake.status(ONE), intake.log) == (None, [])


def test_an_admitted_session_needs_no_ticket_again(intake: Intake) -> None:
    assert intake.admits(ONE, b"")
    assert len(intake.log) == 3


def test_counted_and_reserved_never_exceed_the_quota(intake: Intake) -> None:
    assert [begin(intake, session) for session in (ONE, TWO, THREE)] == [Go.GO, Go.GO, Go.WAIT]
    intake.add(ONE, vector(0))
    assert begin(intake, THREE) is Go.WAIT
    intake.abort(TWO)
    assert begin(intake, THREE) is Go.GO


def test_without_room_in_memory_a_session_waits_and_one_that_has_room_keeps_it(intake: Intake) -> None:
    assert begin(intake, ONE, room=False) is Go.WAIT
    assert begin(intake, ONE) is Go.GO
    assert begin(intake, ONE, room=False) is Go.GO


@pytest.mark.parametrize(("now", "status"), [(3.99, SessionStatus.RESERVED), (4.0, SessionStatus.ASSIGNED)])
def test_a_lease_ends_when_its_time_is_over(intake: Intake, now: float, status: SessionStatus) -> None:
    begin(intake, ONE)
    intake.lapse(now)
    assert intake.status(ONE) is status
    assert intake.refusal(ONE) is (None if status is SessionStatus.RESERVED else Refusal.NO_RESERVATION)


def test_each_lease_ends_by_itself_and_beginning_again_renews_it(intake: Intake) -> None:
    begin(intake, ONE, 0.0)
    begin(intake, TWO, 2.0)
    begin(intake, ONE, 3.0)
    intake.lapse(4.5)
    assert [intake.status(session) for session in (ONE, TWO)] == [SessionStatus.RESERVED] * 2
    intake.lapse(6.5)
    assert [intake.status(session) for session in (ONE, TWO)] == [SessionStatus.RESERVED, SessionStatus.ASSIGNED]
    intake.lapse(7.0)
    assert intake.status(ONE) is SessionStatus.ASSIGNED


def test_a_session_is_added_once_and_only_with_a_reservation(intake: Intake) -> None:
    with pytest.raises(ValueError, match="cannot be counted"):
        intake.add(ONE, vector(0))
    begin(intake, ONE)
    intake.add(ONE, vector(0))
    with pytest.raises(ValueError, match="cannot be counted"):
        intake.add(ONE, vector(0))
    assert begin(intake, ONE) is Go.ALREADY_COUNTED
    assert sums(intake) == [GRID.radius, 0, 0, 0]


@pytest.mark.parametrize("length", [3, 5])
def test_a_vector_of_another_length_counts_nobody(intake: Intake, length: int) -> None:
    begin(intake, ONE)
    with pytest.raises(ValueError, match="does not belong"):
        intake.add(ONE, Clipped(np.zeros(length, dtype=np.int32), GRID))
    assert intake.status(ONE) is SessionStatus.RESERVED
    assert intake.counted == 0


def test_refused_expired_and_counted_are_final(intake: Intake) -> None:
    for session in (ONE, TWO):
        begin(intake, session)
    intake.add(ONE, vector(0))
    intake.refuse(TWO)
    intake.abort(THREE)
    for session in (ONE, TWO, THREE):
        intake.abort(session)
        intake.lapse(1e9)
    assert [intake.status(session) for session in (ONE, TWO, THREE)] == [
        SessionStatus.COUNTED,
        SessionStatus.REFUSED,
        SessionStatus.EXPIRED,
    ]
    assert [begin(intake, session) for session in (TWO, THREE)] == [Go.NOT_NEEDED] * 2


def test_the_part_holds_the_counted_and_exactly_their_sum_however_often_it_is_asked_for(intake: Intake) -> None:
    for session, place in ((TWO, 1), (ONE, 3)):
        begin(intake, session)
        intake.add(session, vector(place))
    part = intake.seal()
    assert intake.seal() is part
    assert set(part.counted) == {ONE, TWO}
    assert sums(intake) == [0, GRID.radius, 0, GRID.radius]


def test_after_the_seal_nobody_is_admitted_reserved_or_counted(intake: Intake) -> None:
    begin(intake, ONE)
    intake.seal()
    fresh = bytes([9]) * 16
    assert not intake.admits(fresh, ORDER.ticket(fresh))
    assert intake.status(ONE) is SessionStatus.EXPIRED
    assert intake.refusal(ONE) is Refusal.TOO_LATE
    assert begin(intake, ONE) is Go.NOT_NEEDED
    with pytest.raises(ValueError, match="cannot be counted"):
        intake.add(ONE, vector(0))
    assert sums(intake) == [0, 0, 0, 0]


def test_a_dropped_part_overwrites_its_sum_and_can_not_be_had(intake: Intake) -> None:
    begin(intake, ONE)
    intake.add(ONE, vector(0))
    assert intake._sum is not None
    held = intake._sum._wide, intake._sum._lane
    intake.drop()
    assert [array.any() for array in held] == [False, False]
    assert intake.status(ONE) is SessionStatus.COUNTED  # what became of it can still be asked
    with pytest.raises(ValueError, match="dropped"):
        intake.seal()


def test_a_sealed_part_can_be_dropped_too(intake: Intake) -> None:
    intake.seal()
    intake.drop()
    with pytest.raises(ValueError, match="dropped"):
        intake.seal()


def test_a_grant_never_takes_back_what_is_counted_or_reserved(intake: Intake) -> None:
    begin(intake, ONE)
    intake.grant(0)
    assert begin(intake, TWO) is Go.WAIT
    intake.grant(3)
    assert [begin(intake, TWO), begin(intake, THREE)] == [Go.GO, Go.GO]


def test_the_log_tells_every_change_once_and_in_order(intake: Intake) -> None:
    begin(intake, ONE)
    begin(intake, ONE)
    intake.lapse(10.0)
    begin(intake, ONE, 10.0)
    intake.add(ONE, vector(0))
    assert intake.log[3:] == [
        (ONE, status)
        for status in (SessionStatus.RESERVED, SessionStatus.ASSIGNED, SessionStatus.RESERVED, SessionStatus.COUNTED)
    ]


def test_where_many_wait_each_waits_longer_up_to_a_limit() -> None:
    intake = Intake(replace(ORDER, quota=0))
    waits = []
    for number in range(MANY_WAITING + 1):
        session = number.to_bytes(16, "big")
        assert intake.admits(session, ORDER.ticket(session))
        waits.append(intake.reserve(session, True, 0.0).seconds)
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(0.5, rel=0.01)
    assert waits[-1] == pytest.approx(1.0, rel=0.01)
    slow = Intake(replace(ORDER, quota=0, wait_seconds=1e6))
    assert slow.admits(ONE, ORDER.ticket(ONE))
    assert slow.reserve(ONE, True, 0.0).seconds == LONGEST_WAIT


def test_neither_an_order_nor_a_ticket_shows_its_secret() -> None:
    assert "kkk" not in repr(ORDER)


def sums(intake: Intake) -> list[int]:
    return list(np.frombuffer(pack(intake.seal().total), dtype="<i8"))
