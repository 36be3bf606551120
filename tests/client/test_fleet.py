"""A fleet: every device a real client with a ledger of its own, against a real server; nothing that was counted is missing."""

from __future__ import annotations

import asyncio
import math
import resource
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedrho.client.app import Server, ServerUnreachable
from fedrho.client.examples import ArrayExamples, ExampleStore
from fedrho.client.fleet import Fleet, Habits, more_files, name, recorded
from fedrho.client.fleet_training import fleet_training, logistic, noise, trained
from fedrho.client.participant import BadPlan
from fedrho.client.trainer import LocalTrainer
from fedrho.models.digits import INPUT_SHAPE
from fedrho.simulations.population import drawn_digits, made_up
from tests.client.fleet import MODELS, SIZE, open_small_run, plan, small_task
from tests.client.serving import dead_port, serving
from tests.server.one_run import OneRun

pytestmark = pytest.mark.slow

DIGITS = drawn_digits(20)


def examples(number: int, model: str) -> ExampleStore:
    return DIGITS.device(number)


ALWAYS = Habits()


def live(engine: OneRun, count: int, folder: Path, habits: Habits = ALWAYS, patience: float = 20.0) -> Fleet:
    """The fleet after it has ended."""

    async def run() -> Fleet:
        with fleet_training(examples) as on:
            async with serving(engine) as address:
                fleet = Fleet(Server(address), count, MODELS, on, folder, habits, connections=4)
                await fleet.run(patience)
                return fleet

    return asyncio.run(run())


def test_sixty_devices_train_three_rounds_and_nothing_is_lost(tmp_path: Path) -> None:
    engine = open_small_run(small_task(steps=3, goal=15, max_times=2), now=time.monotonic())
    fleet = live(engine, 60, tmp_path)
    assert engine.finished
    assert fleet.counts.visits["counted"] == 3 * 15
    steps: Counter[int] = Counter()
    for number in range(60):
        held = recorded(tmp_path / f"{name(number)}.sqlite")
        assert len(held) <= 2
        steps.update(step for run, step in held if run == engine.run)
    assert all(steps[step] >= 15 for step in (1, 2, 3))
    ledgers = fleet.ledgers()
    assert (ledgers.held, ledgers.lost) == (sum(steps.values()), 0)
    assert np.abs(engine.progress.weights).max() > 0.01  # somebody has trained


def test_contribution_that_a_ledger_has_lost_is_found_out(tmp_path: Path) -> None:
    fleet = live(open_small_run(small_task(steps=1, goal=2), now=time.monotonic()), 3, tmp_path)
    victim = next(tmp_path / f"{name(n)}.sqlite" for n in range(3) if recorded(tmp_path / f"{name(n)}.sqlite"))
    for path in tmp_path.glob(f"{victim.name}*"):
        path.unlink()
    assert fleet.ledgers().lost == 1


def test_devices_that_vanish_interrupt_and_are_slow_hold_nothing_up(tmp_path: Path) -> None:
    engine = open_small_run(small_task(steps=3, goal=10, overselect=2.0, max_times=3), now=time.monotonic())
    fleet = live(engine, 60, tmp_path, Habits(spread=0.5, drop_out=0.2, slow=0.3, link=20_000.0))
    assert engine.finished
    assert fleet.counts.visits["vanished"] > 0
    assert fleet.ledgers().lost == 0


def test_night_that_ends_breaks_visits_off_and_their_seats_are_given_back(tmp_path: Path) -> None:
    engine = open_small_run(small_task(steps=1, goal=30, overselect=1.0, max_times=1), now=time.monotonic())
    # A visit takes 1.6 s for weights and update, and begins anywhere in a night of 3 s.
    fleet = live(engine, 40, tmp_path, Habits(spread=5.0, day=6.0, slow=1.0, link=3250.0))
    assert fleet.counts.visits["interrupted"] > 0
    assert fleet.ledgers().lost == 0


def test_night_is_half_of_the_day() -> None:
    habits = Habits(day=100.0)
    assert habits.night(0.0, 0.0) == (0.0, 50.0)
    assert habits.night(0.0, 49.0) == pytest.approx((0.0, 1.0))
    assert habits.night(0.0, 51.0) == pytest.approx((49.0, 99.0))
    assert habits.night(0.25, 0.0) == pytest.approx((25.0, 75.0))
    assert Habits().night(0.3, 7.0) == (0.0, math.inf)


def test_fleet_gives_up_on_a_server_that_stays_away(tmp_path: Path) -> None:
    async def run(address: str) -> None:
        with fleet_training(examples) as on:
            await Fleet(Server(address), 5, MODELS, on, tmp_path).run(patience=0.5)

    with dead_port() as address, pytest.raises(ServerUnreachable, match=r"away for 0\.5 s"):
        asyncio.run(run(address))


def test_number_of_open_files_is_as_before_when_a_fleet_has_ended() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with more_files() as visits:
        assert 1 <= visits <= 512
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


@pytest.mark.parametrize(("epochs", "batch_size", "most"), [(1, 4, 0), (3, 7, 0), (2, 100, 5)])
def test_numpy_trains_as_keras_does(epochs: int, batch_size: int, most: int) -> None:
    asked = plan(epochs=epochs, batch_size=batch_size, max_examples=most)
    weights = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    ours = logistic(asked, weights, DIGITS.device(1)).vector
    theirs = LocalTrainer().train(asked, weights, DIGITS.device(1)).vector
    assert np.abs(theirs).max() > 0.01
    assert np.abs(ours - theirs).max() < 1e-5


def test_another_size_than_the_models_is_refused() -> None:
    with pytest.raises(BadPlan):
        logistic(plan(size=651), np.zeros(651, dtype=np.float32), DIGITS.device(0))


def test_any_other_model_is_trained_by_keras() -> None:
    pool = made_up(INPUT_SHAPE, 10, 5)
    weights = np.zeros(2410, dtype=np.float32)
    update = trained()(plan(model="digits-mlp", size=2410), weights, pool.device(0))
    assert np.abs(update.vector).max() > 0


def test_random_updates_have_the_size_of_the_plan() -> None:
    assert noise(plan(), np.zeros(SIZE, dtype=np.float32), DIGITS.device(0)).vector.shape == (SIZE,)


def test_a_device_always_holds_the_same_examples_and_devices_differ() -> None:
    def digits(number: int) -> ArrayExamples:
        return drawn_digits(20, seed=3).device(number)

    first, again, other = (next(iter(store.batches(plan(batch_size=20)))) for store in (digits(7), digits(7), digits(8)))
    assert np.array_equal(first.features, again.features)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.features, other.features)
    assert first.features.shape == (20, 64)
    assert 0 <= first.features.min() <= first.features.max() <= 1
