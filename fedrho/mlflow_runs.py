"""Simulations as runs of MLflow: a folder is sent as often as one likes, every number once. Needs the extra `mlflow`.

What is in a run: every value of the study as a parameter, every number of every step as a metric, by the names and virtual times
that TensorBoard gets, and the statement, the study, the weights and the pictures as artifacts. A sweep is a run whose points are
runs within it. Which run a folder has become is noted in its `machine/`, so nothing that is compared changes.

MLflow is never in the way: what cannot be sent is left out, and told at the beginning and at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedrho import console
from fedrho.console import BadInput
from fedrho.simulations import records
from fedrho.simulations.events import ABOUT_A_STEP, tag
from fedrho.simulations.files import write_whole
from fedrho.simulations.records import COLUMNS, Row
from fedrho.simulations.running import Watch

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

EXPERIMENT: Final = "fedrho"
"""Unless MLFLOW_EXPERIMENT_NAME says another."""
SEND_SECONDS: Final = 10.0
NOTE: Final = Path("machine") / "mlflow.json"
SIMULATION: Final = "simulation, protects nobody"
ARTIFACTS: Final = (
    *("study.toml", "task.toml", "statement.json", "statement.txt", "summary.json", "metrics.parquet", "weights.npz"),
    *("vocabulary.txt", "sweep.jsonl", "sweep.parquet", "sweep.txt"),
)
MOST_METRICS: Final = 1000
MOST_PARAMETERS: Final = 100
"""MLflow takes no more at once."""
LONGEST_VALUE: Final = 500
"""Characters of a parameter that every version takes."""
SETTINGS: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}
"""Unless the environment says otherwise: it tells its makers nothing, and does not hold up a study for minutes."""


def check(uri: str) -> None:
    """Raises BadInput where there is no MLflow here, or `uri` is of no kind that it knows."""
    import logging

    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise BadInput('--mlflow: needs MLflow; install it with `pip install "fedrho[mlflow]"`') from error
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not uri.strip():
        raise BadInput("--mlflow: must name a store, such as sqlite:///mlflow.db or http://127.0.0.1:5000")
    if "@" in uri.partition("://")[2].partition("/")[0]:
        raise BadInput(
            "--mlflow: holds a name or password, which every process here could read; "
            "give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to reach a server instead"
        )
    try:
        MlflowClient(uri)
    except Exception as error:
        if "UnsupportedModelRegistryStoreURI" in type(error).__name__ or "nsupported URI" in str(error):
            raise BadInput(f"--mlflow {uri}: allowed: sqlite:///FILE, file:FOLDER, or the http:// address of a server") from error


class Sent:
    """A folder as a run. No call raises; `failed` says why the latest did not do what it should."""

    def __init__(self, uri: str, path: Path, parent: str | None = None) -> None:
        self.failed: str | None = None
        self.run: str | None = None
        self._uri = uri
        self._path = path
        self._parent = parent
        self._known: set[tuple[str, int]] = set()
        self._client: MlflowClient | None = None

    def begin(self) -> None:
        """The run is there, and is going on."""
        self._try(lambda client: client.update_run(self._open(client), status="RUNNING"))

    def numbers(self) -> None:
        """All steps that the folder holds by now, and MLflow does not."""
        self._try(self._send_numbers)

    def end(self) -> None:
        """All there is in the folder, and how it ended."""
        self._try(self._send_all)

    def _try(self, send: Any) -> None:
        """Whatever goes wrong, in MLflow or below it, is no matter of the study."""
        try:
            if self._client is None:
                from mlflow.tracking import MlflowClient

                self._client = MlflowClient(self._uri)
            send(self._client)
        except Exception as error:
            self.failed = " ".join(str(error).split())[:200] or type(error).__name__
        else:
            self.failed = None

    # -- the run ---------------------------------------------------------------------------------------------------------

    def _open(self, client: MlflowClient) -> str:
        """The run that the folder has become in this store, or a new one."""
        if self.run is None:
            self.run = self._found(client) or self._made(client)
            for key in {tag(column.name) for column in COLUMNS}:
                self._known |= {(key, metric.step) for metric in client.get_metric_history(self.run, key)}
        return self.run

    def _found(self, client: MlflowClient) -> str | None:
        from mlflow.exceptions import MlflowException

        run = self._noted().get(self._store)
        if run is None:
            return None
        try:
            there = client.get_run(run)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if there.info.lifecycle_stage == "active" else None

    def _made(self, client: MlflowClient) -> str:
        from mlflow.entities import Param

        values = tomllib.loads((self._path / "study.toml").read_text(encoding="utf-8"))
        tags = {
            "fedrho": SIMULATION,
            "mlflow.note.content": "A simulation protects nobody; statement.txt says what a deployed run could claim.",
        }
        if self._parent is not None:
            tags["mlflow.parentRunId"] = self._parent
        made = client.create_run(self._experiment(client), tags=tags, run_name=self._path.resolve().name)
        run = str(made.info.run_id)
        write_whole(self._path / NOTE, json.dumps({**self._noted(), self._store: run}).encode() + b"\n")
        parameters = [Param(name, str(value)[:LONGEST_VALUE]) for name, value in flat(values)]
        for place in range(0, len(parameters), MOST_PARAMETERS):
            client.log_batch(run, params=parameters[place : place + MOST_PARAMETERS])
        return run

    def _experiment(self, client: MlflowClient) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        return str(client.create_experiment(name, artifact_location=self._artifacts(name)))

    def _artifacts(self, name: str) -> str | None:
        """Beside a database that is a file here; elsewhere, where the store puts them."""
        if not self._uri.startswith("sqlite:///"):
            return None
        return (Path(self._uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts" / name).as_uri()

    @property
    def _store(self) -> str:
        """Which store, in few letters."""
        return hashlib.sha256(self._uri.encode()).hexdigest()[:16]

    def _noted(self) -> dict[str, str]:
        try:
            noted: dict[str, str] = json.loads((self._path / NOTE).read_bytes())
        except (OSError, ValueError):
            return {}
        return noted

    # -- what is in it ---------------------------------------------------------------------------------------------------

    def _send_numbers(self, client: MlflowClient) -> None:
        run = self._open(client)
        fresh = [metric for row in self._rows() for metric in _metrics(row) if (metric.key, metric.step) not in self._known]
        for place in range(0, len(fresh), MOST_METRICS):
            some = fresh[place : place + MOST_METRICS]
            client.log_batch(run, metrics=some)
            self._known |= {(metric.key, metric.step) for metric in some}

    def _rows(self) -> Sequence[Row]:
        path = self._path / "metrics.jsonl"
        return records.rows(path.read_bytes()) if path.exists() else []

    def _send_all(self, client: MlflowClient) -> None:
        self._send_numbers(client)
        run = self._open(client)
        finished = any((self._path / name).exists() for name in ("summary.json", "sweep.jsonl"))
        if finished:
            for name in ARTIFACTS:
                if (self._path / name).exists():
                    client.log_artifact(run, str(self._path / name))
            client.log_artifacts(run, str(self._path / "plots"), "plots")
        client.set_terminated(run, "FINISHED" if finished else "KILLED")


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """By dotted key."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _metrics(row: Row) -> Iterator[Metric]:
    from mlflow.entities import Metric

    values = records.flat(row)
    instant = int(1000 * (values["virtual_seconds"] or 0.0))
    for name, value in values.items():
        if value is not None and name not in ABOUT_A_STEP:
            yield Metric(tag(name), float(value), instant, values["step"])


class Following:
    """Looks on while a study runs, beside `watch`, and sends its steps now and then; after a failure not before the end."""

    def __init__(self, watch: Watch, sent: Sent) -> None:
        self._watch = watch
        self._sent = sent
        self._due = time.monotonic() + SEND_SECONDS

    def shown(self, row: Row) -> None:
        self._watch.shown(row)
        if self._sent.failed is None and time.monotonic() >= self._due:
            self._sent.numbers()
            self._due = time.monotonic() + SEND_SECONDS

    @property
    def told_to_stop(self) -> bool:
        return self._watch.told_to_stop


@contextmanager
def followed(uri: str | None, path: Path, watch: Watch) -> Iterator[Watch]:
    """The study that is run in the block, in the folder at `path`; one that is broken off is sent as far as it came."""
    if uri is None:
        yield watch
        return
    sent = Sent(uri, path)
    sent.begin()
    _tell_early(sent)
    try:
        yield Following(watch, sent)
    finally:
        sent.end()
        _tell(uri, path, [sent])


def send(uri: str | None, path: Path) -> None:
    """A folder as it stands."""
    if uri is not None:
        sent = Sent(uri, path)
        sent.end()
        _tell(uri, path, [sent])


@contextmanager
def followed_sweep(uri: str | None, path: Path, points: Sequence[Path]) -> Iterator[None]:
    """The sweep that is run in the block; each of its points is sent at the end, as far as it came."""
    if uri is None:
        yield
        return
    whole = Sent(uri, path)
    whole.begin()
    _tell_early(whole)
    try:
        yield
    finally:
        begun = [point for point in points if whole.run is not None and (point / "metrics.jsonl").exists()]
        sent = [*(Sent(uri, point, whole.run) for point in begun), whole]
        for one in sent:
            one.end()
        _tell(uri, path, sent)


def _tell_early(sent: Sent) -> None:
    """Before hours of work, that nobody is there to take it."""
    if sent.failed is not None:
        _say(f"MLflow did not take the run ({sent.failed}); it goes on, and a line at its end says how to send it")


def _tell(uri: str, path: Path, sent: Sequence[Sent]) -> None:
    """One line for all that could not be sent."""
    why = next((one.failed for one in sent if one.failed), None)
    if why is not None:
        _say(
            f"MLflow did not take everything ({why}); the results are whole, and "
            f"`fedrho simulate --resume {shlex.quote(str(path))} --mlflow {shlex.quote(uri)}` sends what is missing"
        )


def _say(line: str) -> None:
    console.err.print(f"fedrho: {line}", style="yellow", highlight=False, markup=False, soft_wrap=True)
