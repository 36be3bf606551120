"""Weights in a file: read back to the bit, and refused in one line where they are not those of the model."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedrho.export import write_model
from fedrho.models.flat import FlatModel
from fedrho.models.weights_file import READERS, WeightsFileError, named_weights, read_weights
from fedrho.models.zoo import lookup

STATED = {"model": "digits-mlp", "rho": 1.0}


@pytest.fixture(scope="module")
def mlp() -> FlatModel:
    return FlatModel(lookup("digits-mlp"), seed=5)


@pytest.mark.parametrize("suffix", READERS)
def test_what_was_written_is_read_to_the_bit_with_its_statement(mlp: FlatModel, suffix: str, tmp_path: Path) -> None:
    write_model(tmp_path / f"m{suffix}", mlp, STATED)
    found = read_weights(tmp_path / f"m{suffix}")
    assert found.statement == STATED
    assert np.array_equal(found.flat(mlp), mlp.weights())


@pytest.mark.parametrize("suffix", READERS)
def test_another_layout_is_refused_by_the_first_weight_that_differs(mlp: FlatModel, suffix: str, tmp_path: Path) -> None:
    write_model(tmp_path / f"m{suffix}", mlp, STATED)
    found = read_weights(tmp_path / f"m{suffix}")
    with pytest.raises(WeightsFileError, match=r"weight 'hidden/kernel' has shape \(64, 32\).*'digits-wide-mlp' has \(64, 128\)"):
        found.flat(FlatModel(lookup("digits-wide-mlp")))
    with pytest.raises(WeightsFileError, match=r"has no weight 'embedding/embeddings' of shape \(126, 16\)"):
        found.flat(FlatModel(lookup("characters")))


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("left", [0, 10, 0.5, -3])
def test_a_file_that_is_not_whole_is_refused(mlp: FlatModel, suffix: str, left: float, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    write_model(path, mlp, STATED)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * left) if isinstance(left, float) else left])
    with pytest.raises(WeightsFileError, match=rf"m\{suffix}: ") as refused:
        read_weights(path)
    assert "\n" not in str(refused.value)


BAD: dict[str, tuple[Callable[[dict[str, np.ndarray]], object], str]] = {
    "not finite": (lambda named: named["logits/bias"].__setitem__(3, np.nan), "'logits/bias' has values that are not finite"),
    "double": (lambda named: named.update({"logits/bias": np.zeros(10)}), "'logits/bias' is float64"),
    "one more": (lambda named: named.update({"more": np.zeros(1, np.float32)}), "has a weight 'more', which model"),
    "one less": (lambda named: named.pop("logits/bias"), "has no weight 'logits/bias'"),
    "objects": (lambda named: named.update({"logits/bias": np.array([{}])}), "is not a whole .npz file"),
    "no statement": (lambda named: named.update({"privacy_statement": np.array("[1]")}), "is not a whole .npz file"),
}


@pytest.mark.parametrize("case", BAD)
def test_weights_that_are_none_are_refused_by_name(mlp: FlatModel, case: str, tmp_path: Path) -> None:
    named = {name: np.array(part) for name, part in named_weights(mlp).items()}
    spoil, reason = BAD[case]
    spoil(named)
    np.savez(tmp_path / "m.npz", **named)  # type: ignore[arg-type]
    with pytest.raises(WeightsFileError, match=reason):
        read_weights(tmp_path / "m.npz").flat(mlp)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    for name, reason in (
        ("a.keras", "does not load it in safe mode"),
        ("a.h5", "allowed: a name that ends in"),
        ("b.npz", "cannot be read"),
    ):
        with pytest.raises(WeightsFileError, match=reason):
            read_weights(tmp_path / name)


def test_weights_of_cells_are_found_though_keras_names_them_otherwise_in_an_archive(tmp_path: Path) -> None:
    """Two layers of one kind, whose cells have the same name once they are loaded."""
    model = FlatModel(lookup("characters-lstm"), seed=1)
    write_model(tmp_path / "m.keras", model, STATED)
    assert np.array_equal(read_weights(tmp_path / "m.keras").flat(model), model.weights())
