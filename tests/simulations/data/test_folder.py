"""A folder of one's own: what stands in its files is what its devices hold, and what is wrong is named."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from fedrho.simulations.data.base import DataError, DataSource
from fedrho.simulations.data.catalogue import check_data
from fedrho.simulations.data.folder import FolderDevices
from tests.simulations.data.opening import digest, opened

FEATURES = np.random.default_rng(0).random((5, 3)).astype(np.float32)
LABELS = np.array([0, 1, 1, 0, 1])
SHAPE = {"shape": [3], "classes": 2}


def npz(path: Path, features: np.ndarray = FEATURES, labels: np.ndarray = LABELS) -> None:
    np.savez(path, x=features, y=labels)


def folder(path: Path, **options: object) -> FolderDevices:
    data = opened("folder", path=str(path), **options)
    assert isinstance(data, FolderDevices)
    return data


def test_examples_are_those_of_the_file_in_its_order(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz")
    npz(tmp_path / "test.npz", FEATURES[:2], LABELS[:2])
    data = folder(tmp_path, **SHAPE)
    assert (data.size, data.names, data.count(0)) == (1, ("a.npz",), 5)
    assert np.array_equal(data.examples(0).features, FEATURES)
    assert data.examples(0).labels.tolist() == LABELS.tolist()
    assert np.array_equal(data.held_out.features, FEATURES[:2])


def test_every_kind_of_file_may_be_a_device(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz")
    with (tmp_path / "b.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["x", "y", "z", "label"], *[[*row, label] for row, label in zip(FEATURES, LABELS, strict=True)]]
        )
    lines = [json.dumps({"features": row, "label": label}) for row, label in zip(FEATURES.tolist(), LABELS.tolist(), strict=True)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    table = {"x": FEATURES[:, 0], "y": FEATURES[:, 1], "z": FEATURES[:, 2], "label": LABELS}
    parquet.write_table(pyarrow.table(table), tmp_path / "d.parquet")
    npz(tmp_path / "test.npz")
    data = folder(tmp_path, **SHAPE)
    assert data.size == 4
    assert len({digest(data.examples(device)) for device in range(4)}) == 1


def test_folders_of_images_are_devices(tmp_path: Path) -> None:
    for device in ("ana", "ben", "test"):
        for label in (0, 7):
            (tmp_path / device / str(label)).mkdir(parents=True)
            Image.new("L", (8, 8), color=16 * label).save(tmp_path / device / str(label) / "one.png")
    data = folder(tmp_path, model="digits-mlp")
    assert (data.size, data.names, data.count(1)) == (2, ("ana", "ben"), 2)
    assert data.examples(0).labels.tolist() == [0, 7]
    assert data.examples(0).features[1].tolist() == pytest.approx([112 / 255] * 64)


def test_text_becomes_ids_by_a_public_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("sí\nno\n")
    (tmp_path / "devices").mkdir()
    for name in ("a", "test"):
        (tmp_path / "devices" / f"{name}.jsonl").write_text('{"said": "No, sí, quizá", "label": 1}')
    options = {"shape": [4], "classes": 2, "vocabulary_size": 10, "text": "said", "vocabulary": str(tmp_path / "words")}
    assert folder(tmp_path / "devices", **options).examples(0).features.tolist() == [[3, 2, 1, 0]]


def test_a_tenth_is_held_out_by_a_hash_of_names_whatever_the_files_hold(tmp_path: Path) -> None:
    for number in range(40):
        npz(tmp_path / f"{number:02d}.npz", labels=np.full(5, number % 2))
    data = folder(tmp_path, **SHAPE)
    assert (data.size, len(data.held_out)) == (36, 20)
    for number in range(40):
        npz(tmp_path / f"{number:02d}.npz", labels=np.full(5, 1 - number % 2))
    assert folder(tmp_path, **SHAPE).names == data.names
    assert folder(tmp_path, held_out=0.5, **SHAPE).size == 20


def test_opening_reads_no_device(tmp_path: Path) -> None:
    for name in ("a", "b", "test"):
        (tmp_path / f"{name}.npz").write_bytes(b"not read yet")
    data = folder(tmp_path, **SHAPE)
    with pytest.raises(DataError, match=r"a\.npz: not an \.npz file"):
        data.examples(0)


def test_what_is_wrong_with_a_file_is_named_and_no_example_shown(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", labels=np.full(5, 2))
    npz(tmp_path / "test.npz", FEATURES[:, :2])
    data = folder(tmp_path, **SHAPE)
    with pytest.raises(DataError, match=r"a\.npz: y must lie between 0 and 1"):
        data.count(0)
    with pytest.raises(DataError, match=r"test\.npz: x must be numbers of shape \('examples', 3\)"):
        data.held_out  # noqa: B018


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), "holds 0 files and folders; needs two at least"),
        (("a.npz",), "holds 1 files and folders; needs two at least"),
        (("test.npz",), "holds 1 files and folders; needs two at least"),
        (("a.npz", "notes.md"), r"data\.path: .*notes\.md: is no device; allowed: files \.npz"),
    ],
)
def test_a_folder_that_is_no_population_is_one_line(names: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    for name in names:
        npz(tmp_path / name) if name.endswith(".npz") else (tmp_path / name).write_text("x")
    check_data(DataSource.of({"name": "folder", "path": str(tmp_path), **SHAPE}))
    with pytest.raises(DataError, match=expected) as refused:
        folder(tmp_path, **SHAPE)
    assert "\n" not in str(refused.value)
