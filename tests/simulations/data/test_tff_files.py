"""TensorFlow Federated's files, against small ones of the same tables and messages."""

from __future__ import annotations

import hashlib
import lzma
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrho.models.tokens import lookup
from fedrho.simulations.data import tff_files
from fedrho.simulations.data.base import DataError
from fedrho.simulations.data.download import RemoteFile
from fedrho.simulations.data.pools import Divided
from fedrho.simulations.data.tff_files import parse_example
from tests.simulations.data.opening import digest, opened, rows

# tf.train.Example(a=[0.5, -2.0], label=[300, -1], tokens="sí , no"), as TensorFlow writes it.
WRITTEN_BY_TENSORFLOW = bytes.fromhex(
    "0a460a110a0161120c120a0a080000003f000000c00a190a056c6162656c12101a0e0a0cac02ffffffffffffffffff010a160a06746f6b656e73120c0a0a0a"
    "0873c3ad202c206e6f"
)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(**features: bytes | int | np.ndarray) -> bytes:
    def feature(value: bytes | int | np.ndarray) -> bytes:
        if isinstance(value, bytes):
            return message(1, message(1, value))
        if isinstance(value, int):
            return message(3, message(1, varint(value)))
        return message(2, message(1, value.astype("<f4").tobytes()))

    return message(
        1, b"".join(message(1, message(1, name.encode()) + message(2, feature(value))) for name, value in features.items())
    )


def packed(table: list[tuple[str, str, bytes]], folder: Path) -> bytes:
    """Rows of client, split and example, as TensorFlow Federated packs them."""
    path = folder / "made.sqlite"
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE examples (client_id TEXT, split_name TEXT, serialized_example_proto BLOB)")
        database.execute("CREATE TABLE client_metadata (client_id TEXT, split_name TEXT, num_examples INTEGER)")
        database.executemany("INSERT INTO examples VALUES (?, ?, ?)", table)
        database.execute(
            "INSERT INTO client_metadata SELECT client_id, split_name, count(*) FROM examples GROUP BY client_id, split_name"
        )
        database.commit()
    return lzma.compress(path.read_bytes(), lzma.FORMAT_ALONE)


def put(file: RemoteFile, known_as: str, content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tff").mkdir(exist_ok=True)
    (folder / file.name).write_bytes(content)
    monkeypatch.setenv("FEDRHO_DATA", str(folder))
    monkeypatch.setattr(tff_files, known_as, replace(file, sha256=hashlib.sha256(content).hexdigest()))


def test_an_example_that_tensorflow_wrote_is_read() -> None:
    found = parse_example(WRITTEN_BY_TENSORFLOW)
    assert np.asarray(found["a"]).tolist() == [0.5, -2.0]
    assert np.asarray(found["label"]).tolist() == [300, -1]
    assert found["tokens"] == "sí , no".encode()


@pytest.mark.parametrize("length", range(1, len(WRITTEN_BY_TENSORFLOW)))
def test_an_example_that_ends_early_is_refused(length: int) -> None:
    with pytest.raises((ValueError, KeyError)):
        parse_example(WRITTEN_BY_TENSORFLOW[:length])


PIXELS = np.random.default_rng(0).integers(0, 256, (3, 6, 784))


def emnist_rows() -> list[tuple[str, str, bytes]]:
    return [
        (f"writer-{writer}", split, example(label=10 * writer + number, pixels=1 - PIXELS[writer, number] / 255))
        for split, numbers in (("all_train", (0, 1, 2, 3)), ("all_test", (4, 5)))
        for number in numbers
        for writer in (2, 0, 1)
    ]


def test_emnist_is_its_writers_with_ink_as_255(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tff_files.EMNIST_FILE, "EMNIST_FILE", packed(emnist_rows(), tmp_path), tmp_path, monkeypatch)
    data = opened("emnist")
    assert isinstance(data, Divided)
    assert [data.count(device) for device in range(data.size)] == [4, 4, 4]
    for device in range(3):
        examples = data.examples(device)
        assert examples.labels.tolist() == [10 * device + number for number in range(4)]
        assert np.array_equal(examples.features.reshape(4, 784), PIXELS[device, :4].astype(np.float32) / np.float32(255))
    assert len(data.held_out) == 6
    assert not set(rows(data.held_out)) & {row for device in range(3) for row in rows(data.examples(device))}
    assert opened("emnist", split="dirichlet", devices=12).size == 12


def sentences() -> list[tuple[str, str, bytes]]:
    texts = {"a": ["the spec is here .", "edit : thanks"], "b": ["thanks"], "c": ["css3 does finally"], "d": ["<URL>"]}
    split = {"a": "train", "b": "train", "c": "heldout", "d": "heldout"}
    return [(user, split[user], example(tokens=text.encode(), score=3)) for user, said in texts.items() for text in said]


def test_stack_overflow_is_next_words_of_its_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tff_files.STACK_FILE, "STACK_FILE", packed(sentences(), tmp_path), tmp_path, monkeypatch)
    data = opened("stackoverflow")
    assert (data.size, data.count(0), data.count(1), len(data.held_out)) == (2, 6, 1, 4)
    spec = lookup("hashed-2048").encode("the spec is here edit thanks").tolist()
    examples = data.examples(0)
    assert examples.labels.tolist() == spec
    assert examples.features[3].tolist() == [0] * 5 + spec[:3]
    assert examples.features[4].tolist() == [0] * 8
    assert digest(opened("stackoverflow").examples(0)) == digest(examples)
    assert opened("stackoverflow", sentences=1).count(0) == 4


def test_a_file_that_cannot_be_unpacked_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tff_files.STACK_FILE, "STACK_FILE", packed(sentences(), tmp_path)[:-20], tmp_path, monkeypatch)
    with pytest.raises(DataError, match=r"stackoverflow\.sqlite\.lzma: cannot be unpacked") as refused:
        opened("stackoverflow")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "tff" / "stackoverflow.sqlite").exists()


@pytest.mark.parametrize(
    ("name", "file", "known_as"),
    [("emnist", tff_files.EMNIST_FILE, "EMNIST_FILE"), ("stackoverflow", tff_files.STACK_FILE, "STACK_FILE")],
)
def test_a_file_that_is_no_database_is_one_line(
    name: str, file: RemoteFile, known_as: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(file, known_as, lzma.compress(b"no database" * 100, lzma.FORMAT_ALONE), tmp_path, monkeypatch)
    with pytest.raises(DataError, match="not the SQLite file that was expected") as refused:
        opened(name)
    assert "\n" not in str(refused.value)
