"""Who may come: the pool against a plain set, the ledgers against a list of everything that was recorded."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedrho.privacy.participation import Participation
from fedrho.simulations.devices import Devices, Pool

SIZE = 9
MOVES = st.lists(st.tuples(st.booleans(), st.integers(0, SIZE - 1)), max_size=60)


@given(MOVES)
def test_a_pool_is_a_set_that_can_be_asked_by_place(moves: list[tuple[bool, int]]) -> None:
    pool, plain = Pool(SIZE), set(range(SIZE))
    for take, device in moves:
        (pool.take if take else pool.give)(device)
        (plain.discard if take else plain.add)(device)
        assert {pool.at(place) for place in range(len(pool))} == plain
        assert {pool.at(place) for place in range(SIZE)} == set(range(SIZE))
        assert [device in pool for device in range(SIZE)] == [device in plain for device in range(SIZE)]


@given(MOVES)
def test_a_restored_pool_has_every_device_in_its_place(moves: list[tuple[bool, int]]) -> None:
    pool, again = Pool(SIZE), Pool(SIZE)
    for take, device in moves:
        (pool.take if take else pool.give)(device)
    again.restore(pool.arrays())
    assert [again.at(place) for place in range(SIZE)] == [pool.at(place) for place in range(SIZE)]
    assert [device in again for device in range(SIZE)] == [device in pool for device in range(SIZE)]


def test_a_pool_of_a_billion_holds_only_what_moved() -> None:
    pool = Pool(10**9)
    for device in range(0, 10**9, 10**7):
        pool.take(device)
    assert len(pool) == 10**9 - 100
    assert len(pool.arrays()["pool.places"]) <= 200


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0.0, 3.0]),
    st.lists(st.lists(st.integers(0, SIZE - 1), max_size=6), max_size=12),
)
def test_ledgers_say_what_participation_says_and_the_pool_has_who_may(
    max_times: int, separation: int, period: float, rounds: list[list[int]]
) -> None:
    limits = Participation(max_times, separation)
    devices = Devices(SIZE, limits, period)
    past: dict[int, list[tuple[int, float]]] = {device: [] for device in range(SIZE)}

    def allowed(device: int, step: int, now: float) -> bool:
        steps, times = [one for one, _ in past[device]], [when for _, when in past[device]]
        return limits.allows(steps, step) and all(now >= when + period for when in times)

    for step, wishes in enumerate(rounds, start=1):
        now = float(step)
        may = {device for device in range(SIZE) if allowed(device, step, now)}
        assert {devices.pool.at(place) for place in range(len(devices.pool))} == may
        assert devices.may_ever() == sum(limits.allows([one for one, _ in past[device]], step) for device in range(SIZE))
        for device in wishes:
            assert devices.allows(device, step, now) == allowed(device, step, now)
            devices.pool.take(device)
            if devices.record(device, step, now):
                past[device].append((step, now))
            elif not past[device] or past[device][-1][0] != step:
                assert device not in may
        restored = Devices(SIZE, limits, period)
        devices.open(step + 1, now + 1.0)
        restored.restore(devices.arrays(), step + 1)
        assert restored.may_ever() == devices.may_ever()
        assert all(np.array_equal(array, restored.arrays()[name]) for name, array in devices.arrays().items())
    assert {device: devices.past(device) for device in range(SIZE)} == {
        device: tuple(one for one, _ in steps) for device, steps in past.items()
    }


def test_who_got_a_seat_and_dropped_out_may_come_again_when_its_training_would_be_over() -> None:
    devices = Devices(5, Participation(2), 0.0)
    devices.pool.take(3)
    devices.leave([(10.0, 3)])
    devices.wake(9.9)
    assert 3 not in devices.pool
    assert devices.next_wake() == 10.0
    devices.wake(10.0)
    assert 3 in devices.pool
    assert devices.participants == ()
