"""A study that begins with weights of a file: it does, keeps the file, says so, and is the same study from its own folder."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrho.models.flat import FlatModel
from fedrho.models.zoo import lookup
from fedrho.privacy.vectors import FloatVector
from fedrho.server.tasks import load_task
from fedrho.simulations.data.base import DataError
from fedrho.simulations.folder import StudyFolder, check_same, stored_values
from fedrho.simulations.opening import beginning
from fedrho.simulations.results import claim_text
from fedrho.simulations.state import BadState
from fedrho.simulations.study import Study, StudyError, make_study
from fedrho.simulations.virtual import Plan, Simulation
from tests.simulations.toy_study import MeasuredEngine, study_values

WEIGHTS: FloatVector = np.random.default_rng(4).normal(size=650).astype(np.float32)


def saved(path: Path, weights: FloatVector = WEIGHTS) -> Path:
    path.parent.mkdir(exist_ok=True)
    named: dict[str, Any] = {"logits/kernel": weights[:640].reshape(64, 10), "logits/bias": weights[640:]}
    np.savez(path, **named)
    return path


def study_of(folder: Path, **task: object) -> Study:
    values = study_values()
    values["task"] |= {"start": "old/weights.npz", **task}
    return make_study(values, "study.toml", folder)[0]


def statement_of(study: Study) -> str:
    simulation = Simulation(Plan(study.planned, 0), MeasuredEngine(study.task.mechanism.grid), WEIGHTS)
    return claim_text(study, simulation.statement())


def test_it_begins_there_keeps_the_file_and_is_the_same_study_from_its_folder(tmp_path: Path) -> None:
    file = saved(tmp_path / "old" / "weights.npz")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    study = study_of(tmp_path)
    assert beginning(study, FlatModel(lookup("digits-logistic"))).tobytes() == WEIGHTS.tobytes()
    assert f"the run started from the weights of file 'weights.npz' with SHA-256 {digest}" in statement_of(study)
    with StudyFolder(tmp_path / "run", study):
        pass
    file.unlink()
    again, _ = make_study(stored_values(tmp_path / "run"), "study.toml", tmp_path / "run")
    assert beginning(again, FlatModel(lookup("digits-logistic"))).tobytes() == WEIGHTS.tobytes()
    assert (again.text(), statement_of(again)) == (study.text(), statement_of(study))
    assert again.task.file == study.task.file == load_task(tmp_path / "run" / "task.toml").file
    saved(file, WEIGHTS + 1)
    with pytest.raises(ValueError, match=r"holds another study; task\.start differs"):
        check_same(tmp_path / "run", study_of(tmp_path).values())


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "old" / "weights.npz")
    study = study_of(tmp_path, model="digits-mlp")
    wanted = r"^task.start: .*has no weight 'hidden/kernel' of shape \(64, 32\), as model 'digits-mlp' has"
    with pytest.raises(DataError, match=wanted):
        beginning(study, FlatModel(lookup("digits-mlp")))
    with pytest.raises(StudyError, match=re.escape("study.toml: task.start: ")):
        study_of(tmp_path, start="gone.npz")


def test_a_checkpoint_of_a_model_that_has_changed_since_is_refused() -> None:
    study, _ = make_study(study_values(), "study.toml", Path())
    plan, engine = Plan(study.planned, 0), MeasuredEngine(study.task.mechanism.grid)
    before = Simulation(plan, engine, WEIGHTS)
    with pytest.raises(
        BadState, match="holds 650 weights, and the model 'digits-logistic' has 651 here: it was begun with another"
    ):
        Simulation(plan, engine, np.zeros(651, np.float32), before.state())
