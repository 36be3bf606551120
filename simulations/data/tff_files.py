"""The federated data sets that TensorFlow Federated publishes, read without it: EMNIST by writer, Stack Overflow by user.

Each is an SQLite file, packed with LZMA, of two tables, `client_metadata` (client_id, split_name, num_examples) and `examples`
(client_id, split_name, serialized_example_proto); the last is a tf.train.Example, a few nested fields of protocol buffers.
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.models.tokens import lookup
from fedrho.simulations.data.base import DataError, Examples, FederatedDataset
from fedrho.simulations.data.cache import Arrays, Cache, writable
from fedrho.simulations.data.download import RemoteFile, locked
from fedrho.simulations.data.entry import Entry, Licence, Load
from fedrho.simulations.data.options import Option, Options
from fedrho.simulations.data.pools import SPLIT_OPTIONS, Divided, Pool, check_device, split_of
from fedrho.simulations.data.streams import FIRST_TARGET

VERSION = 1
URL = "https://storage.googleapis.com/tff-datasets-public"
CHUNK = 2**22

# -- the files ------------------------------------------------------------------------------------------------------------------


def unpacked(cache: Cache, file: RemoteFile) -> Path:
    """The SQLite file beside the packed one; unpacked by one process, once, and renamed when it is whole. Raises DataError."""
    target = cache.folder / file.name.removesuffix(".lzma")
    if target.exists():
        return target
    packed = cache.path(file)
    if not writable(target.parent):
        raise DataError(f"{target}: no such file, and {target.parent} cannot be written to; unpack {packed.name} there")
    part = target.with_name(f"{target.name}.part")
    try:
        with locked(target.with_name(f"{target.name}.lock")):
            if not target.exists():
                with lzma.open(packed) as source, part.open("wb") as out:
                    shutil.copyfileobj(source, out, CHUNK)
                part.replace(target)
    except (lzma.LZMAError, EOFError) as error:
        raise DataError(f"{packed}: cannot be unpacked: {error}") from error
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target


def _clients(database: sqlite3.Connection, split: str) -> list[tuple[str, int]]:
    """Of a split, by name: who, and how many examples."""
    query = "SELECT client_id, num_examples FROM client_metadata WHERE split_name = ? ORDER BY client_id"
    return [(str(name), int(count)) for name, count in database.execute(query, (split,))]


def _examples(database: sqlite3.Connection, split: str, client: str, most: int = -1) -> Iterator[bytes]:
    query = "SELECT serialized_example_proto FROM examples WHERE split_name = ? AND client_id = ? ORDER BY rowid LIMIT ?"
    for (blob,) in database.execute(query, (split, client, most)):
        yield blob


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


# -- tf.train.Example -----------------------------------------------------------------------------------------------------------

Field = tuple[int, int, bytes | int]
BYTES, FLOATS, INTEGERS = 1, 2, 3


def parse_example(blob: bytes) -> dict[str, bytes | NDArray[Any]]:
    """Features by name: float32 or int64 arrays, or the first of a list of bytes. Raises ValueError."""
    found = {}
    for _, _, features in _fields(blob):
        for _, _, entry in _fields(_inside(features)):
            parts = {number: _inside(value) for number, _, value in _fields(_inside(entry))}
            ((kind, _, values),) = _fields(parts[2])
            found[parts[1].decode()] = _values(kind, _inside(values))
    return found


def _values(kind: int, raw: bytes) -> bytes | NDArray[Any]:
    values = [(wire, value) for _, wire, value in _fields(raw)]
    if kind == BYTES:
        return _inside(values[0][1])
    if kind == FLOATS:
        return np.frombuffer(b"".join(_inside(value) for _, value in values), "<f4")
    numbers: list[int] = []
    for wire, value in values:
        numbers.extend([int(value)] if wire == 0 else _varints(_inside(value)))
    return np.array(numbers, dtype=np.uint64).astype(np.int64)


def _fields(raw: bytes) -> list[Field]:
    """Number, wire type and value of every field of a message."""
    found: list[Field] = []
    place = 0
    while place < len(raw):
        key, place = _varint(raw, place)
        wire = key & 7
        value: bytes | int
        if wire == 0:
            value, place = _varint(raw, place)
        elif wire in (2, 5):
            size, place = _varint(raw, place) if wire == 2 else (4, place)
            value, place = raw[place : place + size], place + size
            if len(value) != size:
                raise ValueError("an example ends early")
        else:
            raise ValueError("an example is no tf.train.Example")
        found.append((key >> 3, wire, value))
    return found


def _varint(raw: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(raw) or shift > 63:
            raise ValueError("an example ends early")
        byte = raw[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _varints(raw: bytes) -> list[int]:
    found, place = [], 0
    while place < len(raw):
        value, place = _varint(raw, place)
        found.append(value)
    return found


def _inside(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError("an example is no tf.train.Example")
    return value


# -- EMNIST ---------------------------------------------------------------------------------------------------------------------

EMNIST_FILE = RemoteFile(
    "tff/emnist_all.sqlite.lzma",
    "c3aaf91b4cf4e69d53d81627ad119eccdc878ff906f68e66063ff10f67faad48",
    170_507_172,
    (f"{URL}/emnist_all.sqlite.lzma",),
)
EMNIST_SPLITS = {"all": ("all_train", "all_test"), "digits": ("digits_only_train", "digits_only_test")}
SHAPE = (28, 28, 1)


def _emnist(path: Path, part: str) -> Arrays:
    """Ink is 255, as in MNIST; in the file it is 0."""
    found: dict[str, NDArray[Any]] = {}
    with closing(_opened(path)) as database:
        for prefix, split in zip(("", "test_"), EMNIST_SPLITS[part], strict=True):
            clients = _clients(database, split)
            total = sum(count for _, count in clients)
            images, labels = np.empty((total, 784), dtype=np.uint8), np.empty(total, dtype=np.int32)
            place = 0
            for name, _ in clients:
                for blob in _examples(database, split, name):
                    example = parse_example(blob)
                    images[place] = np.rint(255 * (1 - np.asarray(example["pixels"])))
                    labels[place], place = np.asarray(example["label"])[0], place + 1
            owner = np.repeat(np.arange(len(clients)), [count for _, count in clients])
            found |= {f"{prefix}images": images, f"{prefix}labels": labels, f"{prefix}owner": owner}
    return found


def _configure_emnist(options: Options) -> Load:
    part = options.choice("characters", "all", tuple(EMNIST_SPLITS))
    kind = options.choice("split", "writer", ("writer", "dirichlet", "shards", "drawn"))
    split = None if kind == "writer" else split_of(options, kind)

    def load(cache: Cache) -> FederatedDataset:
        def decode(paths: Mapping[str, Path]) -> Arrays:
            try:
                return _emnist(unpacked(cache, EMNIST_FILE), part)
            except sqlite3.Error as error:
                raise ValueError(f"not the SQLite file that was expected: {error}") from error

        arrays = cache.arrays(f"emnist-{part}", VERSION, (EMNIST_FILE,), decode)
        train, test = (
            Pool(arrays[f"{prefix}images"], np.asarray(arrays[f"{prefix}labels"]), 255.0, SHAPE) for prefix in ("", "test_")
        )
        if split is not None:
            return split(train, test)
        owner = np.asarray(arrays["owner"])
        return Divided(train, owner, int(owner.max()) + 1, test)

    return load


EMNIST = Entry(
    "emnist",
    "digits and letters by hand, 28x28 grey, 62 classes (LEAF's split, as TensorFlow Federated publishes it)",
    "a writer",
    "3,400 writers",
    "671,585",
    "77,483, of the same writers",
    Licence(
        "none stated; NIST's data are in the public domain",
        "G. Cohen et al.: EMNIST, 2017; LEAF; TensorFlow Federated",
        "https://www.nist.gov/itl/products-and-services/emnist-dataset",
    ),
    ("emnist-cnn",),
    (
        Option("characters", "all", "all, digits", "`digits`: 10 classes, 3,383 writers, for `mnist-cnn`"),
        Option("split", "writer", "writer, dirichlet, shards, drawn", "who holds what"),
        *SPLIT_OPTIONS,
    ),
    _configure_emnist,
    (EMNIST_FILE,),
)

# -- Stack Overflow -------------------------------------------------------------------------------------------------------------

STACK_FILE = RemoteFile("tff/stackoverflow.sqlite.lzma", None, 0, (f"{URL}/stackoverflow.sqlite.lzma",))
WORD_WINDOW = 8
KEPT_USERS = 64


class StackOverflow:
    """Next words of what a user wrote, read when the user is asked for. Words are hashed: the list that goes with the data was
    counted on these very users."""

    def __init__(self, path: Path, sentences: int, test_examples: int) -> None:
        self._path, self._sentences, self._test_examples = path, sentences, test_examples
        self._encode = lookup("hashed-2048").encode
        self._kept = lru_cache(KEPT_USERS)(self._read)
        with closing(_opened(path)) as database:
            self._users = np.array([name for name, _ in _clients(database, "train")])
            self._tests = np.array([name for name, _ in _clients(database, "heldout")])
        if not len(self._users) or not len(self._tests):
            raise ValueError("holds no users")

    @property
    def size(self) -> int:
        return len(self._users)

    @cached_property
    def held_out(self) -> Examples:
        """Of users that are no device, in the order of a hash of their names, until there are enough."""
        order = sorted(self._tests.tolist(), key=lambda name: hashlib.sha256(name.encode()).digest())
        parts: list[Examples] = []
        while order and sum(map(len, parts)) < self._test_examples:
            parts.append(self._read("heldout", order.pop(0)))
        features = np.concatenate([part.features for part in parts])[: self._test_examples]
        return Examples(features, np.concatenate([part.labels for part in parts])[: self._test_examples])

    def count(self, device: int) -> int:
        """Reads what the user wrote: how many words it has stands nowhere."""
        return len(self.examples(device))

    def examples(self, device: int) -> Examples:
        return self._kept("train", str(self._users[check_device(device, self.size)]))

    def _read(self, split: str, user: str) -> Examples:
        features, labels = [np.zeros((1, WORD_WINDOW), dtype=np.int32)], [np.array([FIRST_TARGET], dtype=np.int32)]
        with closing(_opened(self._path)) as database:
            for blob in _examples(database, split, user, self._sentences):
                tokens = parse_example(blob)["tokens"]
                ids = self._encode(bytes(tokens).decode("utf-8", "replace")).astype(np.int32)
                padded = np.concatenate([np.zeros(WORD_WINDOW, dtype=np.int32), ids])
                features.append(np.lib.stride_tricks.sliding_window_view(padded, WORD_WINDOW)[: len(ids)])
                labels.append(ids)
        found = np.concatenate(features), np.concatenate(labels)
        return Examples(found[0][1:], found[1][1:]) if len(found[1]) > 1 else Examples(*found)


def _configure_stack(options: Options) -> Load:
    sentences = options.integer("sentences", 128, 1, 100_000)
    tests = options.integer("test_examples", 10_000, 1, 2**20)

    def load(cache: Cache) -> FederatedDataset:
        path = unpacked(cache, STACK_FILE)
        try:
            return StackOverflow(path, sentences, tests)
        except (sqlite3.Error, ValueError) as error:
            raise DataError(f"{path}: not the SQLite file that was expected: {error}") from error

    return load


STACK_OVERFLOW = Entry(
    "stackoverflow",
    "questions and answers of Stack Overflow: the next word after 8, hashed",
    "a user",
    "342,477 users",
    "135,818,730 sentences",
    "10,000 words of other users (38,758 of them)",
    Licence(
        "CC BY-SA 3.0",
        "Stack Overflow and its contributors; TensorFlow Federated",
        "https://www.kaggle.com/stackoverflow/stackoverflow",
    ),
    ("words",),
    (
        Option("sentences", "128", "1 to 100000", "at most so many sentences of a user are read"),
        Option("test_examples", "10000", "1 to 1048576", "held-out examples"),
    ),
    _configure_stack,
    (STACK_FILE,),
)
