"""`fedrho simulate`: from a study to a folder and to pictures; what only a simulation can know says so wherever it is written."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from fedrho import study_plots
from fedrho.simulations import checkpoints, records
from fedrho.study_progress import StudyProgress
from tests.commanding import Run, refused, runner
from tests.simulations.test_study_folder import read_events
from tests.simulations.toy_study import digests, run_toy, study_values, toy_study

TOP = Path(__file__).parents[1]
DIGITS = TOP / "examples" / "studies" / "digits.toml"
FEW = [
    "--set",
    "task.steps=6",
    "--set",
    "task.participation.max_times=4",
    "--set",
    "data.devices=60",
    "--set",
    "task.round.goal=8",
]
MARK = records.MARK


@pytest.fixture
def fedrho(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command in an empty folder; exit code, standard output, standard error."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    return runner(monkeypatch, capfd, "simulate")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study, with its pictures."""
    path = tmp_path_factory.mktemp("toy") / "toy-1"
    study, dataset = toy_study()
    run = run_toy(path, study, dataset)
    for name, picture in study_plots.of_study("toy", "made-up", run.rows, study.delta, 0.5).items():
        (path / "plots" / name).write_bytes(picture)
    return path


# -- what only a simulation can know -----------------------------------------------------------------------------------------


def numbers(value: Any, marked: bool = False) -> Iterator[tuple[float, bool]]:
    """Every number in JSON, and whether the mark stands somewhere above it."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from numbers(inside, marked or MARK in key)
    elif isinstance(value, list):
        for inside in value:
            yield from numbers(inside, marked)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value), marked


def secrets_of(toy: Path) -> set[float]:
    """The numbers of the rows that no real server could see, of so many digits that they cannot be there by chance."""
    rows = records.rows((toy / "metrics.jsonl").read_bytes())
    found = {value for row in rows for value, marked in numbers(row) if marked}
    return {value for value in found if len(repr(value)) > 10}


def test_numbers_of_a_simulation_carry_the_mark_in_every_file(toy: Path) -> None:
    secret = secrets_of(toy)
    assert len(secret) > 20
    short = {float(np.float32(value)) for value in secret}
    files = [path for path in toy.rglob("*") if path.is_file() and "machine" not in path.parts]
    assert {path.suffix for path in files} >= {".toml", ".jsonl", ".json", ".parquet", ".txt", ".png", ".svg", ".safetensors"}
    for path in files:
        content = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            values = [json.loads(line) for line in content.splitlines()] if path.suffix == ".jsonl" else json.loads(content)
            assert not {value for value, marked in numbers(values) if not marked} & secret, path
        elif path.suffix == ".parquet":
            table = pyarrow.parquet.read_table(path)
            rows = table.select([name for name in table.column_names if MARK not in name]).to_pylist()
            assert not {value for row in rows for value in row.values()} & secret
        elif "tfevents" in path.name:
            shown = [value for event in read_events(content) for value in event.summary.value]
            assert not {value.simple_value for value in shown if MARK not in value.tag} & short
            assert {value.simple_value for value in shown if MARK in value.tag} & short
        elif path.suffix in (".txt", ".toml", ".svg"):
            assert not [value for value in secret if repr(value) in content.decode()], path


def test_the_table_says_of_every_column_what_it_is(toy: Path) -> None:
    schema = pyarrow.parquet.read_schema(toy / "metrics.parquet")
    for field in schema:
        assert field.metadata[b"meaning"]
        assert field.metadata[b"unit"]
        assert field.metadata[MARK.encode()] == (b"true" if field.name.startswith(MARK) else b"false")
    assert b"50 examples that no device holds" in schema.metadata[b"held_out"]


def texts(svg: Path) -> str:
    root = xml.etree.ElementTree.parse(svg).getroot()
    return " | ".join("".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text"))


def test_every_panel_with_numbers_of_a_simulation_says_so(toy: Path) -> None:
    shown = texts(toy / "plots" / "simulation_only.svg")
    assert shown.count("(simulation only)") == 3
    assert "simulation only, no real server could see this" in shown
    for name in ("accuracy", "utility"):
        assert "simulation only" not in texts(toy / "plots" / f"{name}.svg")
        assert "examples of no device" in texts(toy / "plots" / f"{name}.svg")


@pytest.mark.slow
def test_pictures_have_labelled_axes_and_equal_bytes(toy: Path) -> None:
    assert "steps released" in texts(toy / "plots" / "accuracy.svg")
    assert "rho spent if deployed (zCDP, one device, zero-out)" in texts(toy / "plots" / "accuracy.svg")
    assert "epsilon spent if deployed (one device, zero-out, delta = 1e-07)" in texts(toy / "plots" / "utility.svg")
    assert "Neighbours: zero-out." in texts(toy / "plots" / "utility.svg")
    rows = records.rows((toy / "metrics.jsonl").read_bytes())
    for name, picture in study_plots.of_study("toy", "made-up", rows, 1e-7, 0.5).items():
        assert (toy / "plots" / name).read_bytes() == picture, name


# -- the command, without training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", "run", "compare", "plot", "paths", "example"])
def test_every_command_has_a_help(command: str, fedrho: Run) -> None:
    code, out, _ = fedrho(*command.split(), "--help")
    assert code == 0
    assert "Usage: fedrho simulate" in out
    if not command:
        assert all(name in out for name in ("run", "compare", "plot", "paths", "example", "STUDY.toml"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nothing.toml"], "nothing.toml: no such file; `fedrho simulate example`"),
        (["run"], "STUDY.toml: missing"),
        (["--resume", "nowhere"], "nowhere: holds no study"),
        (["--resume", "a", "--output", "b"], "--output: a study goes on in its own folder"),
        (["--resume", "a", "--set", "seed=1"], "--set: a study goes on with its own values"),
        ([str(DIGITS), "--jobs", "2"], "--jobs: is for a study with a [sweep]"),
        ([str(DIGITS), "--engine", "gpu"], "--engine: unknown engine 'gpu'; allowed: auto, serial"),
        ([str(DIGITS), "--engine", "tff"], "tff"),
        ([str(DIGITS), "--set", "task.stepps=3"], "task.stepps: unknown key; did you mean 'steps'?"),
        (["compare", "nowhere"], "nowhere: holds no study"),
        (["plot", "nowhere"], "nowhere: holds no study"),
        (["paths", "--plot", "x.jpg"], "--plot: 'x.jpg' is no file name that ends in .png, .svg, .pdf; nearest: x.svg"),
        (["paths", "--plot", "none/x.png"], "there is no folder none"),
        (["example", "nothing"], "no example 'nothing'; allowed: "),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(arguments: list[str], expected: str, fedrho: Run) -> None:
    refused(fedrho(*arguments), expected)
    assert list(Path().iterdir()) == []


def test_an_output_that_is_there_is_not_overwritten(toy: Path, fedrho: Run) -> None:
    before = digests(toy)
    refused(fedrho(DIGITS, "--output", toy), "is there already and not empty; go on with --resume")
    assert digests(toy) == before


def test_a_folder_goes_on_with_its_own_study_alone(toy: Path, fedrho: Run) -> None:
    refused(fedrho(DIGITS, "--resume", toy), "holds another study; ", "data.name", "task.steps")


def test_a_finished_study_is_only_shown(toy: Path, fedrho: Run) -> None:
    before = digests(toy)
    code, out, _ = fedrho("--resume", toy, "--json")
    assert code == 0
    values = json.loads(out)
    assert values["steps"] == 8
    assert values["steps_per_second"] is None
    assert digests(toy) == before


def test_a_summary_that_was_cut_is_named(toy: Path, fedrho: Run, tmp_path: Path) -> None:
    shutil.copytree(toy, tmp_path / "cut")
    (tmp_path / "cut" / "summary.json").write_text("{")
    refused(fedrho("--resume", tmp_path / "cut"), "cut/summary.json: cannot be read", "remove it")


def test_examples_are_listed_and_written_once(fedrho: Run) -> None:
    code, out, _ = fedrho("example")
    assert code == 0
    assert "digits: " in out
    assert fedrho("example", "digits")[0] == 0
    assert Path("digits.toml").read_text() == DIGITS.read_text()
    refused(fedrho("example", "digits"), "digits.toml: is there already")


@pytest.mark.parametrize(("rho", "epsilon"), [(0.5, 2.0), (None, 2.0), (None, None)])
def test_the_bar_shows_what_is_known_of_a_step(rho: float | None, epsilon: float | None, toy: Path) -> None:
    row = {**records.rows((toy / "metrics.jsonl").read_bytes())[0], "rho": rho, "epsilon": epsilon}
    with StudyProgress(8, quiet=False) as progress:
        progress.shown(row)
        progress.shown({**row, "step": 2})
        assert not progress.told_to_stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert progress.told_to_stop


# -- pictures of several -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_seeds_of_one_study_are_one_curve_with_a_band(toy: Path, tmp_path: Path, fedrho: Run) -> None:
    run_toy(tmp_path / "other-seed", *toy_study(seed=1))
    quiet = {**study_values()["task"], "privacy": {"clip_norm": 0.5, "rho": 3.0, "delta": 1e-7}}
    run_toy(tmp_path / "more", *toy_study(task=quiet, name="more"))
    code, out, _ = fedrho("compare", toy, tmp_path / "other-seed", tmp_path / "more", toy, "--plot", "it.svg", "--json")
    assert code == 0
    rows = json.loads(out)["studies"]
    assert [(row["study"], row["seeds"]) for row in rows] == [("toy", 2), ("more", 1)]
    assert rows[0]["accuracy_least"] <= rows[0]["accuracy"] <= rows[0]["accuracy_largest"]
    assert rows[1]["rho"] > rows[0]["rho"]
    shown = texts(Path("it.svg"))
    assert "toy (2 seeds: mean, least to largest)" in shown
    assert "epsilon (one device, zero-out, delta = 1e-07)" in shown
    assert "Neighbours: zero-out" in shown
    assert fedrho("compare", toy, "--by", "rho", "--plot", "rho.png")[0] == 0
    assert Path("rho.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_privacy_has_its_place_beside_others_by_steps_alone(toy: Path, tmp_path: Path, fedrho: Run) -> None:
    bare = {key: value for key, value in study_values()["task"].items() if key != "round"}
    run_toy(tmp_path / "bare", *toy_study(task={**bare, "algorithm": "fedavg", "privacy": "none", "round": {"goal": 10}}))
    refused(fedrho("compare", toy, tmp_path / "bare"), "bare ran without privacy", "--by steps")
    code, out, _ = fedrho("compare", toy, tmp_path / "bare", "--by", "steps", "--plot", "it.svg", "--json")
    assert code == 0
    assert [(row["rho"] is None, row["epsilon"] is None, row["delta"]) for row in json.loads(out)["studies"]] == [
        (False, False, 1e-7),
        (True, True, None),
    ]
    drawn = texts(Path("it.svg"))
    assert "toy: dp-ftrl, rho = 1" in drawn
    assert "toy: fedavg, no guarantee: nothing was added" in drawn
    assert fedrho("plot", tmp_path / "bare")[0] == 0
    assert "no guarantee" in texts(tmp_path / "bare" / "plots" / "accuracy.svg")
    assert not (tmp_path / "bare" / "plots" / "utility.svg").exists()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_weights_of_a_study_are_exported_with_their_statement(suffix: str, tmp_path: Path, fedrho: Run) -> None:
    from fedrho.models.flat import FlatModel
    from fedrho.models.weights_file import read_weights
    from fedrho.models.zoo import lookup

    done = fedrho(DIGITS, "--set", "task.steps=1", "--output", tmp_path / "one", "--quiet")
    assert done[0] == 0, done
    out = tmp_path / f"weights{suffix}"
    assert fedrho("export", tmp_path / "one", "--out", out)[0] == 0
    theirs, own = (read_weights(path) for path in (out, tmp_path / "one" / "weights.npz"))
    model = FlatModel(lookup("digits-logistic"))
    assert np.array_equal(theirs.flat(model), own.flat(model))
    assert theirs.statement == own.statement
    refused(fedrho("export", tmp_path / "one", "--out", out), "is there already", "--force")


def test_epsilons_at_different_deltas_are_not_compared(toy: Path, tmp_path: Path, fedrho: Run) -> None:
    other = {**study_values()["task"], "privacy": {"clip_norm": 0.5, "rho": 1.0, "delta": 1e-6}}
    run_toy(tmp_path / "delta", *toy_study(task=other))
    refused(fedrho("compare", toy, tmp_path / "delta"), "epsilon at different deltas (1e-07, 1e-06)", "--by rho")


@pytest.mark.slow
def test_the_pictures_of_a_study_that_is_not_finished_can_be_drawn(tmp_path: Path, fedrho: Run) -> None:
    study, dataset = toy_study()
    run_toy(tmp_path / "stopped", study, dataset, 5)
    code, out, _ = fedrho("plot", tmp_path / "stopped")
    assert code == 0
    assert len(out.split()) == 6
    assert "steps released" in texts(tmp_path / "stopped" / "plots" / "accuracy.svg")


@pytest.mark.slow
def test_a_picture_of_paths_says_what_makes_them_comparable(fedrho: Run) -> None:
    code, out, _ = fedrho("paths", "--steps", 64, "--plot", "paths.svg", "--seed", 2, "--json")
    assert code == 0
    values = json.loads(out)
    away = values["mean_distances"]
    assert away["DP-FTRL"] < away["DP-SGD"]
    shown = texts(Path("paths.svg"))
    for text in ("rho = 0.01 (zCDP, one device), 64 steps", "DP-SGD", "DP-FTRL", "no noise", "seed 2", "no amplification"):
        assert text in shown


# -- the whole, in processes of its own --------------------------------------------------------------------------------------


def process(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedrho", "simulate", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd)


def done(*arguments: object, cwd: Path) -> tuple[int, str, str]:
    running = process(*arguments, cwd=cwd)
    out, err = running.communicate(timeout=300)
    return running.returncode, out, err


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real study, run to its end."""
    folder = tmp_path_factory.mktemp("unbroken")
    code, out, err = done(DIGITS, *FEW, "--output", "whole", "--json", cwd=folder)
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values["steps"] == 6
    assert values["measured_on"] == "360 examples that no device holds, of data 'digits'"
    assert math.isfinite(values[MARK]["training_loss"])
    return folder / "whole"


def wait_for_row(folder: Path, rows: int) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_bytes().count(b"\n") >= rows:
            return
        time.sleep(0.005)
    raise TimeoutError


@pytest.mark.slow
def test_a_real_study_that_was_killed_and_taken_up_has_the_same_bytes(unbroken: Path, tmp_path: Path) -> None:
    running = process(DIGITS, *FEW, "--output", "killed", "--quiet", cwd=tmp_path)
    wait_for_row(tmp_path / "killed", 2)
    os.kill(running.pid, signal.SIGSTOP)
    code, _, err = done("--resume", "killed", cwd=tmp_path)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "another process is running this study" in err
    running.kill()
    running.communicate()
    code, _, err = done("--resume", "killed", "--quiet", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert digests(tmp_path / "killed") == digests(unbroken)


@pytest.mark.slow
def test_ctrl_c_ends_after_the_step_and_says_how_to_go_on(unbroken: Path, tmp_path: Path) -> None:
    running = process(DIGITS, *FEW, "--output", "stopped", cwd=tmp_path)
    wait_for_row(tmp_path / "stopped", 1)
    os.kill(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=100)
    if running.returncode == 130:  # or it was over before
        assert out == ""
        assert "go on with `fedrho simulate --resume stopped`" in err
        assert len(err.strip().splitlines()) == 1
        rows = records.rows((tmp_path / "stopped" / "metrics.jsonl").read_bytes())
        assert checkpoints.steps(tmp_path / "stopped" / "checkpoints")[-1] == len(rows)
        whole = (unbroken / "metrics.jsonl").read_bytes()
        assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == b"".join(whole.splitlines(True)[: len(rows)])


@pytest.mark.slow
def test_a_sweep_runs_every_point_once_and_says_what_choosing_costs(tmp_path: Path) -> None:
    text = DIGITS.read_text() + '\n[sweep]\nseeds = [0, 1]\n[sweep.grid]\n"task.server.learning_rate" = [0.1]\n'
    (tmp_path / "sweep.toml").write_text(text)
    code, out, err = done("sweep.toml", *FEW, "--output", "swept", "--jobs", "2", "--json", cwd=tmp_path)
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert len(values["points"]) == 2
    assert "is itself a release" in values["warning"]
    before = digests(tmp_path / "swept")
    assert {"sweep.jsonl", "sweep.parquet", "sweep.txt", "plots/sweep.png", "plots/sweep.svg"} <= before.keys()
    (tmp_path / "swept" / "points" / "0001" / "summary.json").unlink()
    code, _, err = done("--resume", "swept", "--quiet", "--jobs", "1", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert digests(tmp_path / "swept") == before
    statement = json.loads((tmp_path / "swept" / "points" / "0000" / "statement.json").read_text())
    assert any("one of 2 studies of a sweep" in text for text in statement["if_deployed"]["assumptions"])
    code, out, _ = done("compare", "swept", "--json", cwd=tmp_path)
    assert code == 0
    assert [row["seeds"] for row in json.loads(out)["studies"]] == [2]
