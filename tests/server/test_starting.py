"""A run that begins with weights of a file: only those, only of this model, and its claim says so."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrho.export import write_export
from fedrho.models import base
from fedrho.models.base import lookup
from fedrho.operator_client import Exported
from fedrho.privacy.vectors import FloatVector
from fedrho.server.app import check_size, initial_weights
from fedrho.server.ledger import charge, statement
from fedrho.server.release import StoreConflict
from fedrho.server.starting import Start, starting_assumption
from fedrho.server.tasks import Task, TaskFile, TaskFileError, build_task, load_task

EXAMPLE = (Path(__file__).parents[2] / "examples" / "digits.toml").read_text()
WEIGHTS: FloatVector = np.random.default_rng(4).normal(size=650).astype(np.float32)
KERNEL, BIAS = WEIGHTS[:640].reshape(64, 10), WEIGHTS[640:]
NAMES = ("logits/kernel", "logits/bias")


def task_from(folder: Path, start: str, model: str = "digits-logistic") -> Task:
    path = folder / "task.toml"
    path.write_text(EXAMPLE.replace('model = "digits-logistic"', f'model = "{model}"\nstart = {json.dumps(start)}'))
    return load_task(path)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".keras"])
def test_a_run_begins_with_what_was_exported_and_its_claim_names_the_file(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "old").mkdir()
    file = tmp_path / "old" / f"trained{suffix}"
    write_export(file, Exported(WEIGHTS, {"model": "digits-logistic", "rho": 1.0}))
    task = task_from(tmp_path, f"old/trained{suffix}")
    assert task.file.start == f"trained{suffix} sha256:{digest(file)}"
    assert initial_weights(task).tobytes() == WEIGHTS.tobytes()
    assumed = " ".join(statement(task, charge(task, 1)).assumptions)
    assert f"the run started from the weights of file 'trained{suffix}' with SHA-256 {digest(file)}" in assumed
    assert "a privacy statement that came with the file is a separate one" in assumed
    assert "neither the starting weights nor" not in assumed  # these may well be of these devices' data
    assert "what those weights tell of these devices is not included" in assumed
    assert statement(task, charge(task, 1)).rho == statement(replace(task, start=None), charge(task, 1)).rho


def test_a_store_knows_the_task_again_by_what_is_written_of_it(tmp_path: Path) -> None:
    write_export(tmp_path / "w.npz", Exported(WEIGHTS, {"model": "digits-logistic"}))
    task = task_from(tmp_path, "w.npz")
    stored = build_task(TaskFile.model_validate_json(task.file.model_dump_json()))
    assert stored.file == task.file
    assert statement(stored, charge(stored, 2)) == statement(task, charge(task, 2))
    (tmp_path / "plain.toml").write_text(EXAMPLE)
    assert "start" not in load_task(tmp_path / "plain.toml").file.model_dump()
    pinned = str(task.file.start)
    (tmp_path / "w.npz").unlink()
    assert task_from(tmp_path, pinned).file == task.file  # its run may have begun long ago
    with pytest.raises(TaskFileError, match=r"^task digits: start: .*w\.npz: cannot be read"):
        initial_weights(task_from(tmp_path, pinned))


def test_about_labels_it_says_the_same(tmp_path: Path) -> None:
    write_export(tmp_path / "w.npz", Exported(WEIGHTS, {"model": "digits-logistic"}))
    (tmp_path / "task.toml").write_text(f'start = "w.npz"\n{EXAMPLE}\n[labels]\nepsilon = 1.0\n')
    said = load_task(tmp_path / "task.toml").label_statement()
    assert said is not None
    assert any("the run started from the weights of file 'w.npz'" in one for one in said.assumptions)


def test_what_is_no_file_to_start_from_is_refused_when_the_task_is_read(tmp_path: Path) -> None:
    (tmp_path / "w.npz").write_bytes(b"x")
    (tmp_path / "folder.npz").mkdir()
    for start, expected in (
        ("none.npz", "start: .*none.npz: cannot be read"),
        ("folder.npz", "start: .*folder.npz: cannot be read"),
        ("task.toml", r"start: .*allowed: a file that `fedrho export` wrote, .keras, .npz, .safetensors"),
        (f"w.npz sha256:{'0' * 64}", "start: .*its SHA-256 is 2d711642.*, not 0{64}: it is another file by now"),
        ("", "start: .*allowed: a file that `fedrho export` wrote"),
        ("a\0b.npz", "start: "),
    ):
        with pytest.raises(TaskFileError, match=expected) as refused:
            task_from(tmp_path, start)
        assert "\n" not in str(refused.value)


def saved(path: Path, **changes: object) -> Path:
    np.savez(path, **{**dict(zip(NAMES, (KERNEL, BIAS), strict=True)), **changes})  # type: ignore[arg-type]
    return path


def test_weights_that_are_not_those_of_the_model_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = saved(tmp_path / "w.npz").read_bytes()
    cases: list[tuple[dict[str, object], str]] = [
        (
            {"logits/kernel": KERNEL.T},
            r"weight 'logits/kernel' has shape \(10, 64\); that of model 'digits-logistic' has \(64, 10\)",
        ),
        ({"logits/bias": BIAS.astype(np.float64)}, "weight 'logits/bias' is float64"),
        ({"logits/bias": np.full(10, np.nan, np.float32)}, "weight 'logits/bias' has values that are not finite"),
        ({"logits/kernel": np.full((64, 10), np.inf, np.float32)}, "weight 'logits/kernel' has values that are not finite"),
        ({"hidden/kernel": KERNEL}, "has a weight 'hidden/kernel', which model 'digits-logistic' has not"),
    ]
    for changes, expected in cases:
        saved(tmp_path / "w.npz", **changes)
        with pytest.raises(TaskFileError, match=f"^task digits: start: .*w.npz: {expected}"):
            initial_weights(task_from(tmp_path, "w.npz"))
    (tmp_path / "w.npz").write_bytes(whole)
    with pytest.raises(TaskFileError, match=r"has no weight 'hidden/kernel' of shape \(64, 32\).*begin with 'logits/kernel'"):
        initial_weights(task_from(tmp_path, "w.npz", model="digits-mlp"))
    (tmp_path / "w.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TaskFileError, match=r"is not a whole \.npz file"):
        initial_weights(task_from(tmp_path, "w.npz"))
    task = task_from(tmp_path, "w.npz")
    (tmp_path / "w.npz").write_bytes(whole)
    with pytest.raises(TaskFileError, match="was changed since the task was read"):
        initial_weights(task)


def test_a_store_whose_model_has_changed_since_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "task.toml").write_text(EXAMPLE)
    file = load_task(tmp_path / "task.toml").file
    grown = replace(lookup("digits-logistic"), name="test-grown", parameters=660)
    monkeypatch.setitem(base._REGISTRY, "test-grown", grown)
    monkeypatch.setitem(base._REGISTRY, "test-mlp", replace(lookup("digits-mlp"), name="test-mlp", parameters=2410))
    check_size(file, 650)
    with pytest.raises(StoreConflict, match="'test-mlp\\+tanh' has 2410 here"):
        check_size(file.model_copy(update={"model": "test-mlp+tanh"}), 650)
    check_size(file.model_copy(update={"model": "keras:0123456789abcdef"}), 650)  # what it is, is in its name
    with pytest.raises(StoreConflict, match=r"holds 650 weights, and model 'test-grown' has 660 here.*another version"):
        check_size(file.model_copy(update={"model": "test-grown"}), 650)


def test_a_file_that_is_replaced_while_it_is_read_is_never_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path / "w.npz")
    task = task_from(tmp_path, "w.npz")

    def matched_then_replaced(start: Start, content: bytes) -> bool:
        saved(file, **{"logits/bias": np.full(10, 7, np.float32)})
        return hashlib.sha256(content).hexdigest() == start.sha256

    monkeypatch.setattr(Start, "matches", matched_then_replaced)
    assert initial_weights(task).tobytes() == WEIGHTS.tobytes()


def test_a_claim_leaves_out_what_the_weights_of_a_saved_model_tell() -> None:
    plain = tomllib.loads(EXAMPLE)
    model = "keras:0123456789abcdef"
    task = build_task(TaskFile.model_validate({**plain, "model": model, "labels": {"epsilon": 1.0, "prior": [0.1] * 10}}))
    label_statement = task.label_statement()
    assert label_statement is not None
    for assumed in (statement(task, charge(task, 1)).assumptions, label_statement.assumptions):
        said = next(text for text in assumed if text.startswith("the run started from all weights of the saved model"))
        assert "frozen ones too, whose file's SHA-256 begins with 0123456789abcdef" in said
        assert "what those weights tell of these devices is not included" in said
        assert not any("neither the starting weights" in text for text in assumed)
    both = TaskFile.model_validate({**plain, "model": model, "start": f"w.npz sha256:{'0' * 64}"})
    assert "the weights of file 'w.npz'" in starting_assumption(both)
    assert "and from all weights of the saved model" in starting_assumption(both)
