"""What this device took part in: a SQLite file of its own, written through to the disk before a single byte is uploaded.

A device refuses by itself: too often, too soon by steps, too soon by the clock, or a server that has gone backwards. It also
remembers which population key each server has shown, and the highest epoch under each key.

    RuntimeError
    └── HistoryError       the device takes part in nothing
        └── ServerChanged  because the server contradicts what the device remembers of it
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

from fedrho.client.participant import promised
from fedrho.protos.messages import ID_BYTES, PrivacyTerms
from fedrho.protos.signing import check_public

MIGRATIONS = (
    (
        "CREATE TABLE contributions (run BLOB NOT NULL, step INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (run, step)) STRICT",
        "CREATE TABLE tags (run BLOB PRIMARY KEY, tag BLOB NOT NULL) STRICT",
    ),
    (
        "CREATE TABLE pins (server TEXT PRIMARY KEY, key BLOB NOT NULL) STRICT",
        "CREATE TABLE epochs (key BLOB PRIMARY KEY, epoch BLOB NOT NULL) STRICT",  # uint64, big-endian: more than INTEGER holds
    ),
)
"""What leads from each version of the file to the next; an empty file is version 0."""
SCHEMA_VERSION = len(MIGRATIONS)
COLUMNS = {"contributions": "run, step, at", "tags": "run, tag", "pins": "server, key", "epochs": "key, epoch"}
EPOCH_BYTES = 8
BUSY_SECONDS = 30.0


class HistoryError(RuntimeError):
    """The history cannot be read or trusted; the device then takes part in nothing."""


class ServerChanged(HistoryError):
    """A server shows another population key, or an earlier epoch, than this device has seen from it."""


def _is_busy(error: BaseException) -> bool:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)  # Python's own errors have none
    return code & 0xFF == sqlite3.SQLITE_BUSY


class DeviceHistory:
    """The participation ledger of one device; every answer is read from the file, every yes is in it first."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Opens or creates the file; raises HistoryError when it is not a history, as every method does."""
        self._path = path
        self._clock = clock
        with self._trusted(), ExitStack() as opened:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False)
            opened.callback(self._database.close)
            self._use_wal()
            self._database.execute("PRAGMA synchronous = FULL")
            with self._transaction():
                self._migrate()
                self._check()
            opened.pop_all()

    def allows(self, run: bytes, step: int, terms: PrivacyTerms) -> bool:
        with self._trusted():
            return self._allows(run, step, terms)

    def exhausted(self, run: bytes, terms: PrivacyTerms) -> bool:
        with self._trusted():
            return len(self._past(run)) >= terms.max_participations

    def record(self, run: bytes, step: int, terms: PrivacyTerms) -> bool:
        with self._trusted(), self._transaction():
            allowed = self._allows(run, step, terms)
            if allowed:
                self._database.execute("INSERT INTO contributions VALUES (?, ?, ?)", (run, step, self._clock()))
        return allowed

    def tag(self, run: bytes) -> bytes:
        with self._trusted(), self._transaction():
            self._database.execute("INSERT OR IGNORE INTO tags VALUES (?, ?)", (run, os.urandom(ID_BYTES)))
            row = self._database.execute("SELECT tag FROM tags WHERE run = ?", (run,)).fetchone()
            return bytes(row[0])

    def trust(self, server: str, key: bytes, epoch: int) -> None:
        """Remembers the population key that `server` shows, and its epoch, a uint64.

        Raises ServerChanged, and remembers nothing new, where the server has shown another key, or the key a later epoch; BadKey
        where it is none. *Assumes* that the spec's signature by this key was verified before.
        """
        name, number = server.lower(), epoch.to_bytes(EPOCH_BYTES, "big")
        with self._trusted(), self._transaction():
            pinned = self._pinned(name)
            if pinned not in (None, check_public(key)):
                raise ServerChanged(
                    f"{server}: shows another population key than before, now {key.hex()}; "
                    "ask its operator, and name the key yourself if it is the right one"
                )
            self._raise_epoch(server, key, number)
            if pinned is None:
                self._database.execute("INSERT INTO pins VALUES (?, ?)", (name, key))

    def pin(self, server: str, key: bytes) -> None:
        """From now on `server` must show this key, which a person has named, whatever it has shown before; raises BadKey."""
        with self._trusted(), self._transaction():
            self._database.execute("INSERT OR REPLACE INTO pins VALUES (?, ?)", (server.lower(), check_public(key)))

    def close(self) -> None:
        self._database.close()

    def _allows(self, run: bytes, step: int, terms: PrivacyTerms) -> bool:
        past = self._past(run)
        if past and step <= max(past):
            return False
        return promised(terms).allows(past, step) and self._rested(terms.min_period_seconds)

    def _past(self, run: bytes) -> tuple[int, ...]:
        rows = self._database.execute("SELECT step FROM contributions WHERE run = ? ORDER BY step", (run,))
        return tuple(row[0] for row in rows)

    def _rested(self, seconds: float) -> bool:
        """Whether the last contribution to anything is long enough ago; a clock that went back gains nothing."""
        latest = self._database.execute("SELECT max(at) FROM contributions").fetchone()[0]
        return seconds <= 0 or latest is None or self._clock() - latest >= seconds

    def _pinned(self, server: str) -> bytes | None:
        row = self._database.execute("SELECT key FROM pins WHERE server = ?", (server,)).fetchone()
        return bytes(row[0]) if row else None

    def _raise_epoch(self, server: str, key: bytes, epoch: bytes) -> None:
        row = self._database.execute("SELECT epoch FROM epochs WHERE key = ?", (key,)).fetchone()
        highest = bytes(row[0]) if row else b""
        if epoch < highest:
            raise ServerChanged(
                f"{server}: went back to epoch {int.from_bytes(epoch, 'big')} of its population, after "
                f"{int.from_bytes(highest, 'big')}; take part again when its operator has restored a current state"
            )
        if epoch > highest:
            self._database.execute("INSERT OR REPLACE INTO epochs VALUES (?, ?)", (key, epoch))

    @retry(retry=retry_if_exception(_is_busy), stop=stop_after_delay(BUSY_SECONDS), wait=wait_random(0.01, 0.1), reraise=True)
    def _use_wal(self) -> None:
        """Here alone SQLite does not wait by itself while another process is doing the same to a new file."""
        self._database.execute("PRAGMA journal_mode = WAL")

    def _migrate(self) -> None:
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if not 0 <= version <= SCHEMA_VERSION:
            raise HistoryError(f"{self._path}: written by another version of fedrho (schema {version})")
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                self._database.execute(statement)
        if version < SCHEMA_VERSION:
            self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _check(self) -> None:
        """A damaged or foreign file is found out here, before anything is decided by it, and is left as it was."""
        verdict = self._database.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            raise HistoryError(f"{self._path}: damaged ({verdict})")
        for table, columns in COLUMNS.items():
            self._database.execute(f"SELECT {columns} FROM {table} LIMIT 1").fetchone()

    @contextmanager
    def _trusted(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, UnicodeError, TypeError) as error:
            raise HistoryError(f"{self._path}: not a usable participation history ({error})") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")
