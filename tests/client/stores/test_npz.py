"""A user's own .npz file: examples, or one line that names the file and says what is wrong with it."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrho.client.stores.checked import DataFileError
from fedrho.client.stores.npz import NpzExamples, npz_examples
from fedrho.models.zoo import lookup
from tests.client.fleet import plan

SPEC = lookup("digits-logistic")
X, Y = np.linspace(0, 1, 6 * 64).reshape(6, 64), np.array([0, 9, 1, 8, 2, 7])


def packed(save: Callable[..., Any] = np.savez, **arrays: Any) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def member(name: str, data: bytes) -> bytes:
    """A good archive whose array `name` has other bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed(x=X, y=Y))) as good, zipfile.ZipFile(file, "w") as archive:
        for old in good.namelist():
            archive.writestr(old, data if old == name else good.read(old))
    return file.getvalue()


def header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def loads(path: Path, data: bytes) -> NpzExamples:
    path.write_bytes(data)
    return npz_examples(path, SPEC)


def tried(path: Path, data: bytes) -> str:
    """What a user sees."""
    try:
        return f"{len(loads(path, data).examples())} examples"
    except DataFileError as error:
        return str(error)


def altered(array: np.ndarray, place: Any, value: float) -> np.ndarray:
    changed = array.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kinds", [("float64", "int64"), ("float32", "int32"), ("uint8", "uint8"), (">f4", ">i2"), ("f2", "i1")])
def test_good_file_gives_its_examples(tmp_path: Path, save: Callable[..., Any], kinds: tuple[str, str]) -> None:
    x, y = X.astype(kinds[0]), Y.astype(kinds[1])
    examples = loads(tmp_path / "mine.npz", packed(save, x=x, y=y, other=np.zeros(3)))
    (batch,) = examples.batches(plan(batch_size=100))
    order = np.argsort([Y.tolist().index(label) for label in batch.labels.tolist()])
    assert batch.features[order].tolist() == x.astype(np.float32).tolist()
    assert sorted(batch.labels.tolist()) == sorted(Y.tolist())


BAD: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", ""),
    "text": (b"x,y\n1,2\n", "not an .npz file"),
    "zip magic alone": (b"PK\x03\x04", "not an .npz file"),
    "pickle": (b"\x80\x04K\x01.", "not an .npz file"),
    "pickled objects inside": (packed(x=np.array([{"a": 1}], dtype=object), y=Y), "x must be numbers"),
    "pickled objects of the right shape": (packed(x=X.astype(object), y=Y), "x must be numbers"),
    "array that is text": (member("x.npy", b"no array"), "not an .npz file"),
    "array that is empty": (member("x.npy", b""), "not an .npz file"),
    "array with a header of a later version": (member("x.npy", b"\x93NUMPY\x02\x00" + b"\x00" * 100), "not an .npz file"),
    "bomb of an array": (member("x.npy", header((2**30, 64))), "x unpacks to more than 1024 MiB"),
    "bomb of labels": (member("y.npy", header((2**40,), "<i8")), "y unpacks to more than 1024 MiB"),
    "array shorter than its header": (member("x.npy", header((1000, 64)) + bytes(999)), "not an .npz file"),
    "array cut short": (member("x.npy", b"\x93NUMPY\x01\x00\x76\x00{'descr'"), "not an .npz file"),
    "no x": (packed(y=Y), "needs two arrays"),
    "no y": (packed(x=X), "needs two arrays"),
    "no arrays": (packed(), "needs two arrays"),
    "x of other inputs": (packed(x=X[:, :63], y=Y), "x must be numbers of shape"),
    "x of images": (packed(x=X.reshape(6, 8, 8), y=Y), "x must be numbers of shape"),
    "x a number": (packed(x=np.float64(1.0), y=Y), "x must be numbers of shape"),
    "x of text": (packed(x=X.astype(str), y=Y), "x must be numbers of shape"),
    "x complex": (packed(x=X.astype(complex), y=Y), "x must be numbers of shape"),
    "x with NaN": (packed(x=altered(X, (2, 3), np.nan), y=Y), "NaN or infinite"),
    "x infinite": (packed(x=altered(X, (2, 3), np.inf), y=Y), "NaN or infinite"),
    "x beyond float32": (packed(x=altered(X, (2, 3), 1e300), y=Y), "NaN or infinite"),
    "y of floats": (packed(x=X, y=Y.astype(float)), "y must be integers"),
    "y one-hot": (packed(x=X, y=np.eye(10, dtype=int)[Y]), "y must be integers"),
    "y a number": (packed(x=X, y=np.int64(1)), "y must be integers"),
    "y of truth values": (packed(x=X, y=Y > 5), "y must be integers"),
    "y below the classes": (packed(x=X, y=altered(Y, 0, -1)), "between 0 and 9"),
    "y above the classes": (packed(x=X, y=altered(Y, 0, 10)), "between 0 and 9"),
    "y that wraps in int32": (packed(x=X, y=Y + 2**32), "between 0 and 9"),
    "more x than y": (packed(x=X, y=Y[:5]), "not examples of one device"),
    "no examples": (packed(x=X[:0], y=Y[:0]), "not examples of one device"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_one_line_with_its_name_and_reason(tmp_path: Path, case: str) -> None:
    data, reason = BAD[case]
    with pytest.raises(DataFileError) as refused:
        loads(tmp_path / "mine.npz", data)
    assert str(refused.value).startswith(f"{tmp_path / 'mine.npz'}: ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_single_array_is_not_a_data_file(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", X)
    with pytest.raises(DataFileError, match=r"mine\.npy: not an \.npz file"):
        npz_examples(tmp_path / "mine.npy", SPEC)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"gone\.npz: no such file"):
        npz_examples(tmp_path / "gone.npz", SPEC)
    with pytest.raises(DataFileError, match="not a file"):
        npz_examples(tmp_path, SPEC)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_file_is_examples_or_a_data_file_error(tmp_path: Path, save: Callable[..., Any], data: st.DataObject) -> None:
    whole = bytearray(packed(save, x=X, y=Y))
    if data.draw(st.booleans()):
        del whole[data.draw(st.integers(0, len(whole) - 1)) :]
    for place in data.draw(st.lists(st.integers(0, max(len(whole) - 1, 0)), max_size=2)):
        whole[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
    assert tried(tmp_path / "mine.npz", bytes(whole)).startswith(("6 examples", f"{tmp_path / 'mine.npz'}: "))


def test_array_without_a_header_is_not_unpacked(tmp_path: Path) -> None:
    """256 MiB of zeros in 256 KiB: looked at, and left."""
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        for _ in range(64):
            file.write(bytes(2**22))
    tracemalloc.start()
    try:
        with pytest.raises(DataFileError, match=r"not an \.npz file"):
            npz_examples(tmp_path / "bomb.npz", SPEC)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
