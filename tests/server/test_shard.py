"""A shard of several runs, and an engine over shards that die: what is lost is collected again, and nobody is counted twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.vectors import Grid
from fedrho.protos.messages import (
    Abort,
    AbortReason,
    Assignment,
    BeginUpload,
    Go,
    LaterReason,
    Receipt,
    Refusal,
    SessionStatus,
    StatusRequest,
    TryLater,
    Upload,
)
from fedrho.server.coordinator import Coordinator, Surroundings, open_run
from fedrho.server.intake import AttemptId, Order
from fedrho.server.shard import LocalShard, Shard, ShardLost
from fedrho.server.storage.store import MemoryStore
from tests.server.conftest import MakeTask
from tests.server.mortal import MortalShard
from tests.server.one_run import new_id

COUNTED = Receipt(SessionStatus.COUNTED)


def order(run: int, attempt: int = 1, quota: int = 10) -> Order:
    return Order(AttemptId(bytes([run]) * 16, 1, attempt), bytes([attempt]) * 32, 4, Grid(1.0, 8), quota, 4.0, 0.5)


def begin(shard: Shard, of: Order, session: bytes, now: float = 0.0) -> Go:
    return shard.begin_upload(BeginUpload(session, of.ticket(session)), now).answer


def upload(shard: Shard, session: bytes, now: float = 0.0) -> Receipt:
    return shard.upload(Upload(session, np.zeros(4, dtype=np.int32)), now)


def status(shard: Shard, session: bytes, now: float = 0.0) -> SessionStatus:
    return shard.upload_status(StatusRequest(session), now).status


# -- one shard


def test_runs_share_a_shard_and_nothing_else() -> None:
    shard, one, two = Shard(), order(1), order(2)
    shard.open(one)
    shard.open(two)
    first, second = new_id(), new_id()
    assert begin(shard, one, first) is Go.GO
    assert shard.begin_upload(BeginUpload(second, one.ticket(first)), 0.0).answer is Go.NOT_NEEDED
    assert begin(shard, two, second) is Go.GO
    assert [upload(shard, session) for session in (first, second)] == [COUNTED, COUNTED]
    assert [shard.intake(of.attempt).seal().counted for of in (one, two)] == [(first,), (second,)]


def test_the_attempt_before_is_dropped_and_its_devices_still_hear_what_became_of_them() -> None:
    shard, counted, waiting = Shard(), new_id(), new_id()
    shard.open(order(1))
    for session in (counted, waiting):
        begin(shard, order(1), session)
    upload(shard, counted)
    shard.open(order(1, attempt=2))
    assert [status(shard, session) for session in (counted, waiting)] == [SessionStatus.COUNTED, SessionStatus.EXPIRED]
    assert upload(shard, waiting) == Receipt(SessionStatus.EXPIRED, Refusal.TOO_LATE)
    with pytest.raises(ShardLost, match="attempt 1 at step 1"):
        shard.intake(order(1).attempt)
    shard.open(order(1, attempt=3))
    assert [status(shard, session) for session in (counted, waiting)] == [SessionStatus.LOST] * 2


def test_a_ticket_of_the_attempt_before_is_void() -> None:
    shard, session = Shard(), new_id()
    shard.open(order(1))
    shard.open(order(1, attempt=2))
    assert begin(shard, order(1), session) is Go.NOT_NEEDED
    shard.abort(Abort(session, AbortReason.CONDITIONS, order(1).ticket(session)), 0.0)
    assert status(shard, session) is SessionStatus.LOST


def test_an_attempt_opened_twice_is_opened_once_and_with_another_key_anew() -> None:
    shard, session = Shard(), new_id()
    shard.open(order(1))
    begin(shard, order(1), session)
    upload(shard, session)
    shard.open(order(1))
    assert shard.intake(order(1).attempt).counted == 1
    shard.open(replace(order(1), key=b"another" * 4))
    assert shard.intake(order(1).attempt).counted == 0


def test_memory_bounds_the_reservations_of_all_runs_together_but_never_the_only_one() -> None:
    shard, sessions = Shard(memory=2 * order(1).update_bytes), [new_id() for _ in range(3)]
    shard.open(order(1))
    shard.open(order(2))
    answers = [begin(shard, order(1 + number % 2), session) for number, session in enumerate(sessions)]
    assert answers == [Go.GO, Go.GO, Go.WAIT]
    upload(shard, sessions[0])
    assert begin(shard, order(1), sessions[2]) is Go.GO
    small = Shard(memory=1)
    small.open(order(1))
    assert begin(small, order(1), sessions[0]) is Go.GO


def test_a_lease_that_is_over_frees_memory_for_every_run_though_nobody_asks_its_own() -> None:
    shard, first, second = Shard(memory=order(1).update_bytes), new_id(), new_id()
    shard.open(order(1))
    shard.open(order(2))
    assert begin(shard, order(1), first) is Go.GO
    assert begin(shard, order(2), second, now=3.0) is Go.WAIT
    assert begin(shard, order(2), second, now=4.0) is Go.GO


def test_a_reservation_lost_before_the_last_byte_counts_nobody() -> None:
    shard, session = Shard(), new_id()
    shard.open(order(1))
    begin(shard, order(1), session)
    assert shard.may_upload(session, 0.0) is None
    assert upload(shard, session, now=4.0) == Receipt(SessionStatus.ASSIGNED, Refusal.NO_RESERVATION)
    assert shard.intake(order(1).attempt).counted == 0


def test_a_link_hears_each_change_once_and_starts_anew_with_an_attempt() -> None:
    shard = Shard()
    link = LocalShard(shard)
    for attempt in (1, 2):
        link.open(order(1, attempt))
        session = new_id()
        begin(shard, order(1, attempt), session)
        heard = [(session, SessionStatus.ASSIGNED), (session, SessionStatus.RESERVED)]
        assert list(link.changes(order(1, attempt).attempt, 0.0)) == heard
        assert list(link.changes(order(1, attempt).attempt, 0.0)) == []


# -- several shards


class Fleet:
    """A run over mortal shards; every device is somebody new unless it has a tag."""

    def __init__(self, make_task: MakeTask, shards: int, **task: object) -> None:
        self.links = {str(number): MortalShard(str(number)) for number in range(shards)}
        around = Surroundings(SystemNoise(), MemoryStore(), new_id, list(self.links.values()))
        self.engine: Coordinator = open_run(make_task(**task), around, lambda: np.zeros(4, dtype=np.float32), 0.0)

    def ask(self, tag: bytes = b"", request_id: bytes | None = None, now: float = 0.0) -> Assignment | TryLater:
        return self.engine.offer(request_id or new_id(), tag, now)

    def seat(self, tag: bytes = b"", now: float = 0.0) -> Assignment:
        answer = self.ask(tag, now=now)
        assert isinstance(answer, Assignment), answer
        return answer

    def upload(self, seat: Assignment, now: float = 0.0) -> Receipt | Go:
        shard = self.links[seat.upload_address].shard
        go = shard.begin_upload(BeginUpload(seat.session, seat.ticket), now).answer
        return upload(shard, seat.session, now) if go is Go.GO else go

    def visits(self, number: int) -> list[Assignment]:
        seats = [self.seat() for _ in range(number)]
        assert [self.upload(seat) for seat in seats] == [COUNTED] * number
        self.engine.tick(0.0)
        return seats


NINE = {"goal = 3": "goal = 9", "overselect = 1.5": "overselect = 2.0", "population = 12": "population = 100"}


def test_devices_and_quotas_are_spread_evenly(make_task: MakeTask) -> None:
    fleet = Fleet(make_task, 3, **NINE)
    addresses = [fleet.seat().upload_address for _ in range(18)]
    assert {addresses.count(name) for name in fleet.links} == {6}
    assert [share.quota for share in fleet.engine.shares.shares] == [3, 3, 3]


@pytest.mark.parametrize(("goal", "quotas"), [(2, [1, 1, 0]), (4, [2, 1, 1]), (5, [2, 2, 1])])
def test_a_goal_that_does_not_divide_is_still_the_sum_of_the_quotas(goal: int, quotas: list[int], make_task: MakeTask) -> None:
    fleet = Fleet(make_task, 3, **{"goal = 3": f"goal = {goal}"})
    assert [share.quota for share in fleet.engine.shares.shares] == quotas
    fleet.visits(goal)
    assert fleet.engine.release_due


def test_what_a_dead_shard_had_is_collected_by_the_others(make_task: MakeTask) -> None:
    fleet = Fleet(make_task, 3, **NINE)
    fleet.visits(6)
    fleet.links["1"].die()
    fleet.engine.tick(0.0)
    assert (fleet.engine.round.counted(), sum(share.quota for share in fleet.engine.shares.shares)) == (4, 9)
    fleet.visits(5)
    assert fleet.engine.release_due
    fleet.engine.release(0.0)
    assert fleet.engine.progress.step == 1


def test_a_run_whose_only_shard_died_waits_for_it_and_starts_again(make_task: MakeTask) -> None:
    fleet = Fleet(make_task, 1)
    fleet.visits(2)
    fleet.links["0"].die()
    for _ in range(3):
        assert isinstance(fleet.ask(), TryLater)
    fleet.links["0"].revive()
    fleet.visits(3)
    assert fleet.engine.release_due


def test_a_shard_that_dies_while_it_seals_leaves_the_rest_to_the_next_attempt(make_task: MakeTask) -> None:
    fleet = Fleet(make_task, 2)
    for link in fleet.links.values():
        link.slow = True
    fleet.visits(3)
    fleet.links["0"].die()
    fleet.engine.tick(0.0)
    assert (fleet.engine.round.attempt, fleet.engine.release_due) == (2, False)


def test_a_request_whose_shard_died_gets_no_ticket_at_the_new_one(make_task: MakeTask) -> None:
    """Its device may sit anew by then: with both tickets it would be counted twice."""
    fleet = Fleet(make_task, 1, window=True)
    request, tag = new_id(), bytes(16)
    before = fleet.ask(tag, request)
    assert isinstance(before, Assignment)
    fleet.links["0"].die()
    fleet.engine.tick(0.0)
    fleet.links["0"].revive()
    fleet.engine.tick(0.0)
    again = fleet.ask(tag, request)
    assert isinstance(again, TryLater)
    assert again.reason is LaterReason.NO_SEATS
    assert fleet.upload(fleet.seat(tag)) == COUNTED
    assert fleet.upload(before) is Go.NOT_NEEDED


def test_a_lapsed_seat_is_given_to_another_and_the_late_device_still_counts(make_task: MakeTask) -> None:
    fleet = Fleet(make_task, 1, **{"overselect = 1.5": "overselect = 1.0\ntraining_seconds = 3"})
    late, *_ = [fleet.seat() for _ in range(3)]
    assert isinstance(fleet.ask(now=2.9), TryLater)
    assert isinstance(fleet.ask(now=3.0), Assignment)
    assert fleet.upload(late, now=4.0) == COUNTED
    fleet.engine.tick(4.0)
    assert fleet.engine.round.counted() == 1


def test_devices_that_begin_and_vanish_leave_their_seats_when_their_leases_are_over(make_task: MakeTask) -> None:
    """Goal 3, 5 seats, leases of 4 s, a deadline at 10 s: all five begin and vanish; others fill the step before it."""
    fleet = Fleet(make_task, 1)
    gone = [fleet.seat() for _ in range(5)]
    for seat in gone:
        fleet.links["0"].shard.begin_upload(BeginUpload(seat.session, seat.ticket), 0.0)
    fleet.engine.tick(3.9)
    assert fleet.engine.round.seats_left() == 0
    fleet.engine.tick(4.1)
    assert fleet.engine.round.seats_left() == 3
    assert fleet.engine.round.kept_and_dropped(9.0)[1] == 3
    late = fleet.links["0"].shard.begin_upload(BeginUpload(gone[0].session, gone[0].ticket), 4.2)
    assert late.answer is Go.GO
