"""What a study file may say; everything else is refused in one line, before anything is trained."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrho.server.tasks import TaskFile
from fedrho.simulations import sweep
from fedrho.simulations.study import Study, StudyError, SweepSection, load_study, make_study, read_values
from fedrho.simulations.toml_text import toml_text
from tests.simulations.toy_study import DATA, study_values, toy_study

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "studies").glob("*.toml"))


def refused(**changes: Any) -> str:
    with pytest.raises(StudyError) as error:
        toy_study(**changes)
    text = str(error.value)
    assert text.startswith("study.toml: ")
    assert "\n" not in text
    return text


def changed(section: str, key: str, value: Any) -> dict[str, Any]:
    """The task with one value changed."""
    task: dict[str, Any] = study_values()["task"]
    (task if not section else task.setdefault(section, {}))[key] = value
    return task


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": {"name": "mnits"}}, "unknown data set 'mnits'; known: "),
        ({"data": {"name": "mnits"}}, "did you mean"),
        ({"data": {**DATA, "shapes": [64]}}, "data.shapes: made-up has no such option"),
        ({"data": {}}, "data.name: missing"),
        ({"dataa": {}}, "dataa: unknown key; did you mean 'data'?"),
        ({"steps": 3}, "steps: unknown key; it belongs into [task]; allowed: name, seed"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0, not -1"),
        ({"seed": "one"}, "seed: input should be a valid integer, not 'one'"),
        ({"task": 3}, "task: must be a section, [task], not 3"),
        ({"task": changed("round", "gaol", 3)}, "task.round.gaol: unknown key; did you mean 'goal'?"),
        ({"task": changed("round", "goal", 201)}, "task.round.goal: 201 is above population = 200; allowed: 1 to 200"),
        ({"task": changed("", "population", 300)}, "task.population: 300 is not the number of devices of data 'made-up', 200"),
        ({"task": changed("", "model", "digits-logistics")}, "task.model: unknown model 'digits-logistics'"),
        ({"task": changed("", "model", "none.keras")}, "task.model: none.keras: cannot be read"),
        ({"task": changed("privacy", "noise_multiplier", 1e-9)}, "task.privacy.noise_multiplier: 8 steps at 1e-09 cost rho"),
        ({"availability": {"model": "diurnall"}}, "availability.model: input should be 'uniform'"),
        ({"availability": {"peak": 3}}, "availability.peak: unknown key; "),
        ({"availability": {"peak_hour": 3.0}}, "availability.peak_hour: does not belong to uniform"),
        ({"engine": {"kind": "proceses"}}, "engine.kind: unknown engine 'proceses'; allowed: auto, serial"),
        ({"engine": {"kind": "serial", "workers": 3}}, "engine.kind: serial has one worker, not 3"),
        ({"engine": {"vectorised": True}, "task": changed("local", "optimizer", "adam")}, "engine.vectorised: many clients"),
        ({"record": {"clients": -1}}, "record.clients: input should be greater than or equal to 0"),
        ({"data": {**DATA, "shape": [8, 8]}}, "task.model: digits-logistic takes inputs of shape (64,); the held-out"),
        ({"data": {**DATA, "classes": 12}}, "task.model: digits-logistic has 10 classes, from 0 on; "),
        ({"sampling": {"kind": "poisson", "epsilon": 1.0}}, "task.algorithm: Poisson sampling is priced for dp-fedavg alone"),
        ({"sampling": {"kind": "shuffle"}}, "sampling.kind: input should be 'poisson'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(changes: dict[str, Any], expected: str) -> None:
    assert expected in refused(**changes)


def test_an_engine_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrho.simulations.checks.NEEDS", {"ray": ("no_such_package", "ray")})
    assert "engine.kind: ray is not installed; `pip install 'fedrho[ray]'`" in refused(engine={"kind": "ray"})


def test_a_missing_file_of_the_users_own_is_refused() -> None:
    assert "nowhere" in refused(data={"name": "folder", "model": "digits-logistic", "path": "nowhere"})


def test_the_population_is_that_of_the_data_where_nothing_is_said() -> None:
    study, dataset = toy_study()
    assert study.task.file.population == dataset.size == 200


def test_a_task_may_be_a_file_of_its_own(tmp_path: Path) -> None:
    values = study_values()
    (tmp_path / "task.toml").write_text(toml_text(values.pop("task")))
    (tmp_path / "study.toml").write_text(toml_text({"task": "task.toml", **values}))
    study, _ = load_study(tmp_path / "study.toml", ["task.steps=4", "seed=9", "name=other"])
    assert (study.steps, study.seed, study.file.name) == (4, 9, "other")
    with pytest.raises(StudyError, match=r"study\.toml: task: .*gone\.toml: no such file"):
        load_study(written(tmp_path, {"task": "gone.toml", **values}))


def written(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "study.toml").write_text(toml_text(values))
    return folder / "study.toml"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("seed", "--set seed: allowed: KEY=VALUE"),
        ("seed.x=3", "seed.x: 'seed' is a value"),
        ("task.stepps=3", "did you mean 'steps'"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(setting: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError) as error:
        load_study(written(tmp_path, study_values(seed=1)), [setting])
    assert expected in str(error.value)


@pytest.mark.parametrize("text", ["[", "a = 1\na = 2", "x" * 200_000])
def test_what_is_no_toml_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(StudyError, match=r"study\.toml: "):
        load_study(tmp_path / "study.toml")


@pytest.mark.parametrize(
    "values",
    [
        {"a": 1, "b": 1.5e-300, "c": 'é " \\ \x7f \n', "d": [1, 2.0, "x", [3]], "e": {"f g": True, "h": {"i": []}}},
        {"x.y": {"z": float("inf")}, "l": [{"a": 1}, {"b": "c"}]},
    ],
)
def test_toml_that_was_written_says_the_same(values: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(values)) == values


def test_a_resolved_study_has_every_key_of_a_task() -> None:
    values = tomllib.loads(toy_study()[0].text())
    missing = {name for name in TaskFile.model_fields if name not in values["task"]}
    assert missing == {"labels", "start"}  # there only where devices answer for labels, or a run starts from a file


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_names_its_data_and_seed(path: Path) -> None:
    values = read_values(path)
    assert path.read_text().startswith("# ")
    assert {"name", "seed", "data", "task"} <= values.keys()
    assert values["name"] == path.stem


# -- sweeps ------------------------------------------------------------------------------------------------------------------


def points(**section: Any) -> list[sweep.Point]:
    return sweep.points(study_values(seed=5), SweepSection.model_validate(section))


def test_a_grid_has_every_combination_with_every_seed() -> None:
    found = points(grid={"task.local.epochs": [1, 2], "task": {"server": {"momentum": [0.0, 0.5, 0.9]}}}, seeds=[1, 2])
    assert len(found) == 12
    assert {(*point.settings.values(), point.seed) for point in found} == {
        (epochs, momentum, seed) for epochs in (1, 2) for momentum in (0.0, 0.5, 0.9) for seed in (1, 2)
    }
    assert found[0].values["task"]["local"]["epochs"] == 1
    assert found[0].values["chosen_from"] == 12
    assert "sweep" not in found[0].values


def test_random_points_follow_from_the_seed_and_stay_within_their_bounds() -> None:
    kinds = {"a": {"uniform": [1, 2]}, "b": {"log_uniform": [0.01, 1]}, "c": {"choice": ["x", "y"]}, "d": {"integers": [1, 3]}}
    found = points(random=kinds, count=50, seed=3)
    again = points(random=kinds, count=50, seed=3)
    assert [point.settings for point in found] == [point.settings for point in again]
    assert [point.settings for point in points(random=kinds, count=50)] != [point.settings for point in found]
    assert [point.settings for point in points(random=kinds, count=20, seed=3)] == [point.settings for point in found[:20]]
    for key, low, high in (("a", 1, 2), ("b", 0.01, 1), ("d", 1, 3)):
        drawn = np.array([point.settings[key] for point in found])
        assert low <= drawn.min() < drawn.max() <= high
    assert np.median([point.settings["b"] for point in found]) < 0.3


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({}, "needs either [sweep.grid] or [sweep.random]"),
        ({"grid": {"a": [1]}, "random": {"b": {"choice": [1]}}}, "needs either"),
        ({"grid": {"a": 1}}, "sweep.grid.a: must be a list of values, not 1"),
        ({"grid": {"seed": [1, 2]}}, "sweep.grid.seed: seeds are listed in sweep.seeds"),
        ({"grid": {"a": []}}, "sweep.grid.a: must be a list of values"),
        ({"grid": {"a": [1]}, "count": 3}, "sweep.count: belongs to [sweep.random]"),
        ({"random": {"a": {"normal": [0, 1]}}}, "sweep.random.a"),
        ({"random": {"a": {"uniform": [2, 1]}}}, "uniform needs [least, most]"),
        ({"random": {"a": {"log_uniform": [0, 1]}}}, "log_uniform needs [least, most], both above 0"),
        ({"random": {"a": {"integers": [0, 1.5]}}}, "integers needs two integers"),
        ({"grid": {"a": list(range(200)), "b": list(range(200))}}, "has 40000 points; allowed: up to 10000"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(section: dict[str, Any], expected: str) -> None:
    with pytest.raises(StudyError) as error:
        points(**section)
    assert expected in str(error.value)


def test_a_point_of_a_sweep_says_in_its_statement_that_choosing_is_a_release() -> None:
    from fedrho.simulations import results
    from tests.simulations.toy_study import parts

    study, dataset = make_study(dict(points(grid={"record.keep": [1]}, seeds=[1, 2])[0].values), "study.toml", Path())
    statement = parts(study, dataset).start(None).statement()
    said = results.claim(study, 0, statement)["if_deployed"]["assumptions"]
    assert any("one of 2 studies of a sweep" in text and "is itself a release" in text for text in said)
    alone: Study = toy_study()[0]
    assert not any("sweep" in text for text in results.assumptions(alone, statement))
