"""Study: a task, a population, the availability of its devices, an engine, what is recorded; and its TOML file.

`[task]` has exactly the keys of a task file, or `task` names one. Everything is checked here and in `checks.py`, before any
training starts.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from fedrho.models.saved import SUFFIX
from fedrho.privacy.statement import PrivacyStatement, round_up
from fedrho.server.starting import start_of
from fedrho.server.tasks import (
    LONGEST_FILE,
    Section,
    Task,
    TaskError,
    TaskFile,
    build_task,
    explain,
    shortened,
    why_unreadable,
    with_saved_model,
    with_start,
)
from fedrho.simulations.availability import AvailabilitySection
from fedrho.simulations.data.base import DataError, DataSource, FederatedDataset
from fedrho.simulations.data.download import Progress
from fedrho.simulations.nonprivate import ALGORITHM, NONE, NonPrivateTask, is_nonprivate, nonprivate_task
from fedrho.simulations.poisson import SampledTask, SamplingSection, sampled_task
from fedrho.simulations.toml_text import toml_text

MODEL = "model.keras"
STARTS = "start"
"""Of a study's folder: holds the file that its run started from, under its own name."""
"""What a saved model is called in a folder of results."""
ENGINES = ("auto", "serial", "processes", "ray", "tff")
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class StudyError(ValueError):
    """A study that cannot be run: file, key and what is allowed, in one line."""


class EngineSection(Section):
    kind: str = "auto"
    workers: Annotated[int, Field(ge=0, le=10_000)] = 0
    address: str = ""
    vectorised: bool | Literal["auto"] = "auto"


class RecordSection(Section):
    """How often things are written, in steps; 0 of `test_every` and `checkpoint_every` means some fifty times a run."""

    test_every: Annotated[int, Field(ge=0, le=100_000)] = 0
    checkpoint_every: Annotated[int, Field(ge=0, le=100_000)] = 0
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    clients: Annotated[int, Field(ge=0, le=10_000)] = 20


class SweepSection(Section):
    """Points of a sweep: every combination of `grid`, or `count` draws of `random`; each with every one of `seeds`."""

    grid: dict[str, Any] = Field(default_factory=dict)
    random: dict[str, Any] = Field(default_factory=dict)
    count: Annotated[int, Field(ge=1, le=10_000)] | None = None
    seed: Seed = 0
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=1000)] | None = None


class StudyFile(Section):
    """The study file but for its task, key by key; `docs/simulate.md` says what each means."""

    name: Name
    seed: Seed = 0
    chosen_from: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    task: dict[str, Any]
    data: dict[str, Any]
    availability: AvailabilitySection = AvailabilitySection()
    sampling: SamplingSection | None = None
    engine: EngineSection = EngineSection()
    record: RecordSection = RecordSection()
    sweep: SweepSection | None = None


@dataclass(frozen=True)
class Study:
    """A checked study: the file's values, and the objects made of them. `planned` is a `SampledTask` under Poisson sampling.

    Without privacy `planned` is a `NonPrivateTask`; `algorithm` says so, and there is no delta.
    """

    file: StudyFile
    planned: Task | SampledTask | NonPrivateTask
    data: DataSource
    model_file: Path | None = None
    start_file: Path | None = None
    before: PrivacyStatement | None = None
    """What was released about the devices before the training, so that the data are what they are; the task has the rest."""

    @property
    def seed(self) -> int:
        return self.file.seed

    @property
    def task(self) -> Task:
        return self.planned if isinstance(self.planned, Task) else self.planned.task

    @property
    def algorithm(self) -> str:
        return ALGORITHM if isinstance(self.planned, NonPrivateTask) else self.task.file.algorithm

    @property
    def steps(self) -> int:
        return self.task.file.steps

    @property
    def delta(self) -> float | None:
        """None without privacy: of nothing there is no probability."""
        return None if isinstance(self.planned, NonPrivateTask) else self.task.file.privacy.delta

    @property
    def clip_norm(self) -> float | None:
        """None where nothing is clipped."""
        return None if isinstance(self.planned, NonPrivateTask) else self.task.mechanism.grid.clip_norm

    @property
    def test_every(self) -> int:
        return self.file.record.test_every or max(1, self.steps // 50)

    @property
    def checkpoint_every(self) -> int:
        return self.file.record.checkpoint_every or max(1, self.steps // 50)

    def due(self, step: int) -> bool:
        """Whether weights are measured after this step: after the last one always."""
        return step % self.test_every == 0 or step == self.steps

    def values(self) -> dict[str, Any]:
        """Every key with the value in force; what is measured in the run itself, or has no meaning here, is left out."""
        values = self.file.model_dump()
        values["record"] |= {"test_every": self.test_every, "checkpoint_every": self.checkpoint_every}
        values["task"] = self._task_values()
        if self.before is not None:
            values["task"]["privacy"]["rho"] = self.file.task["privacy"]["rho"]  # of both together, as the file says it
        if not isinstance(self.planned, Task):
            del values["availability"]
        return values

    def text(self) -> str:
        """The resolved study, as a file that says the same."""
        return toml_text(self.values()) + "\n"

    def task_text(self) -> str | None:
        """The task alone, as `fedrho serve` takes it; None under Poisson sampling, which no server can enforce, and without
        privacy, which no server takes."""
        return None if not isinstance(self.planned, Task) else f"{self._spent_before()}{toml_text(self._task_values())}\n"

    def _spent_before(self) -> str:
        """A remark at the head of the task, whose rho is only what is left: a server knows of nothing else."""
        if self.before is None:
            return ""
        spent, whole = round_up(self.before.rho), self.file.task["privacy"]["rho"]
        return (
            f"# privacy.rho is what the vocabulary left of {whole:g}: the devices' words chose it, at a price of {spent}.\n"
            "# A server that is given this task does not know of it, and claims that no setting was chosen with their data:\n"
            "# add that rho to what it claims, and make this exception.\n"
        )

    def _task_values(self) -> dict[str, Any]:
        values = self.task.file.model_dump()
        if isinstance(self.planned, NonPrivateTask):
            values |= {"algorithm": ALGORITHM, "privacy": NONE, "round": {"goal": values["round"]["goal"]}}
        if isinstance(self.planned, SampledTask):
            del values["participation"], values["privacy"]["rho"]
            values["round"] = {"goal": values["round"]["goal"]}
            if self.file.sampling is not None and self.file.sampling.epsilon is not None:
                del values["privacy"]["noise_multiplier"]
        if self.model_file is not None:
            values["model"] = MODEL
        if (start := start_of(self.task.file)) is not None:
            values["start"] = str(replace(start, name=f"{STARTS}/{start.name}"))
        return values


def read_values(path: Path, settings: Sequence[str] = ()) -> dict[str, Any]:
    """The values of a study file, with those of the task file that it names, and changed by `KEY=VALUE`s."""
    values = _toml_file(path)
    if isinstance(values.get("task"), str):
        values["task"] = _toml_file(path.parent / values["task"], f"{path}: task: ")
    for setting in settings:
        set_value(values, *_setting(setting))
    data = values.get("data")
    if isinstance(data, dict) and isinstance(data.get("path"), str):  # as the results will say it, wherever they are read
        data["path"] = str((path.parent / Path(data["path"]).expanduser()).resolve())
    return values


def load_study(path: Path, settings: Sequence[str] = (), progress: Progress | None = None) -> tuple[Study, FederatedDataset]:
    """Raises StudyError, also when a file is missing. `progress` is told of what is fetched."""
    return make_study(read_values(path, settings), str(path), path.parent, progress=progress)


def make_study(
    values: dict[str, Any],
    source: str,
    folder: Path,
    known: tuple[DataSource, FederatedDataset] | None = None,
    progress: Progress | None = None,
) -> tuple[Study, FederatedDataset]:
    """A study and its open data set, from values as TOML has them; raises StudyError, one line that names `source` and key.

    Data that are `known`, because another study has opened them, are not opened again; `progress` is told of what is fetched.
    """
    from fedrho.simulations.before import after
    from fedrho.simulations.checks import check_study

    try:
        _check_top(values)
        file = StudyFile.model_validate({"name": values["task"].get("name"), **values})
        data = DataSource.of(file.data)
        dataset = known[1] if known and known[0] == data else open_data(data, progress)
        model_file = _model_file(file.task, folder)
        before = None if is_nonprivate(file.task) else charge_of(data)
        paid = file if before is None else file.model_copy(update={"task": after(file, before)})
        planned, start_file = _planned(paid, dataset, folder)
        study = Study(file, planned, data, model_file, start_file, before)
        check_study(study, dataset)
    except ValidationError as error:
        raise StudyError(f"{source}: {explain(error, StudyFile, 'study')}") from error
    except (DataError, TaskError) as error:
        raise StudyError(f"{source}: {error}") from error
    return study, dataset


def _planned(file: StudyFile, dataset: FederatedDataset, folder: Path) -> tuple[Task | SampledTask | NonPrivateTask, Path | None]:
    """The task, for as many devices as there are in the data, and the file that it starts from; raises DataError."""
    values = {"population": dataset.size, **file.task}
    try:
        values, start = with_start(with_saved_model(values, folder), folder)
        if is_nonprivate(values):
            return _nonprivate(values, file), start
        if file.sampling is not None:
            return sampled_task(values, file.sampling, file.availability), start
        return build_task(TaskFile.model_validate(values)), start
    except ValidationError as error:
        raise DataError(f"task.{explain(error)}") from error
    except TaskError as error:
        there = str(error).startswith(("sampling.", "availability."))
        raise DataError(f"{'' if there else 'task.'}{error}") from error


def charge_of(source: DataSource) -> PrivacyStatement | None:
    from fedrho.simulations.data import catalogue

    return catalogue.charge_of(source)


def _nonprivate(values: dict[str, Any], file: StudyFile) -> NonPrivateTask:
    if file.sampling is not None:
        raise TaskError("sampling.kind", f"amplifies privacy, and {ALGORITHM} has none; leave the section out")
    return nonprivate_task(values, file.availability)


def open_data(source: DataSource, progress: Progress | None = None) -> FederatedDataset:
    from fedrho.simulations.data import catalogue

    return catalogue.open_data(source, progress)


def _toml_file(path: Path, before: str = "") -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        hint = "" if before else "; `fedrho simulate example` writes one to start from"
        raise StudyError(f"{before}{path}: no such file{hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{before}{path}: cannot be read as text ({why_unreadable(error)})") from error
    if len(text) > LONGEST_FILE:
        raise StudyError(f"{before}{path}: {len(text)} characters are no study; allowed: up to {LONGEST_FILE}")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{before}{path}: not valid TOML: {shortened(str(error))}") from error


def _setting(text: str) -> tuple[str, Any]:
    """`key=value`, whose value is TOML, or else a string."""
    key, found, value = text.partition("=")
    if not found or not key.strip():
        raise StudyError(f"--set {shortened(text)}: allowed: KEY=VALUE, for example task.privacy.rho=1.0")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return key.strip(), value.strip()


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Changes one value by its dotted key; raises StudyError where a part of the key is no section."""
    *sections, last = key.split(".")
    for name in sections:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise StudyError(f"{key}: {name!r} is a value, not a section")
    values[last] = value


def _check_top(values: Mapping[str, Any]) -> None:
    """What has to be there before the data set can be asked how many devices it has."""
    allowed = list(StudyFile.model_fields)
    for key in values:
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            hint = "it belongs into [task]; " if key in TaskFile.model_fields else hint
            raise DataError(f"{shortened(key)}: unknown key; {hint}allowed: {', '.join(allowed)}")
    for key in ("task", "data"):
        if key not in values:
            raise DataError(f"{key}: missing; every study needs it")
        if not isinstance(values[key], dict):
            raise DataError(f"{key}: must be a section, [{key}], not {shortened(repr(values[key]))}")


def _model_file(task: Mapping[str, Any], folder: Path) -> Path | None:
    model = task.get("model")
    return folder / model if isinstance(model, str) and model.endswith(SUFFIX) else None
