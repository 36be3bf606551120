"""A training cache: an app puts examples in as they arise, training reads them, and each is forgotten when its time is over.

One SQLite file. An app holds a TrainingCache; a device reads the same file as CachedExamples. An example is read only while it is
younger than `keep`, and not from the future. What is forgotten is deleted and its bytes are overwritten (secure_delete, and no
write-ahead log that would keep them): at every `put`, when a device opens the file, and before each training.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fedrho.client.examples import Batch, finite, integers, orders
from fedrho.client.stores.checked import DataFileError, Inputs, reason
from fedrho.models.base import ModelSpec
from fedrho.protos.messages import RoundPlan

APPLICATION_ID = 0x66724543  # "frEC"
BUSY_SECONDS = 30.0
MOST_LABEL = 2**31 - 1
TABLES = (
    "CREATE TABLE settings (shape TEXT NOT NULL, dtype TEXT NOT NULL, keep_seconds REAL NOT NULL) STRICT",
    "CREATE TABLE examples (id INTEGER PRIMARY KEY AUTOINCREMENT, "
    "at REAL NOT NULL, features BLOB NOT NULL, label INTEGER NOT NULL) STRICT",
    "CREATE INDEX by_time ON examples (at)",
)
DTYPES = {"float32": "<f4", "int32": "<i4"}

Clock = Callable[[], float]


@dataclass(frozen=True)
class Settings:
    """What a file says of itself."""

    shape: tuple[int, ...]
    dtype: str
    keep_seconds: float


class TrainingCache:
    """The app's side. Any number of threads and processes may use one file; nothing stays open between calls.

    Every method raises DataFileError when the file cannot be used.
    """

    def __init__(
        self, path: Path, shape: tuple[int, ...], keep: timedelta, dtype: str = "float32", clock: Clock = time.time
    ) -> None:
        """Opens or creates the file, for nobody but its owner; another `keep` than before holds from now on, for all examples."""
        if dtype not in DTYPES or not all(isinstance(size, int) and size > 0 for size in shape) or keep <= timedelta(0):
            raise ValueError(
                f"a cache needs a shape of whole numbers, float32 or int32, and a time to keep: not {shape}, {dtype}, {keep}"
            )
        self._path, self._clock = path, clock
        self._settings = Settings(tuple(shape), dtype, keep.total_seconds())
        with _trusted(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        with _opened(path) as database:
            _create(database, path, self._settings)

    def put(self, features: ArrayLike, label: int, at: datetime | None = None) -> None:
        """Keeps one example, durably; `at` is when it arose, now unless it is said. Raises ValueError for what is no example."""
        values, tokens = np.asarray(features), self._settings.dtype == "int32"
        if values.dtype.kind not in ("iu" if tokens else "fiu") or values.shape != self._settings.shape:
            raise ValueError(f"features must be {self._settings.dtype} of shape {self._settings.shape}")
        exact = integers(values, "features") if tokens else finite(values)
        if isinstance(label, bool) or not 0 <= (number := int(label)) <= MOST_LABEL or number != label:
            raise ValueError("a label is a whole number, 0 or more")
        now = self._clock()
        since = now if at is None else _seconds(at)
        if since > now:
            raise ValueError("an example cannot be from the future")
        row = (since, exact.astype(DTYPES[self._settings.dtype]).tobytes(), number)
        with _opened(self._path) as database:
            _forget(database, now - self._settings.keep_seconds)
            if since > now - self._settings.keep_seconds:
                database.execute("INSERT INTO examples (at, features, label) VALUES (?, ?, ?)", row)

    def forget(self, older_than: datetime) -> int:
        """Deletes and overwrites every example that arose before then; how many there were."""
        with _opened(self._path) as database:
            return _forget(database, np.nextafter(_seconds(older_than), -np.inf))

    def __len__(self) -> int:
        """Examples that training would read now."""
        with _opened(self._path) as database:
            return len(_ids(database, self._clock(), self._settings.keep_seconds))


@dataclass(frozen=True)
class CachedExamples:
    """The device's side: an ExampleStore. An empty cache is no error: the device takes part with an update of zeros.

    Raises DataFileError when made, and later if the file has changed for the worse.
    """

    path: Path
    inputs: Inputs
    clock: Clock = time.time

    def __post_init__(self) -> None:
        with self._named():
            self.inputs.check_one_label()
        self._forget_expired()
        with self._reading() as (database, _):
            classes = "SELECT count(*) FROM examples WHERE label NOT BETWEEN 0 AND ?"
            if database.execute(classes, (self.inputs.classes - 1,)).fetchone()[0]:
                raise ValueError(f"labels must lie between 0 and {self.inputs.classes - 1} for model {self.inputs.model!r}")

    def __getstate__(self) -> dict[str, Any]:
        """It is pickled before each training, for a process that may not write: what is expired is forgotten on this side."""
        with suppress(DataFileError):  # training will say so
            self._forget_expired()
        return dict(self.__dict__)

    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        """Each batch is read when it is due, so that what was forgotten meanwhile is not in it, and no app waits for training."""
        with suppress(DataFileError):  # a process that may not write does not read them either
            self._forget_expired()
        with self._reading() as (database, keep):
            ids = _ids(database, self.clock(), keep)
        for chosen in orders(len(ids), plan):
            batch = self._batch([ids[place] for place in chosen.tolist()])
            if len(batch.labels):
                yield batch

    def _forget_expired(self) -> None:
        with self._reading("IMMEDIATE") as (database, keep):
            _forget(database, self.clock() - keep)

    def _batch(self, ids: list[int]) -> Batch:
        with self._reading() as (database, keep):
            now = self.clock()
            query = "SELECT features, label FROM examples WHERE id = ? AND at > ? AND at <= ?"
            found = [row for one in ids for row in database.execute(query, (one, now - keep, now))]
        with self._named():
            raw = b"".join(features for features, _ in found)
            features = np.frombuffer(raw, DTYPES[self.inputs.dtype]).reshape(len(found), *self.inputs.shape)
            labels = np.array([label for _, label in found], dtype=np.int64)
            return Batch(self.inputs.features(features), self.inputs.labels(labels))

    @contextmanager
    def _reading(self, lock: str = "DEFERRED") -> Iterator[tuple[sqlite3.Connection, float]]:
        with self._named(), _opened(self.path, lock) as database:
            settings = _settings(database)
            if (settings.shape, settings.dtype) != (self.inputs.shape, self.inputs.dtype):
                needed = f"{self.inputs.dtype} of shape {self.inputs.shape}"
                raise ValueError(f"holds {settings.dtype} of shape {settings.shape}; model {self.inputs.model!r} takes {needed}")
            yield database, settings.keep_seconds

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except DataFileError:
            raise
        except ValueError as error:
            raise DataFileError(f"{self.path}: {reason(error)}") from error


def cached_examples(path: Path, spec: ModelSpec) -> CachedExamples:
    """The examples of one device; raises DataFileError."""
    return CachedExamples(path, Inputs.of(spec))


@contextmanager
def _trusted(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise DataFileError(f"{path}: not a training cache that can be used: {reason(error)}") from error


@contextmanager
def _opened(path: Path, lock: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
    """One transaction on an existing file."""
    with _trusted(path):
        uri = f"{path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_SECONDS)) as database:
            database.execute("PRAGMA secure_delete = ON")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA temp_store = MEMORY")
            ours = database.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
            if ours and database.execute("PRAGMA journal_mode").fetchone()[0] != "delete":
                database.execute("PRAGMA journal_mode = DELETE")
            database.execute(f"BEGIN {lock}")
            yield database
            database.execute("COMMIT")


def _create(database: sqlite3.Connection, path: Path, settings: Settings) -> None:
    empty = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
    shape = ",".join(map(str, settings.shape))
    if empty:
        for statement in TABLES:
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute("INSERT INTO settings VALUES (?, ?, ?)", (shape, settings.dtype, settings.keep_seconds))
    held = _settings(database)
    if (held.shape, held.dtype) != (settings.shape, settings.dtype):
        raise DataFileError(f"{path}: holds {held.dtype} of shape {held.shape}, not {settings.dtype} of shape {settings.shape}")
    database.execute("UPDATE settings SET keep_seconds = ?", (settings.keep_seconds,))


def _settings(database: sqlite3.Connection) -> Settings:
    if database.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise sqlite3.DatabaseError("some other SQLite file")
    try:
        ((shape, dtype, keep),) = database.execute("SELECT shape, dtype, keep_seconds FROM settings").fetchall()
        return Settings(tuple(int(size) for size in shape.split(",") if size), dtype, keep)
    except ValueError as error:
        raise sqlite3.DatabaseError("its settings are damaged") from error


def _forget(database: sqlite3.Connection, until: float) -> int:
    return database.execute("DELETE FROM examples WHERE at <= ?", (until,)).rowcount


def _ids(database: sqlite3.Connection, now: float, keep: float) -> list[int]:
    """Sorted here: SQLite would sort many in a temporary file, which a process that trains cannot write."""
    return sorted(one for (one,) in database.execute("SELECT id FROM examples WHERE at > ? AND at <= ?", (now - keep, now)))


def _seconds(at: datetime) -> float:
    if at.tzinfo is None:
        raise ValueError("a time needs a time zone, as in datetime.now(timezone.utc)")
    return at.timestamp()
