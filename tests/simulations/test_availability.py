"""Who comes: counted over many steps and held against the distribution that the model promises, at a fixed seed."""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrho.server.tasks import TaskError
from fedrho.simulations.availability import (
    AvailabilitySection,
    Behaviour,
    CheckIns,
    Drawing,
    chances_of,
    check_availability,
    correlated,
    diurnal,
    shuffled,
)
from fedrho.simulations.data.base import Examples
from fedrho.simulations.devices import Devices
from fedrho.simulations.seeded import coins
from fedrho.simulations.virtual import Plan, Simulation
from fedrho.simulations.virtual_rounds import NeverFinished
from tests.simulations.toy import FreeEngine, toy_task, zeros

ONCE_IN_A_THOUSAND = 1e-3
"""Below this p-value a fixed seed fails a test: one seed in a thousand would, of a sound program."""
ALL = np.arange(2000)


class Labelled:
    """A data set in which device i holds i % 10 + 1 examples, most of them with label i % 4."""

    size = 2000

    @property
    def held_out(self) -> Examples:
        return self.examples(0)

    def count(self, device: int) -> int:
        return device % 10 + 1

    def examples(self, device: int) -> Examples:
        count = self.count(device)
        return Examples(np.zeros((count, 1), dtype=np.float32), np.full(count, device % 4, dtype=np.int32))


def cohorts(availability: AvailabilitySection, dataset: Any = None, **changes: Any) -> tuple[list[tuple[int, ...]], Simulation]:
    """Who was counted at each step, when everybody may come at any time."""
    values = {
        "steps": 300,
        "population": 100,
        "round": {"goal": 10, "deadline_seconds": 100.0},
        "participation": {"max_times": 300, "min_separation": 1},
        **changes,
    }
    task = toy_task(**values)
    engine = FreeEngine(task.mechanism.grid)
    simulation = Simulation(Plan(task, 17, availability, dataset), engine, zeros(1))
    while not simulation.finished:
        simulation.step()
    return [devices for _, devices in engine.cohorts], simulation


def counts(found: list[tuple[int, ...]], size: int) -> Any:
    return np.bincount([device for cohort in found for device in cohort], minlength=size)


def test_coins_are_uniform_and_independent_of_who_else_is_asked() -> None:
    drawn = coins(np.arange(100_000), 1, "anything")
    assert scipy.stats.kstest(drawn, "uniform").pvalue > ONCE_IN_A_THOUSAND
    assert coins(np.array([77]), 1, "anything")[0] == drawn[77]
    for other in (coins(np.arange(100_000), 2, "anything"), coins(np.arange(100_000), 1, "anything else"), np.roll(drawn, 1)):
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 5.0 / math.sqrt(100_000)


@pytest.mark.slow
def test_uniform_arrival_counts_everybody_equally_often() -> None:
    """A cohort without replacement has less variance than its chi-square allows for, so a large statistic is all that is held
    against it."""
    found, _ = cohorts(AvailabilitySection())
    assert scipy.stats.chisquare(counts(found, 100)).pvalue > ONCE_IN_A_THOUSAND
    firsts = [cohort[0] % 10 for cohort in found]
    assert scipy.stats.chisquare(np.bincount(firsts, minlength=10)).pvalue > ONCE_IN_A_THOUSAND


def test_pairs_of_devices_come_together_as_often_as_by_chance() -> None:
    found, _ = cohorts(AvailabilitySection(), population=12, round={"goal": 6, "deadline_seconds": 100.0})
    together = np.zeros((12, 12))
    for cohort in found:
        for one in cohort:
            together[one, list(cohort)] += 1
    observed = together[np.triu_indices(12, 1)]
    share = 6 / 12 * 5 / 11
    assert np.all(np.abs(observed - 300 * share) < 4.5 * math.sqrt(300 * share * (1 - share)))


def test_devices_of_a_daytime_come_by_day_and_others_at_night() -> None:
    """With chances c(t) per visit and a rate r, visits in an hour are Poisson with mean r * 3600 * mean c in that hour."""
    devices = Devices(10**6, toy_task().participation, 0.0)
    behaviour = Behaviour(3, 1.0, 0.5, 0.0, 1.0, 0.0)
    chances = diurnal(3, 0.1, 2.0, 1)
    arrivals = CheckIns(Drawing(devices, behaviour, 1, 1), 0.05, chances)
    hours = np.zeros(24)
    now = 0.0
    while now < 10 * 86_400.0:
        visit = arrivals.next(now)
        assert visit is not None
        now = visit.when
        hours[int(now // 3600) % 24] += 1
        arrivals.taken()
    middles = (np.arange(24) + 0.5) * 3600.0
    expected = 10 * 0.05 * 3600 * np.array([chances(np.array([0]), np.array([when]))[0] for when in middles])
    assert scipy.stats.chisquare(hours, expected * hours.sum() / expected.sum()).pvalue > ONCE_IN_A_THOUSAND
    assert abs(hours.sum() - expected.sum()) < 4.5 * math.sqrt(expected.sum())


def test_at_any_hour_those_whose_night_it_is_come_most() -> None:
    chances = diurnal(3, 0.1, 2.0, 24)
    zones = np.floor(24 * coins(ALL, 3, "time zone"))
    now = chances(ALL, np.zeros(len(ALL)))
    assert set(zones) == set(range(24))
    assert now[zones == 2].min() == now.max() == 1.0
    assert now[zones == 14].max() == pytest.approx(0.1)


def test_correlated_by_examples_prefers_devices_that_hold_many() -> None:
    found, _ = cohorts(AvailabilitySection(model="correlated", by="examples"), Labelled(), population=2000)
    held = counts(found, 2000).reshape(200, 10).sum(axis=0)
    wanted = correlated(17, Labelled(), 0.1, "examples", 1.0)(np.arange(10), np.zeros(10))
    assert wanted[0] == pytest.approx(0.1)
    assert wanted[-1] > 0.8
    assert scipy.stats.chisquare(held, wanted * held.sum() / wanted.sum()).pvalue > ONCE_IN_A_THOUSAND


def test_correlated_by_label_prefers_devices_of_the_first_labels() -> None:
    found, _ = cohorts(AvailabilitySection(model="correlated", by="label", strength=2.0), Labelled(), population=2000)
    held = counts(found, 2000).reshape(500, 4).sum(axis=0)
    wanted = np.maximum(0.1, (1.0 + np.arange(4)) ** -2.0)
    assert scipy.stats.chisquare(held, wanted * held.sum() / wanted.sum()).pvalue > ONCE_IN_A_THOUSAND


@pytest.mark.parametrize("size", [1, 2, 3, 100, 1000, 4097])
def test_a_shuffled_order_has_every_device_once(size: int) -> None:
    assert sorted(shuffled(np.arange(size), size, 5)) == list(range(size))


def test_a_shuffled_order_is_another_for_another_seed_and_looks_random() -> None:
    one, other = shuffled(ALL, 2000, 1), shuffled(ALL, 2000, 2)
    assert (one != other).mean() > 0.99
    for order in (one, other):
        assert abs(np.corrcoef(order, ALL)[0, 1]) < 5.0 / math.sqrt(2000)
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 5.0 / math.sqrt(2000)


def test_shuffled_arrival_is_the_same_order_in_every_epoch_so_that_separation_is_exact() -> None:
    limits = {"max_times": 4, "min_separation": 10}
    found, _ = cohorts(AvailabilitySection(model="shuffled"), steps=40, participation=limits)
    order = shuffled(np.arange(100), 100, 17).reshape(10, 10)
    assert [sorted(cohort) for cohort in found] == [sorted(row) for row in np.tile(order, (4, 1))]


def test_shuffled_arrival_replaces_who_drops_out_and_keeps_the_limits() -> None:
    limits = {"max_times": 40, "min_separation": 6}
    found, simulation = cohorts(AvailabilitySection(model="shuffled", drop_out=0.2), steps=40, participation=limits)
    assert all(len(cohort) == 10 for cohort in found)
    for device in range(100):
        steps = [step for step, cohort in enumerate(found) if device in cohort]
        assert all(later - earlier >= 6 for earlier, later in pairwise(steps))
    assert simulation.finished


def test_the_share_that_drops_out_is_the_one_asked_for() -> None:
    behaviour = Behaviour(3, 10.0, 0.0, 0.0, 1.0, 0.3)
    dropped = sum(behaviour.drops(ALL, step, 1).sum() for step in range(50))
    assert abs(dropped - 0.3 * 100_000) < 4.5 * math.sqrt(100_000 * 0.3 * 0.7)
    assert not np.array_equal(behaviour.drops(ALL, 1, 1), behaviour.drops(ALL, 1, 2))


def test_training_times_are_lognormal_and_slow_devices_stay_slow() -> None:
    even = Behaviour(3, 10.0, 0.5, 0.0, 1.0, 0.0)
    logs = np.log(even.seconds(np.arange(20_000), 1, 1) / 10.0) / 0.5
    assert scipy.stats.kstest(logs, "norm").pvalue > ONCE_IN_A_THOUSAND
    slow = Behaviour(3, 10.0, 0.0, 0.25, 6.0, 0.0)
    times = [slow.seconds(ALL, step, 1) for step in (1, 2)]
    assert np.array_equal(times[0], times[1])
    assert set(times[0]) == {10.0, 60.0}
    assert abs((times[0] == 60.0).sum() - 500) < 4.5 * math.sqrt(2000 * 0.25 * 0.75)


def test_stragglers_are_counted_less_often() -> None:
    found, _ = cohorts(AvailabilitySection(slow_share=0.5, slow_factor=10.0, training_spread=0.1))
    slow = coins(np.arange(100), 17, "slow") < 0.5
    times = counts(found, 100)
    assert times[slow].mean() < 0.3 * times[~slow].mean()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["uniform", "diurnal", "shuffled"]),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.3]),
    st.sampled_from([0.0, 40.0, 5000.0]),
    st.integers(0, 2**32),
)
def test_no_device_takes_part_more_often_or_sooner_than_it_may(
    model: Any, max_times: int, separation: int, goal: int, drop_out: float, period: float, seed: int
) -> None:
    steps = 10
    population = max(goal * min(separation, steps), -(-steps * goal // max_times)) + seed % 5
    task = toy_task(
        steps=steps,
        population=population,
        round={"goal": goal, "min_reports": 1, "deadline_seconds": 100.0},
        participation={"max_times": max_times, "min_separation": separation, "min_period_seconds": period},
    )
    engine = FreeEngine(task.mechanism.grid)
    simulation = Simulation(Plan(task, seed, AvailabilitySection(model=model, drop_out=drop_out)), engine, zeros(1))
    past: dict[int, list[tuple[int, float]]] = {}
    with suppress(NeverFinished):
        while not simulation.finished:
            record = simulation.step()
            assert 1 <= record.counted <= goal
            for device in simulation.counted:
                earlier = past.setdefault(device, [])
                assert task.participation.allows([step for step, _ in earlier], record.step)
                earlier.append((record.step, record.seconds or 0.0))
    assert max((len(steps) for steps in past.values()), default=0) <= max_times


def test_a_period_between_two_contributions_is_kept_in_virtual_time() -> None:
    limits = {"max_times": 20, "min_separation": 1, "min_period_seconds": 3600.0}
    task = toy_task(steps=20, population=30, participation=limits)
    simulation = Simulation(Plan(task, 2), FreeEngine(task.mechanism.grid), zeros(1))
    latest: dict[int, float] = {}
    while not simulation.finished:
        record = simulation.step()
        now = record.seconds or 0.0
        for device in simulation.counted:
            assert now - latest.get(device, -math.inf) >= 3600.0 - 100.0  # its upload was at most a deadline before the release
            latest[device] = now
    assert now > 5 * 3600.0


def test_who_comes_costs_the_same_among_a_thousand_and_a_billion() -> None:
    task = toy_task(steps=5, population=10**9, privacy={"delta": 1e-10})
    simulation = Simulation(Plan(task, 2, AvailabilitySection(model="diurnal")), FreeEngine(task.mechanism.grid), zeros(1))
    while not simulation.finished:
        simulation.step()
    assert max(len(array) for array in simulation.state().arrays.values()) < 1000


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"peak_hour": 3.0}, "availability.peak_hour: does not belong to uniform; leave it out"),
        ({"model": "diurnal", "by": "label"}, "availability.by: does not belong to diurnal"),
        ({"model": "shuffled", "checkins_per_second": 3.0}, "availability.checkins_per_second: shuffled devices are called"),
    ],
)
def test_keys_of_another_model_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        check_availability(AvailabilitySection.model_validate(section))


def test_a_population_other_than_the_datas_is_refused() -> None:
    with pytest.raises(TaskError, match="population: 100 is not the number of devices in the data; allowed: 2000"):
        cohorts(AvailabilitySection(), Labelled())


def test_everybody_is_willing_where_nothing_else_is_said() -> None:
    assert chances_of(AvailabilitySection(), 1, None) is None
