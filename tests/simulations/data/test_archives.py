"""Data sets that are fetched at run time, against small files of the same format, made here byte by byte."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrho.simulations.data import archives
from fedrho.simulations.data.base import DataError
from fedrho.simulations.data.download import RemoteFile
from fedrho.simulations.data.windows import Windows
from tests.simulations.data.opening import opened

RNG = np.random.default_rng(0)


def put(folder: Path, file: RemoteFile, content: bytes, monkeypatch: pytest.MonkeyPatch, known_as: str) -> None:
    """In the data folder, and as what the catalogue asks for."""
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    monkeypatch.setenv("FEDRHO_DATA", str(folder))
    monkeypatch.setattr(archives, known_as, replace(file, sha256=hashlib.sha256(content).hexdigest()))


def python2_string(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value


def python2_batch(rows: np.ndarray, labels: list[int]) -> bytes:
    """As CIFAR's authors pickled it: protocol 2 of Python 2, whose strings are bytes."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + python2_string(b"b") + b"tR(K\x01"
        b"J" + struct.pack("<i", len(rows)) + b"J" + struct.pack("<i", 3072) + b"\x86"
        b"cnumpy\ndtype\n("
        + python2_string(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + python2_string(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + python2_string(rows.tobytes())
        + b"tb"
    )
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + python2_string(b"data") + array + python2_string(b"labels") + listed + b"u."


def cifar(batches: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        for name, content in batches.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return raw.getvalue()


NAMES = (*archives.CIFAR_BATCHES, "test_batch")
ROWS = {name: RNG.integers(0, 256, (20, 3072), dtype=np.uint8) for name in NAMES}
LABELS = {name: RNG.integers(0, 10, 20).tolist() for name in NAMES}


def test_cifar_is_read_as_its_authors_packed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = cifar({name: python2_batch(ROWS[name], LABELS[name]) for name in NAMES})
    put(tmp_path, archives.CIFAR_FILE, content, monkeypatch, "CIFAR_FILE")
    data = opened("cifar10", devices=7)
    assert sum(data.count(device) for device in range(7)) == 100
    assert data.held_out.labels.tolist() == LABELS["test_batch"]
    assert data.held_out.features.shape == (20, 32, 32, 3)
    red = ROWS["test_batch"][4][:1024].reshape(32, 32) / np.float32(255)
    assert np.array_equal(data.held_out.features[4, :, :, 0], red.astype(np.float32))


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = b"\x80\x02cos\nsystem\n" + python2_string(b"touch " + str(tmp_path / "ran").encode()) + b"\x85R."
    put(tmp_path, archives.CIFAR_FILE, cifar(dict.fromkeys(NAMES, evil)), monkeypatch, "CIFAR_FILE")
    with pytest.raises(DataError, match=r"holds os\.system, which is no array"):
        opened("cifar10")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [b"no archive", cifar({}), cifar(dict.fromkeys(NAMES, b"no pickle"))], ids=["no archive", "empty", "no pickle"]
)
def test_a_cifar_that_is_none_is_one_line(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, archives.CIFAR_FILE, content, monkeypatch, "CIFAR_FILE")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz: ") as refused:
        opened("cifar10")
    assert "\n" not in str(refused.value)


def movielens(ratings: bytes) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("ml-1m/ratings.dat", ratings)
    return raw.getvalue()


def test_movielens_is_what_a_user_rates_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ratings = "".join(
        f"{user}::{(37 * user + rated) % 3952 + 1}::5::{1000 - rated}\n" for user in range(1, 21) for rated in range(12)
    )
    put(tmp_path, archives.MOVIELENS_FILE, movielens(ratings.encode()), monkeypatch, "MOVIELENS_FILE")
    data = opened("movielens")
    assert isinstance(data, Windows)
    assert (data.size, len(data.test_names), len(data.held_out)) == (18, 2, 24)
    assert [data.count(device) for device in range(18)] == [12] * 18
    user = int(data.names[5])
    watched = [(37 * user + rated) % 3952 + 2 for rated in reversed(range(12))]
    examples = data.examples(5)
    assert examples.labels.tolist() == watched
    assert examples.features[10].tolist() == watched[2:10]
    assert examples.features[1].tolist() == [0] * 7 + watched[:1]


@pytest.mark.parametrize(
    "content",
    [b"no archive", movielens(b""), movielens(b"1::4000::5::1\n"), movielens(b"1::x::5::1\n")],
    ids=["no archive", "empty", "number", "word"],
)
def test_a_movielens_that_is_none_is_one_line(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, archives.MOVIELENS_FILE, content, monkeypatch, "MOVIELENS_FILE")
    with pytest.raises(DataError, match=r"ml-1m\.zip: ") as refused:
        opened("movielens")
    assert "\n" not in str(refused.value)
