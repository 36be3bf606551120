"""A study as a run of MLflow, in a real store: every number once, broken off or not, and never in the study's way."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fedrho import mlflow_runs
from fedrho.console import BadInput
from fedrho.simulations import records
from fedrho.simulations.events import ABOUT_A_STEP, tag
from fedrho.simulations.folder import StudyFolder
from tests.simulations.toy_study import Watch, digests, run_toy, toy_study

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty database; made once, because that takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/it.db"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in mlflow_runs.SETTINGS.items():
            patch.setenv(name, value)
        mlflow_runs.check(uri)
        yield uri


def client_of(uri: str) -> MlflowClient:
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def run_part(path: Path, uri: str | None, stop_after: int | None = None) -> None:
    """The toy study in a folder, to its end or to a step, as the command runs it."""
    study, dataset = toy_study()
    with StudyFolder(path, study):
        pass  # it is there now
    with mlflow_runs.followed(uri, path, Watch()):
        run_toy(path, study, dataset, stop_after)


def logged(uri: str, path: Path) -> tuple[Any, dict[tuple[str, int], list[float]]]:
    """The run, and every value of every step of every metric."""
    (run,) = json.loads((path / mlflow_runs.NOTE).read_bytes()).values()
    client = client_of(uri)
    found: dict[tuple[str, int], list[float]] = {}
    for key in client.get_run(run).data.metrics:
        for metric in client.get_metric_history(run, key):
            found.setdefault((key, metric.step), []).append(metric.value)
    return client.get_run(run), found


def expected(path: Path) -> dict[tuple[str, int], list[float]]:
    rows = [records.flat(row) for row in records.rows((path / "metrics.jsonl").read_bytes())]
    return {
        (tag(name), row["step"]): [float(value)]
        for row in rows
        for name, value in row.items()
        if value is not None and name not in ABOUT_A_STEP
    }


@pytest.mark.slow
def test_a_study_that_was_broken_off_is_one_run_with_each_number_once(store: str, tmp_path: Path) -> None:
    run_part(tmp_path / "whole", None)
    path = tmp_path / "toy-1"
    run_part(path, store, stop_after=4)
    broken, numbers = logged(store, path)
    assert broken.info.status == "KILLED"
    assert numbers == expected(path)
    run_part(path, store)
    mlflow_runs.send(store, path)
    run, numbers = logged(store, path)
    assert (run.info.run_id, run.info.status, run.info.run_name) == (broken.info.run_id, "FINISHED", "toy-1")
    assert numbers == expected(path)
    assert {"privacy/rho", "held_out/accuracy", "noise/sum_stddev", "simulation_only/training_loss"} <= {
        key for key, _ in numbers
    }
    assert run.data.tags["fedrho"] == "simulation, protects nobody"
    assert run.data.params["task.privacy.delta"] == str(toy_study()[0].values()["task"]["privacy"]["delta"])
    assert run.data.params["seed"] == "0"
    names = {one.path for one in client_of(store).list_artifacts(run.info.run_id)}
    assert {"study.toml", "task.toml", "statement.txt", "statement.json", "metrics.parquet", "summary.json"} <= names
    assert digests(path) == digests(tmp_path / "whole")


@pytest.mark.slow
def test_steps_are_sent_while_the_study_runs(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_part(tmp_path / "toy-1", None, stop_after=2)
    sent = mlflow_runs.Sent(store, tmp_path / "toy-1")
    following = mlflow_runs.Following(Watch(), sent)
    following.shown({"step": 2})
    assert sent.run is None, "not yet due"
    monkeypatch.setattr(mlflow_runs, "SEND_SECONDS", 0.0)
    mlflow_runs.Following(Watch(), sent).shown({"step": 2})
    assert logged(store, tmp_path / "toy-1")[1] == expected(tmp_path / "toy-1")


@pytest.mark.slow
def test_a_run_that_was_deleted_is_made_anew(store: str, tmp_path: Path) -> None:
    path = tmp_path / "toy-1"
    run_part(path, store)
    first, _ = logged(store, path)
    client_of(store).delete_run(first.info.run_id)
    mlflow_runs.send(store, path)
    second, numbers = logged(store, path)
    assert second.info.run_id != first.info.run_id
    assert numbers == expected(path)


@pytest.mark.slow
def test_the_points_of_a_sweep_are_runs_within_it(store: str, tmp_path: Path) -> None:
    path, points = tmp_path / "swept", [tmp_path / "swept" / "points" / name for name in ("000", "001")]
    (path / "machine").mkdir(parents=True)
    (path / "study.toml").write_text('name = "swept"\n[sweep]\nseeds = [0, 1]\n')
    with mlflow_runs.followed_sweep(store, path, points):
        run_part(points[0], None)
        (path / "sweep.jsonl").write_text("{}\n")
    whole, _ = logged(store, path)
    point, numbers = logged(store, points[0])
    assert point.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert whole.data.params["sweep.seeds"] == "[0, 1]"
    assert numbers == expected(points[0])
    assert not points[1].exists()


@pytest.mark.slow
def test_an_mlflow_that_is_down_changes_nothing_but_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**mlflow_runs.SETTINGS, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        run_part(tmp_path / "toy-1", address)
    run_part(tmp_path / "whole", None)
    assert digests(tmp_path / "toy-1") == digests(tmp_path / "whole")
    early, late = capsys.readouterr().err.splitlines()
    assert early.startswith("fedrho: MLflow did not take the run (")
    assert late.startswith("fedrho: MLflow did not take everything (")
    assert late.endswith(f"`fedrho simulate --resume {tmp_path / 'toy-1'} --mlflow {address}` sends what is missing")


def test_that_nobody_takes_a_run_is_told_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(sent: mlflow_runs.Sent, send: object) -> None:
        sent.failed = None if there else "connection refused"

    monkeypatch.setattr(mlflow_runs.Sent, "_try", nobody)
    for there, lines in ((False, 1), (True, 0)):
        for begun in (
            mlflow_runs.followed("http://127.0.0.1:1", tmp_path, Watch()),
            mlflow_runs.followed_sweep("http://127.0.0.1:1", tmp_path, []),
        ):
            with begun:
                said = capsys.readouterr().err
                assert len(said.splitlines()) == lines, said
                assert ("(connection refused); it goes on" in said) is not there
            capsys.readouterr()


@pytest.mark.parametrize("uri", ["", " ", "ftp://a", "gopher:x"])
def test_what_is_no_store_is_refused_before_the_study(uri: str) -> None:
    with pytest.raises(BadInput, match="--mlflow"):
        mlflow_runs.check(uri)


@pytest.mark.parametrize("uri", ["http://ada:lovelace@127.0.0.1:5000", "postgresql://ada:lovelace@127.0.0.1/mlflow"])
def test_an_address_with_a_password_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(BadInput, match="MLFLOW_TRACKING_PASSWORD") as refused:
        mlflow_runs.check(uri)
    assert "lovelace" not in str(refused.value)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)  # as Python says that there is none
    with pytest.raises(BadInput, match=r'--mlflow: needs MLflow; install it with `pip install "fedrho\[mlflow\]"`'):
        mlflow_runs.check("sqlite:///it.db")
