"""A simulation is the server's own engine in virtual time: same weights, same charges, same refusals."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.statement import PrivacyStatement, compose
from fedrho.protos import signing
from fedrho.protos.messages import Assignment, BeginUpload, CheckIn, SessionStatus, Upload, Willing
from fedrho.server.coordinator import Surroundings, open_run
from fedrho.server.engine import Engine as ServerEngine
from fedrho.server.population import Population
from fedrho.server.shard import LocalShard, Shard
from fedrho.server.storage.memory_store import MemoryStore
from fedrho.server.tasks import Task, TaskError
from fedrho.simulations.availability import AvailabilitySection
from fedrho.simulations.claim import PROTECTS_NOBODY
from fedrho.simulations.engines.base import EngineError
from fedrho.simulations.seeded import SeededNoise
from fedrho.simulations.state import StepRecord
from fedrho.simulations.virtual import Plan, Simulation
from fedrho.simulations.virtual_rounds import NeverFinished
from tests.simulations.toy import MECHANISMS, SIZE, ToyEngine, sent, toy_task, zeros

SEED = 11
UNRELIABLE = AvailabilitySection(model="diurnal", drop_out=0.3, slow_share=0.2, slow_factor=20.0)


def simulated(task: Task, availability: AvailabilitySection = UNRELIABLE, seed: int = SEED) -> tuple[Simulation, ToyEngine]:
    engine = ToyEngine(task.mechanism.grid)
    return Simulation(Plan(task, seed, availability), engine, zeros()), engine


def finish(simulation: Simulation) -> list[StepRecord]:
    records = []
    while not simulation.finished:
        records.append(simulation.step())
    return records


def served(task: Task, cohorts: list[tuple[int, ...]]) -> list[bytes]:
    """The weights after each step of a real server, whose devices are these, with the simulation's noise."""
    numbers, shard, store = itertools.count(1), Shard(), MemoryStore()
    noise = SeededNoise(SEED, task.file.name)
    around = Surroundings(noise, store, lambda: next(numbers).to_bytes(16, "big"), [LocalShard(shard)])
    coordinator = open_run(task, around, zeros, 0.0)
    engine = ServerEngine(Population([coordinator], store, signing.SigningKey.generate()), shard)
    weights = []
    for step, cohort in enumerate(cohorts, start=1):
        for device in cohort:
            seat = engine.check_in(CheckIn(device.to_bytes(16, "big"), (Willing(coordinator.run, b""),)), float(step))
            assert isinstance(seat, Assignment)
            engine.begin_upload(BeginUpload(seat.session, seat.ticket), float(step))
            before = np.frombuffer(engine.artifact(seat.plan.checkpoint_sha256) or b"", dtype="<f4")
            vector = sent(seat.plan.step, before, device, task.mechanism.grid).vector
            assert engine.upload(Upload(seat.session, vector), float(step)).status is SessionStatus.COUNTED
        engine.release_all(float(step))
        weights.append(coordinator.progress.weights.tobytes())
    return weights


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_real_server_comes_to_the_same_weights_with_the_same_devices(name: str) -> None:
    task = toy_task(**MECHANISMS[name])
    simulation, engine = simulated(task)
    weights = []
    while not simulation.finished:
        simulation.step()
        weights.append(simulation.weights.tobytes())
    assert weights == served(task, [devices for _, devices in engine.cohorts])


@pytest.mark.parametrize("name", MECHANISMS)
def test_rho_and_statement_are_those_of_the_task(name: str) -> None:
    task = toy_task(**MECHANISMS[name])
    simulation, _ = simulated(task)
    records = finish(simulation)
    assert [one.rho for one in records] == [task.mechanism.cost(step, task.participation) for step in range(1, 9)]
    claim = simulation.statement().claim
    assert isinstance(claim, PrivacyStatement)
    assert claim.rho == records[-1].rho
    assert claim.rho <= task.budget


def test_exactly_the_counted_devices_are_trained() -> None:
    simulation, engine = simulated(toy_task())
    for record in finish(simulation):
        step, devices = engine.cohorts[record.step - 1]
        assert (step, len(set(devices))) == (record.step, record.counted)
    assert len(engine.cohorts) == 8


def test_a_round_counts_the_first_that_come_and_never_more_than_the_goal() -> None:
    simulation, _ = simulated(toy_task())
    records = finish(simulation)
    assert all(one.counted == 10 < one.seats for one in records)
    assert any(one.dropped for one in records)


def test_the_deadline_releases_with_min_reports_and_the_divisor_stays() -> None:
    slow = AvailabilitySection(drop_out=0.9)
    task = toy_task(round={"goal": 10, "min_reports": 2, "overselect": 2.0, "deadline_seconds": 100.0})
    records = finish(simulated(task, slow)[0])
    assert any(2 <= one.counted < 10 for one in records)
    assert {one.node_stddev for one in records} == {task.mechanism.noise_multiplier * 0.5 / 10}


def test_an_attempt_with_too_few_is_abandoned_untrained_and_the_step_tried_again() -> None:
    task = toy_task(round={"goal": 10, "min_reports": 9, "overselect": 1.0, "deadline_seconds": 100.0}, population=1000)
    simulation, engine = simulated(task, AvailabilitySection(drop_out=0.25))
    records = finish(simulation)
    assert sum(one.abandoned for one in records) > 0
    assert all(len(devices) >= 9 for _, devices in engine.cohorts)
    assert len(engine.cohorts) == len(records)


def test_drop_out_is_measured_by_the_server_and_makes_for_more_seats() -> None:
    task = toy_task(steps=40, population=4000, round={"goal": 50, "deadline_seconds": 100.0})
    simulation, _ = simulated(task, AvailabilitySection(drop_out=0.5, training_spread=0.1))
    records = finish(simulation)
    assert simulation.state().arrays["drop_out"][0] == pytest.approx(0.5, abs=0.1)
    times = [0.0, *(one.seconds or 0.0 for one in records)]
    waits = np.diff(times)
    assert waits[-10:].mean() < 0.6 * waits[0]  # nobody waits for a seat to lapse any more


TIGHT = {"population": 80, "participation": {"max_times": 1, "min_separation": 1}, "round": {"goal": 10, "min_reports": 10}}


@pytest.mark.parametrize(
    ("changes", "availability", "message"),
    [
        (
            TIGHT,
            AvailabilitySection(drop_out=0.4, training_seconds=60.0),
            "cannot be finished: 7 devices may still take part in it, 10",
        ),
        ({"population": 10**6 - 1}, AvailabilitySection(drop_out=0.99), "step 1 was abandoned 100 times"),
    ],
)
def test_a_run_that_can_never_finish_ends_with_one_line(
    changes: dict[str, Any], availability: AvailabilitySection, message: str
) -> None:
    simulation, _ = simulated(toy_task(**changes), availability)
    with pytest.raises(NeverFinished, match=message) as caught:
        finish(simulation)
    assert "\n" not in str(caught.value)


def test_training_that_no_deadline_waits_for_is_refused_before_it_begins() -> None:
    plan = Plan(toy_task(), 1, AvailabilitySection(training_seconds=800.0))
    with pytest.raises(TaskError, match=r"availability\.training_seconds: 800 is as long as the longest deadline.*below 800"):
        plan.check()


def test_a_run_that_needs_every_device_once_finishes_with_every_device() -> None:
    simulation, engine = simulated(toy_task(**TIGHT), AvailabilitySection())
    finish(simulation)
    assert sorted(device for _, devices in engine.cohorts for device in devices) == list(range(80))


def test_a_server_with_a_window_of_tags_runs_the_same_devices() -> None:
    window = toy_task(participation={"server_window": True})
    one, other = simulated(window)[0], simulated(toy_task())[0]
    assert [record.counted for record in finish(one)] == [record.counted for record in finish(other)]
    assert one.weights.tobytes() == other.weights.tobytes()


def test_same_seed_same_run_and_another_seed_another() -> None:
    runs = [simulated(toy_task(), seed=seed)[0] for seed in (1, 1, 2)]
    one, again, other = [(finish(run), run.weights.tobytes()) for run in runs]
    assert one == again
    assert one != other


def test_an_engine_that_fails_once_changes_nothing() -> None:
    class Failing(ToyEngine):
        failed = False

        def train(self, step: int, weights: Any, devices: Any) -> Any:
            if step == 3 and not self.failed:
                self.failed = True
                raise EngineError("a worker died")
            return super().train(step, weights, devices)

    task = toy_task()
    broken, whole = Simulation(Plan(task, SEED, UNRELIABLE), Failing(task.mechanism.grid), zeros()), simulated(task)[0]
    records = [broken.step(), broken.step()]
    with pytest.raises(EngineError):
        broken.step()
    assert records + finish(broken) == finish(whole)
    assert broken.weights.tobytes() == whole.weights.tobytes()


def test_noise_of_a_simulation_is_the_products_and_follows_from_seed_run_and_node() -> None:
    draws = [SeededNoise(seed, run).draw(node, 50_000, 100.0) for seed in (1, 2) for run in "ab" for node in ("row.1", "row.2")]
    assert len({node.seed for _, node in draws}) == 8
    for vector, _ in draws:
        assert abs(vector.std() / 100.0 - 1.0) < 5.0 / math.sqrt(2 * len(vector))
    again, node = SeededNoise(1, "a").draw("row.1", 50_000, 100.0)
    assert node == draws[0][1]
    assert np.array_equal(again, draws[0][0])
    assert not np.array_equal(again, SystemNoise().draw("row.1", 50_000, 100.0)[0])


def test_a_simulations_statement_cannot_be_mistaken_for_one_of_a_deployed_run() -> None:
    simulation, _ = simulated(toy_task())
    simulation.step()
    statement = simulation.statement()
    assert not isinstance(statement, PrivacyStatement)
    assert not hasattr(statement, "rho")
    assert statement.assumptions[0] == PROTECTS_NOBODY
    rows = statement.rows(1e-7)
    assert rows[0] == ("simulation", PROTECTS_NOBODY)
    assert all(name.endswith("if deployed") for name, _ in rows[1:])
    with pytest.raises(AttributeError):
        compose([statement])  # type: ignore[list-item]


def test_the_claim_is_what_the_server_would_say() -> None:
    simulation, _ = simulated(toy_task())
    finish(simulation)
    claim = simulation.statement().claim
    assert simulation.statement().assumptions[1:] == claim.assumptions
    assert "noise grows from seeds of the operating system" in "".join(claim.assumptions)


def test_correlated_arrival_says_which_assumption_it_breaks() -> None:
    broken = Plan(toy_task(), 1, AvailabilitySection(model="correlated"))
    with pytest.raises(TaskError, match=r"availability\.model: correlated needs the data set"):
        Simulation(broken, ToyEngine(toy_task().mechanism.grid), zeros())


def test_the_sum_of_zeros_is_zero_so_that_weights_are_noise_alone() -> None:
    """What a step adds to the weights without any update is the noise of the mechanism, at its own standard deviation."""
    from tests.simulations.toy import FreeEngine

    task = toy_task(algorithm="dp-fedavg", steps=1, server={"learning_rate": 1.0, "momentum": 0.0})
    simulation = Simulation(Plan(task, 3), FreeEngine(task.mechanism.grid), zeros(40_000))
    record = simulation.step()
    assert abs(simulation.weights.std() / record.node_stddev - 1.0) < 5.0 / math.sqrt(2 * 40_000)
    assert record.sum_stddev == pytest.approx(record.node_stddev)
    assert record.mean_norm == pytest.approx(np.linalg.norm(simulation.weights), rel=1e-6)


def test_size_of_the_toy_is_what_the_tests_assume() -> None:
    assert len(simulated(toy_task())[0].weights) == SIZE
