"""The ready tasks: every study of docs/tasks.md is one, its strategy is the best for its run, and three ways of it run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrho.privacy.banded import BandedToeplitz, optimal_bands
from fedrho.server.tasks import TaskFile, build_task
from fedrho.simulations.study import StudyError, make_study, read_values
from fedrho.simulations.toml_text import toml_text
from tests.docs import shell
from tests.docs.pages import blocks_of

TOP = Path(__file__).parents[3]
sys.path.insert(0, str(TOP / "benchmarks"))
import scaling  # type: ignore[import-not-found]  # noqa: E402
import tasks  # type: ignore[import-not-found]  # noqa: E402

NAMES = ("next-word", "handwriting", "census", "shakespeare")
DEVICES = {"next-word": 2935, "handwriting": 539, "census": 961, "shakespeare": 269}
pytestmark = pytest.mark.usefixtures("copies")


def study_values(name: str) -> dict[str, Any]:
    """Without the weights that another study has to make first."""
    values = read_values(TOP / "examples" / "studies" / f"{name}.toml")
    values["task"].pop("start", None)
    return values


@pytest.mark.parametrize("name", ["census", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name != "census")])
def test_a_ready_task_is_a_study_three_ways(name: str) -> None:
    for way, values in tasks.ways(study_values(name)).items():
        study, dataset = make_study(values, name, Path())
        assert (study.algorithm, dataset.size) == (way, DEVICES[name])
        if way != "fedavg":
            assert study.task.budget == (10.0 if name == "shakespeare" else 0.81)


@pytest.mark.parametrize("name", NAMES)
def test_its_strategy_is_the_best_banded_one(name: str) -> None:
    values = study_values(name)
    values["task"].setdefault("population", DEVICES[name])
    task = build_task(TaskFile.model_validate(values["task"]))
    assert isinstance(task.mechanism, BandedToeplitz)
    best = optimal_bands(task.file.steps, task.participation)
    assert np.abs(np.array(task.mechanism.coefficients) - best).max() < 1e-3
    assert task.mechanism.cost(task.file.steps, task.participation) <= values["task"]["privacy"]["rho"]


def test_words_that_were_counted_on_the_same_text_are_for_runs_that_claim_nothing() -> None:
    values = study_values("next-word-start")
    values["task"] |= {"algorithm": "dp-fedavg", "participation": {"max_times": 60}}
    values["task"]["privacy"] = {"clip_norm": 1.0, "rho": 1.0, "delta": 1e-3}
    with pytest.raises(StudyError, match=r"data\.vocabulary: parliament was counted on parlamint-es itself"):
        make_study(values, "study", Path())


def test_intervals_are_those_of_student() -> None:
    mean, half = tasks.interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2)
    assert half == pytest.approx(4.303 * 0.1 / np.sqrt(3), rel=1e-3)
    assert tasks.shown([0.5]) == "0.5000"


def test_at_the_same_population_scaling_gives_the_same_rho(tmp_path: Path) -> None:
    """The noise of a study's own mechanism, taken back to rho: by the formula of the page, and of the accountant."""
    values = study_values("census")
    task = values["task"]
    built = build_task(TaskFile.model_validate({"population": 960, **task}))
    stddevs = built.mechanism.stddev * built.mechanism.grid.unit / 96 * np.sqrt(built.mechanism.prefix_variances(60))
    rows = [{"sum_stddev": float(stddev), "mean_norm": 1.0} for stddev in stddevs]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "summary.json").write_text('{"accuracy": 0.8}')
    (tmp_path / "study.toml").write_text(toml_text({"task": {"population": 960, **task}}))
    np.savez(tmp_path / "weights.npz", kernel=np.zeros(210))
    small = scaling.Small.of(tmp_path)
    large = scaling.scaled(small, 960, 20_000)
    assert (large.cohort, large.participation.max_times, large.participation.min_separation) == (96, 6, 10)
    assert large.rho == pytest.approx(0.81, rel=1e-3)
    tenfold = scaling.scaled(small, 9600, 20_000)
    assert tenfold.rho == pytest.approx(large.rho / 100, rel=1e-9)


@pytest.mark.slow
def test_the_benchmark_runs_three_ways_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    less = ["--set", "task.steps=2", "--set", "engine.kind=serial", "--set", "record.test_every=1"]
    (line,) = [
        line for block in blocks_of("tasks.md", "sh") for line in shell.lines(block) if "benchmarks/tasks.py census" in line
    ]
    command = shell.words(shell.with_options(line, "--seeds 1"))
    monkeypatch.setattr(sys, "argv", [*command[1:], "--output", str(tmp_path / "runs"), *less])
    tasks.main()
    out = capfd.readouterr().out
    assert out.count("\n| ") == 3
    assert "| fedavg | 96 | 2 | no guarantee | no guarantee |" in out
    assert (tmp_path / "runs" / "census.svg").stat().st_size > 1000
