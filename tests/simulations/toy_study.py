"""Studies without TensorFlow: made-up data, and an engine that needs no model; for tests of files and folders."""

from __future__ import annotations

import hashlib
from copy import deepcopy
from pathlib import Path
from typing import Any

from fedrho.privacy.vectors import FloatVector
from fedrho.simulations import results, running
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.engines.base import Tested
from fedrho.simulations.folder import StudyFolder
from fedrho.simulations.records import Row
from fedrho.simulations.running import Parts, Run
from fedrho.simulations.state import State
from fedrho.simulations.study import Study, make_study
from fedrho.simulations.virtual import Plan, Simulation
from tests.simulations.toy import SIZE, ToyEngine, toy_values, zeros

DATA = {"name": "made-up", "devices": 200, "shape": [64], "classes": 10, "examples": 5, "test_examples": 50}


def study_values(**changes: Any) -> dict[str, Any]:
    """The values of a study file; `changes` are top keys."""
    task = {key: value for key, value in toy_values().items() if key != "population"}
    values: dict[str, Any] = {
        "name": "toy",
        "data": DATA,
        "task": task,
        "record": {"test_every": 2, "checkpoint_every": 3, "keep": 2},
    }
    return deepcopy({**values, **changes})


def toy_study(**changes: Any) -> tuple[Study, FederatedDataset]:
    return make_study(study_values(**changes), "study.toml", Path())


class MeasuredEngine(ToyEngine):
    """Its accuracy follows from the weights."""

    def test(self, weights: FloatVector) -> Tested:
        right = int(abs(float(weights.sum())) * 1000) % 50
        return Tested(right, 50, float(weights.std()), 50)


class Watch:
    """Says stop after a step, or never."""

    def __init__(self, stop_after: int | None = None) -> None:
        self._stop_after = stop_after
        self._latest = 0

    @property
    def told_to_stop(self) -> bool:
        return self._stop_after is not None and self._latest >= self._stop_after

    def shown(self, row: Row) -> None:
        self._latest = row["step"]


def parts(study: Study, dataset: FederatedDataset) -> Parts:
    def start(state: State | None) -> Simulation:
        plan = Plan(study.planned, study.seed, study.file.availability, dataset, study.before)
        return Simulation(plan, MeasuredEngine(study.task.mechanism.grid), zeros(SIZE), state)

    engine = MeasuredEngine(study.task.mechanism.grid)
    return Parts(study, dataset, engine, start, lambda weights, device: device % 7 / 7)


def run_toy(path: Path, study: Study, dataset: FederatedDataset, stop_after: int | None = None) -> Run:
    """To its end, with all results but those that need a model or a picture."""
    with StudyFolder(path, study) as folder:
        run = running.run(parts(study, dataset), folder, Watch(stop_after))
        if not run.stopped:
            claim = results.claim(study, run.rows[-1]["step"], run.statement)
            folder.write("metrics.parquet", results.table(study, run.rows))
            folder.write("statement.json", results.as_bytes(claim))
            folder.write("statement.txt", results.claim_text(study, run.statement).encode())
            folder.write("summary.json", results.as_bytes(results.summary(study, run.rows, claim, vectorised=False)))
    return run


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of every file but those under machine/."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and "machine" not in file.relative_to(path).parts)
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
