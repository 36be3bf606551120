"""Runs without privacy: they are plain averages, nobody takes them for private ones, and no server makes one."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrho.privacy.vectors import ClippedSum, Grid
from fedrho.server.tasks import ALGORITHMS, TaskFileError, parse_task
from fedrho.simulations.availability import AvailabilitySection
from fedrho.simulations.claim import NO_GUARANTEE
from fedrho.simulations.engines.base import EngineError
from fedrho.simulations.nonprivate import LARGEST_UPDATE, NonPrivateTask, bare_mean, nonprivate_task
from fedrho.simulations.study import StudyError, make_study
from fedrho.simulations.toml_text import toml_text
from fedrho.simulations.virtual import Plan, Simulation
from fedrho.simulations.virtual_rounds import NeverFinished
from tests.simulations.toy import ToyEngine, toy_values, update, zeros
from tests.simulations.toy_study import digests, run_toy, study_values

ROOT = Path(__file__).parents[2]
WILLING = AvailabilitySection()


def values(**changes: Any) -> dict[str, Any]:
    plain = {**toy_values(), "algorithm": "fedavg", "privacy": "none", "round": {"goal": 10}}
    return {**plain, **changes}


def study_of(**changes: Any) -> dict[str, Any]:
    task = {key: value for key, value in values(**changes).items() if key != "population"}
    return study_values(task=task)


def simulation(task: NonPrivateTask, engine: ToyEngine | None = None) -> Simulation:
    return Simulation(Plan(task, seed=3), engine or ToyEngine(task.task.mechanism.grid), zeros())


def test_it_is_momentum_on_the_plain_means_of_those_who_came() -> None:
    task = nonprivate_task(values(), WILLING)
    engine = ToyEngine(task.task.mechanism.grid)
    run, weights, velocity = simulation(task, engine), zeros().astype(np.float64), np.zeros(12)
    while not run.finished:
        record = run.step()
        step, devices = engine.cohorts[-1]
        mean = np.mean([update(step, weights.astype(np.float32), device).vector for device in devices], axis=0)
        velocity = 0.9 * velocity + mean
        weights = weights + 0.5 * velocity
        assert np.abs(run.weights - weights).max() < 1e-4
        assert record.mean_norm == pytest.approx(np.linalg.norm(mean), abs=1e-5)
        assert (record.rho, record.node_stddev, record.simulation_only.clipped_share) == (None, 0.0, 0.0)


def test_devices_come_as_seldom_as_the_task_says_and_each_equally_often() -> None:
    task = nonprivate_task(values(), WILLING)
    came = np.zeros(200)
    for seed in range(40):
        engine = ToyEngine(task.task.mechanism.grid)
        run = Simulation(Plan(task, seed), engine, zeros())
        while not run.finished:
            run.step()
        cohorts = [set(devices) for _, devices in engine.cohorts]
        assert all(len(cohort) == 10 for cohort in cohorts)
        assert all(not one & other for one, other in pairwise(cohorts))  # min_separation 2
        counts = np.bincount([device for cohort in cohorts for device in cohort], minlength=200)
        assert counts.max() <= 3
        came += counts
    assert abs(came - 16).max() < 5 * np.sqrt(16)  # about binomial: 40 runs of 8 steps of 10 among 200


def test_broken_off_and_taken_up_it_gives_the_same_bytes(tmp_path: Path) -> None:
    study, dataset = make_study(study_of(), "study.toml", Path())
    run_toy(tmp_path / "whole", study, dataset)
    run_toy(tmp_path / "halved", study, dataset, stop_after=4)
    run_toy(tmp_path / "halved", study, dataset)
    assert digests(tmp_path / "whole") == digests(tmp_path / "halved")
    again, _ = make_study(study.values(), "again", Path())
    assert again.text() == study.text()


def test_nothing_in_its_folder_reads_like_a_guarantee(tmp_path: Path) -> None:
    study, dataset = make_study(study_of(), "study.toml", Path())
    run_toy(tmp_path, study, dataset)
    assert not (tmp_path / "task.toml").exists()
    said, ended = (json.loads((tmp_path / name).read_text()) for name in ("statement.json", "summary.json"))
    for one in (said, ended):
        assert (one["algorithm"], one["guarantee"], one["if_deployed"]) == ("fedavg", NO_GUARANTEE, None)
    text = (tmp_path / "statement.txt").read_text()
    assert f"guarantee: {NO_GUARANTEE}" in text
    assert not any(word in text for word in ("epsilon", "rho", "delta", "zero-out", "if deployed"))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["rho"] is None and row["epsilon"] is None for row in rows)
    stored = (tmp_path / "study.toml").read_text()
    assert 'privacy = "none"' in stored
    assert "clip_norm" not in stored


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"privacy": {"clip_norm": 1.0, "rho": 1.0, "delta": 1e-7}},
            "task.privacy: fedavg clips nothing and adds nothing; say pri",
        ),
        ({"algorithm": "dp-ftrl"}, 'task.privacy: "none" belongs to algorithm = "fedavg"'),
        ({"round": {"goal": 10, "overselect": 1.2}}, "task.round.overselect: "),
        ({"participation": {"max_times": 3, "server_window": True}}, "task.participation.server_window: "),
        ({"labels": {"epsilon": 1.0}}, "task.labels: "),
        ({"round": {"goal": 1000}}, "task.round.goal: 1000 is above population"),
    ],
)
def test_what_is_half_private_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(StudyError) as caught:
        make_study(study_of(**changes), "study.toml", Path())
    assert why in str(caught.value)


def test_nor_is_it_sampled_or_available() -> None:
    for section in ({"sampling": {"kind": "poisson"}}, {"availability": {"drop_out": 0.1}}):
        with pytest.raises(StudyError, match=next(iter(section))):
            make_study({**study_of(), **section}, "study.toml", Path())


def test_no_server_takes_such_a_task() -> None:
    assert set(ALGORITHMS) == {"dp-ftrl", "dp-fedavg"}
    with pytest.raises(TaskFileError, match="privacy: must be a section"):
        parse_task(toml_text(values()), "task.toml")
    with pytest.raises(TaskFileError, match="unknown algorithm 'fedavg'"):
        parse_task(toml_text({**toy_values(), "algorithm": "fedavg"}), "task.toml")


def test_everybody_may_take_part_at_once_in_a_run_shorter_than_its_separation() -> None:
    short = nonprivate_task(
        values(steps=2, population=40, participation={"max_times": 1, "min_separation": 10}), AvailabilitySection()
    )
    run = simulation(short)
    assert [run.step().counted for _ in range(2)] == [10, 10]


def test_noise_is_left_out_in_two_files_of_simulations_alone() -> None:
    """The path of the weights, and runs without privacy: no server has a source of noise that is none."""
    product = [
        path for part in ("client", "models", "privacy", "server", "simulations") for path in (ROOT / part).glob("**/*.py")
    ]
    users = {str(path.relative_to(ROOT)) for path in [*product, *(ROOT / "fedrho").glob("*.py")] if "NoNoise" in path.read_text()}
    assert users == {f"simulations/{name}.py" for name in ("nonprivate", "paths", "seeded")}
    total = ClippedSum(np.array([4, -8], dtype=np.int64), Grid(1.0, 8))
    assert bare_mean(total, 2).tolist() == [4 / 512, -8 / 512]
    assert total.size == 0


def test_an_update_that_would_be_clipped_ends_the_run() -> None:
    class Far(ToyEngine):
        def train(self, step: int, weights: Any, devices: Any) -> Any:
            trained = super().train(step, weights, devices)
            trained.told.norm[0] = 2 * LARGEST_UPDATE
            return trained

    task = nonprivate_task(values(), WILLING)
    with pytest.raises(EngineError, match=r"norm 64, .* lower task\.local\.learning_rate"):
        simulation(task, Far(task.task.mechanism.grid)).step()


def test_a_step_that_finds_too_few_devices_says_what_to_change() -> None:
    scarce = nonprivate_task(values(population=30, steps=6, participation={"max_times": 2}), WILLING)
    run = simulation(scarce)
    with pytest.raises(NeverFinished, match=r"raise participation\.max_times"):
        _to_its_end(run)


def _to_its_end(run: Simulation) -> None:
    while not run.finished:
        run.step()
