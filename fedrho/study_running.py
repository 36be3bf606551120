"""One study from its values to its finished folder: locks, progress, results, and one line for whatever goes wrong."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import textwrap
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedrho import mlflow_runs
from fedrho.console import BadInput, Stopped
from fedrho.models.tokens import Tokens
from fedrho.privacy.progress import Progress
from fedrho.progress import Bar, Fetching
from fedrho.simulations import events, results, running
from fedrho.simulations import folder as folders
from fedrho.simulations.checks import check_engine
from fedrho.simulations.data.base import DataError, FederatedDataset
from fedrho.simulations.folder import DiskFull, StudyFolder
from fedrho.simulations.study import Study, make_study
from fedrho.work import Work

PACKAGES = (
    "fedrho",
    "tensorflow",
    "keras",
    "numpy",
    "scipy",
    "dp-accounting",
    "randomgen",
    "pyarrow",
    "tensorboard",
    "matplotlib",
)


class StudyFailed(RuntimeError):
    """A study that could not go on; what there is can be continued."""


@dataclass(frozen=True)
class How:
    """What changes no number: which engine, how many workers, how much is said, and where else. None: as the study says."""

    engine: str | None = None
    workers: int | None = None
    quiet: bool = False
    mlflow: str | None = None

    @property
    def again(self) -> str:
        """The options that say the same."""
        engine = f" --engine {self.engine}" if self.engine else ""
        workers = f" --workers {self.workers}" if self.workers else ""
        return engine + workers + (f" --mlflow {shlex.quote(self.mlflow)}" if self.mlflow else "")


@dataclass(frozen=True, eq=False)
class Ended:
    """How a study ended, and what of it belongs to this machine alone."""

    study: Study
    path: Path
    summary: Mapping[str, Any]
    steps_here: int
    seconds: float

    def as_json(self) -> dict[str, object]:
        rate = round(self.steps_here / self.seconds, 3) if self.seconds > 0 else None
        return {**self.summary, "folder": str(self.path), "seconds": round(self.seconds, 3), "steps_per_second": rate}


def run_new(study: Study, dataset: FederatedDataset, output: Path | None, how: How) -> Ended:
    """In a folder of its own. Raises FolderError, StudyFailed, Stopped."""
    checked(study, how)
    if output is not None:
        folders.check_new(output)
    if study.start_file is not None:
        _check_start(study)
    path = output or folders.fresh(study.file.name, Path())
    return _run(study, dataset, path, how)


def _check_start(study: Study) -> None:
    """Raises DataError where a study could not begin, before it has a folder. Builds the model."""
    from fedrho.models.backend import SeveralThreads, one_thread
    from fedrho.models.flat import FlatModel
    from fedrho.simulations.opening import beginning, model_of

    with suppress(SeveralThreads):  # who opens the study says so
        one_thread()
    beginning(study, FlatModel(model_of(study)))


def resume(path: Path, how: How, given: tuple[Study, FederatedDataset] | None = None) -> Ended:
    """Goes on in a folder; with a study `given`, only if it is the folder's. Raises FolderError, StudyError, Stopped."""
    stored = folders.stored_values(path)
    if given is not None:
        folders.check_same(path, given[0].values())
    with Fetching(f"opening the data of {path.name}", how.quiet) as fetching:
        study, dataset = make_study(stored, str(path / "study.toml"), path, progress=fetching.show)
    checked(study, how)
    return _run(study, dataset, path, how)


def checked(study: Study, how: How) -> How:
    """With the study's own engine where none was asked for; raises BadInput for one that cannot be had."""
    kind = how.engine or study.file.engine.kind
    workers = study.file.engine.workers if how.workers is None else how.workers
    try:
        check_engine(kind, workers, "--engine" if how.engine else "engine.kind")
    except DataError as error:
        raise BadInput(str(error)) from error
    if (kind == "tff") != (study.file.engine.kind == "tff"):
        raise BadInput(f"--engine {kind}: changes the numbers; write it into the study, or --set engine.kind={kind}")
    return replace(how, engine=kind, workers=workers)


def _run(study: Study, dataset: FederatedDataset, path: Path, how: How) -> Ended:
    with StudyFolder(path, study) as folder:
        if folder.finished:
            mlflow_runs.send(how.mlflow, path)
            return Ended(study, path, folder.read_json("summary.json"), 0, 0.0)
        return _run_in(folder, dataset, how)


def _run_in(folder: StudyFolder, dataset: FederatedDataset, how: How) -> Ended:
    from fedrho.simulations.engines.base import EngineError
    from fedrho.simulations.virtual_rounds import NeverFinished
    from fedrho.study_progress import StudyProgress

    study = folder.study
    folder.check_writable()
    try:
        with (
            StudyProgress(study.steps, how.quiet, _rho_budget(study)) as progress,
            mlflow_runs.followed(how.mlflow, folder.path, progress) as watch,
        ):
            return _through(folder, dataset, how, watch, progress)
    except NeverFinished as error:  # nor would it be the next time
        raise StudyFailed(f"{folder.path}: {error}") from error
    except (DiskFull, EngineError) as error:
        raise StudyFailed(f"{error}; {going_on(folder.path, how)}") from error
    except KeyboardInterrupt:
        raise Stopped(f"stopped; {going_on(folder.path, how)}") from None


def _rho_budget(study: Study) -> float | None:
    privacy = study.file.task.get("privacy")
    return privacy.get("rho") if isinstance(privacy, dict) else None


def _through(folder: StudyFolder, dataset: FederatedDataset, how: How, watch: running.Watch, bar: Bar) -> Ended:
    began = time.monotonic()
    from fedrho.simulations.opening import opened

    study, chosen = folder.study, checked(folder.study, how)
    with opened(study, dataset, chosen.engine or "auto", chosen.workers or 0) as (parts, model):
        folder.note(**_facts(chosen), started=time.time(), start_up_seconds=round(time.monotonic() - began, 3))
        run = running.run(parts, folder, watch)
    folder.note(ended=time.time(), steps=run.steps_here, seconds=round(run.seconds, 3), finished=not run.stopped)
    if run.stopped:
        raise Stopped(f"stopped after step {len(run.rows)} of {study.steps}; {going_on(folder.path, how)}")
    bar.end()
    try:
        with Work("writing the results", quiet=how.quiet) as work:
            _write_words(folder, dataset)
            said = _write_results(folder, run, model, parts.vectorised, results.tokens_of(dataset), work.progress)
    except OSError as error:
        raise DiskFull(f"{folder.path}: cannot be written any more ({error.strerror or error}); all steps are done") from error
    return Ended(study, folder.path, said, run.steps_here, run.seconds)


def _write_words(folder: StudyFolder, dataset: FederatedDataset) -> None:
    """A vocabulary that is no model's, so that somebody can read what the model guesses."""
    listed = results.own_words(dataset)
    if listed is not None:
        folder.write("vocabulary.txt", listed)


def _write_results(
    folder: StudyFolder, run: running.Run, model: Any, vectorised: bool, tokens: Tokens | None, progress: Progress
) -> dict[str, Any]:
    from fedrho import export, study_plots

    study, last = folder.study, run.rows[-1]
    claim = results.claim(study, last["step"], run.statement)
    folder.write("metrics.parquet", results.table(study, run.rows))
    folder.write("statement.json", results.as_bytes(claim))
    said_in_words = results.claim_text(study, run.statement)
    folder.write("statement.txt", said_in_words.encode())
    texts = {"statement": _wrapped(said_in_words), "study": study.text()}
    folder.write(f"tensorboard/{events.TEXTS}", events.of_texts(last["step"], texts))
    model.assign(run.weights)
    held = claim if tokens is None else {**claim, "tokens": tokens.name}
    folder.write("weights.npz", export.npz(model, results.as_bytes(held).decode()))
    about = study.file.name, study.data.name, run.rows, study.delta, study.clip_norm
    pictures = study_plots.of_study(*about, progress)
    for name, picture in pictures.items():
        folder.write(f"plots/{name}", picture)
    said = results.summary(study, run.rows, claim, vectorised)
    folder.write("summary.json", results.as_bytes(said))
    return said


def _wrapped(text: str) -> str:
    """For a page that breaks no line by itself."""
    return "\n".join(textwrap.fill(line, 110, subsequent_indent="  ") for line in text.splitlines()) + "\n"


def going_on(path: Path, how: How) -> str:
    """The command that takes up a study where it was left."""
    return f"go on with `fedrho simulate --resume {shlex.quote(str(path))}{how.again}`"


def _facts(how: How) -> dict[str, object]:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "engine": how.engine,
        "workers": how.workers,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "versions": versions,
    }


def open_study(path: Path, settings: list[str], quiet: bool = False) -> tuple[Study, FederatedDataset]:
    from fedrho.simulations.study import load_study

    with Fetching(f"opening the data of {path.name}", quiet) as fetching:
        return load_study(path, settings, fetching.show)
