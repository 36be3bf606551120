"""`fedrho labels train` as scripts call it: the contract, going on, refusals, pictures and exported models."""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner

from fedrho import cli
from fedrho.labels import recipes
from fedrho.labels.runs import MODEL, DiskMemory
from fedrho.models.whole import WholeModel
from fedrho.models.zoo import lookup_whole

DIGITS = ["labels", "train", "--dataset", "digits", "--epsilon", "2", "--steps", "20"]


def called(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, list(arguments))


def refused(*arguments: str) -> str:
    done = called(*arguments)
    assert done.exit_code != 0
    assert done.exception is not None
    return str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--epsilon", "1"), "--dataset, --data or an EXPERIMENT"),
        (("--dataset", "digits"), "--epsilon: missing"),
        (("--dataset", "digits", "--epsilon", "-1"), "not negative"),
        (("--dataset", "digits", "--epsilon", "1", "--method", "magic"), "allowed: lp-1st"),
        (("--dataset", "digits", "--epsilon", "1", "--stages", "0.5,0.6"), "add up to 1"),
        (("--dataset", "digits", "--epsilon", "1", "--method", "forward", "--prior", "model"), "belong to --method lp-2st"),
        (("--dataset", "digits", "--epsilon", "1", "--prior", "oracle"), "prior"),
        (("--dataset", "digits", "--epsilon", "1", "--steps", "5", "--epochs", "1"), "one of the two"),
        (("--data", "x.csv", "--epsilon", "1", "--model", "m"), "classes"),
        (("--data", "x.csv", "--classes", "a,b", "--epsilon", "1", "--model", "m", "--seeds", "2"), "labels-are-public"),
        (
            ("--data", "x.csv", "--classes", "a,b", "--epsilon", "1", "--model", "m", "--steps", "9", "--trial"),
            "--trial: is for a --dataset; a file's labels would be asked",
        ),
        (("nothing.toml",), "no such file"),
        (("nothing.toml", "--epsilon", "1"), "leave it out"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = refused("labels", "train", *arguments)
    assert says in text
    assert "\n" not in text
    assert list(tmp_path.iterdir()) == []


def test_an_option_beside_a_file_is_refused_also_where_it_is_nought(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "labels" / "digits.toml"
    for option in ("--mixup", "--temperature", "--epochs"):
        assert f"{option}: {example} says it" in refused(
            "labels", "train", str(example), option, "0", "--out", str(tmp_path / "no")
        )


@pytest.mark.slow
def test_the_contract_for_scripts_and_a_model_with_its_statement(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = called(*DIGITS, "--method", "lp-2st", "--stages", "0.5,0.3,0.2", "--seeds", "2", "--out", str(folder), "--json")
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert 0.1 < values["accuracy_mean"] < 1
    assert values["accuracy_std"] >= 0
    assert values["epsilon_total"] == 2.0
    assert (values["statement"]["unit"], values["statement"]["delta"]) == ("label", 0)
    assert len(values["runs"]) == 1
    again = called("labels", "train", "--out", str(folder), "--json")
    assert json.loads(again.stdout) == values
    cell = "lp-2st-epsilon-2.0-seed-1"
    assert called("labels", "export", str(folder), "--out", str(tmp_path / "m.npz"), "--run", cell).exit_code == 0
    with np.load(tmp_path / "m.npz") as kept:
        assert json.loads(str(kept["privacy_statement"]))["epsilon"] == 2.0
    assert "choose one of" in refused("labels", "export", str(folder), "--out", str(tmp_path / "n.npz"))
    assert called("labels", "plot", str(folder), "--plot", str(tmp_path / "p.svg")).exit_code == 0
    assert "LP-2ST" in (tmp_path / "p.svg").read_text(encoding="utf-8")
    assert "what differs: runs" in refused(*DIGITS, "--method", "forward", "--seeds", "2", "--out", str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mnist-batch-norm-cnn", "mnist-wide-batch-norm-cnn"])
def test_a_network_with_running_statistics_is_exported_as_keras_knows_it(model: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 60)
    images = (random.random((60, 28, 28, 1)) + labels[:, None, None, None]).astype(np.float32)
    np.savez(tmp_path / "grey.npz", features=images, label=labels)
    data = ("--data", str(tmp_path / "grey.npz"), "--label", "label", "--classes", "0,1,2,3,4,5,6,7,8,9", "--labels-are-public")
    how = ("--model", model, "--method", "non-private", "--steps", "5")
    folder, out = tmp_path / "run", tmp_path / "grey.keras"
    done = called("labels", "train", *data, *how, "--out", str(folder))
    assert done.exit_code == 0, done.output
    assert "only a .keras file" in refused("labels", "export", str(folder), "--out", str(tmp_path / "grey.npz"), "--force")
    assert called("labels", "export", str(folder), "--out", str(out)).exit_code == 0
    import keras

    read, weights = keras.saving.load_model(out), DiskMemory(folder / "cells" / "non-private-seed-0").recall_weights(MODEL)
    assert weights is not None
    whole = WholeModel(lookup_whole(model))
    whole.assign(weights)
    np.testing.assert_allclose(read(images), whole.keras_model(images), atol=1e-5)
    assert not np.allclose(read(images), whole.spec.build()(images))
    with zipfile.ZipFile(out) as archive:
        assert json.loads(archive.read("privacy_statement.json"))["model"] == model


@pytest.mark.slow
def test_dp_sgd_stands_beside_with_its_delta_and_keeps_what_was_asked_for(tmp_path: Path) -> None:
    done = called(*DIGITS, "--method", "dp-sgd", "--method", "non-private", "--out", str(tmp_path / "run"), "--json")
    assert done.exit_code == 0, done.output
    private, plain = json.loads(done.stdout)["runs"]
    assert private["statement"]["delta"] == 1e-5
    assert 1.9 < private["epsilon_total"] <= 2.0
    assert (plain["epsilon_total"], plain["statement"]["epsilon"]) == (None, None)
    assert "add-or-remove epsilon" in private["statement"]["mechanisms"][0]


@pytest.mark.slow
def test_on_digits_two_stages_beat_one_at_2_and_clusters_at_a_half(tmp_path: Path) -> None:
    """Four seeds; five standard errors below what ten of them were measured at."""

    def means(epsilon: str, *methods: str) -> list[float]:
        asked = [part for method in methods for part in ("--method", method)]
        out = str(tmp_path / epsilon)
        done = called(
            "labels", "train", "--dataset", "digits", *asked, "--epsilon", epsilon, "--seeds", "4", "--out", out, "--json"
        )
        return [run["accuracy_mean"] for run in json.loads(done.stdout)["runs"]]

    one, two = means("2", "lp-1st", "lp-2st")
    assert two > one + 0.005
    alone, clusters = means("0.5", "lp-1st", "cluster-prior")
    assert clusters > alone + 0.3


PAGE = (Path(__file__).parents[2] / "docs" / "reproductions.md").read_text(encoding="utf-8")


def test_the_commands_of_the_reproductions_are_commands() -> None:
    """They take minutes and answers are drawn anew, so they are read here, and run by hand."""
    command = typer.main.get_command(cli.app)
    found = re.findall(r"^\$ fedrho labels train (.*)$", PAGE, re.MULTILINE)
    assert {part for line in found for part in ("digits", "mnist", "fashion-mnist") if f"--dataset {part} " in line} == {
        "digits",
        "mnist",
        "fashion-mnist",
    }
    for line in found:
        train = command.commands["labels"].commands["train"]  # type: ignore[attr-defined]
        assert set(train.make_context("train", shlex.split(line)).params["method"]) <= set(recipes.METHODS)


def experiment_folder(path: Path, results: str | None) -> Path:
    """A folder as `fedrho labels train` leaves it, as far as a picture is made of it."""
    path.mkdir()
    (path / "experiment.toml").write_text("seeds = 1\n")
    if results is not None:
        (path / "results.json").write_text(results)
    return path


def results_of(*accuracy: float, **changes: Any) -> str:
    runs = [
        {"name": "lp-1st", "epsilon": float(n), "accuracy_mean": one, "accuracy_std": 0.0, "statement": {"delta": 0.0}}
        for n, one in enumerate(accuracy, 1)
    ]
    values = {"dataset": "d", "model": "m", "seeds": 1, "measured_on": "some", "constant_accuracy": 0.1, "runs": runs}
    return json.dumps({**values, **changes})


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("", "Expecting value"),
        ("[]", "it is no object"),
        ('{"runs":[]}', "dataset: field required"),
        (results_of(runs={}), "runs: input should be a valid list"),
        (results_of(0.5, constant_accuracy="much"), "constant_accuracy: input should be a valid number"),
        (results_of(runs=[{"name": "lp-1st", "epsilon": 1.0}]), "runs.0.accuracy_mean: field required"),
        (results_of(float("nan")), "runs.0.accuracy_mean: input should be a finite number"),
    ],
)
def test_damaged_results_are_one_line_that_says_how_they_are_written_anew(damage: str, why: str, tmp_path: Path) -> None:
    folder = experiment_folder(tmp_path / "run", damage)
    text = refused("labels", "plot", str(folder))
    assert text.startswith(f"{folder / 'results.json'}: cannot be read ({why}")
    assert text.endswith(f"; remove it, and `fedrho labels train --out {folder}` writes it anew")
    assert not (folder / "plots").exists()


def test_what_says_whats_labels_were_asked_is_never_to_be_removed(tmp_path: Path) -> None:
    folder = experiment_folder(tmp_path / "run", None)
    cell = folder / "cells" / "one"
    cell.mkdir(parents=True)
    for content in ("[]", "{}", "{"):
        (cell / "result.json").write_text(content)
        text = refused("labels", "export", str(folder), "--out", str(tmp_path / "m.npz"))
        assert text.startswith(f"{cell / 'result.json'}: cannot be read (")
        assert text.endswith("; mend it from a copy")


def test_only_a_folder_of_an_experiment_is_to_be_gone_on_with(tmp_path: Path) -> None:
    study = tmp_path / "digits-1"
    study.mkdir()
    (study / "study.toml").write_text('name = "digits"\n')
    assert (
        refused("labels", "plot", str(study))
        == f"{study}: holds no experiment; allowed: a folder that `fedrho labels train` wrote"
    )
    begun = experiment_folder(tmp_path / "begun", None)
    assert f"`fedrho labels train --out {begun}` goes on" in refused("labels", "plot", str(begun))


def test_the_legend_has_error_bars_only_where_there_are_some(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from fedrho.labels.plots import _accuracy

    for deviation, bars in ((0.0, False), (0.02, True)):
        results = json.loads(results_of(0.5, 0.6))
        for one in results["runs"]:
            one["accuracy_std"] = deviation
        figure = Figure()
        _accuracy(figure, results)
        (container,) = figure.axes[0].containers
        assert container.has_yerr is bars  # type: ignore[attr-defined]


def test_an_unwritable_folder_is_told_with_the_option_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(self: Path, *arguments: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "mkdir", refusing)
    text = refused(*DIGITS, "--method", "lp-1st")
    assert text == f"{tmp_path}: cannot be written (Permission denied); choose another --out"


@pytest.mark.slow
def test_a_trial_says_so_wherever_its_figures_are_shown(tmp_path: Path) -> None:
    folder = str(tmp_path / "trial")
    done = called("labels", "train", "--dataset", "digits", "--method", "dp-sgd", "--epsilon", "1", "--trial", "--out", folder)
    assert done.exit_code == 0, done.output
    assert "figures say nothing" in done.output
    again = called("labels", "train", "--out", folder)
    assert "figures say nothing" in again.output
    assert "DP-SGD, 2 steps" in again.output
    assert json.loads(called("labels", "train", "--out", folder, "--json").stdout)["trial"] is True
    assert "a trial, whose figures say nothing" in (tmp_path / "trial" / "plots" / "accuracy.svg").read_text()


def test_steps_are_those_of_dp_sgd_too() -> None:
    options: dict[str, Any] = {"dataset": "digits", "data": None, "model": None, "seeds": None}
    changes: dict[str, Any] = {"mixup": None, "steps": 60, "epochs": None}
    stages: dict[str, Any] = {"prior": None, "temperature": None, "stages": None}
    ((run,), training) = (made := recipes.experiment(options, ["dp-sgd"], [1.0], changes, stages)).runs, made.training
    assert run.dp_sgd is not None
    assert (run.dp_sgd.steps, training.steps) == (60, 60)
