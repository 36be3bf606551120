"""What this device took part in: a SQLite file of its own, written through to the disk before a single byte is uploaded.

A device refuses by itself: too often, too soon by steps, too soon by the clock, or a server that has gone backwards.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fedrho.client.participant import promised
from fedrho.protos.messages import ID_BYTES, PrivacyTerms

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE contributions (run BLOB NOT NULL, step INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (run, step)) STRICT;
CREATE TABLE tags (run BLOB PRIMARY KEY, tag BLOB NOT NULL) STRICT;
"""


class HistoryError(RuntimeError):
    """The history cannot be read or trusted; the device then takes part in nothing."""


class DeviceHistory:
    """The participation ledger of one device; every answer is read from the file, every yes is in it first."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Opens or creates the file; raises HistoryError when it is not a history, as every method does."""
        self._path = path
        self._clock = clock
        with self._trusted(), ExitStack() as opened:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, isolation_level=None, timeout=30.0, check_same_thread=False)
            opened.callback(self._database.close)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._create()
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

    def _create(self) -> None:
        with self._transaction():
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in SCHEMA.strip().split(";\n"):
                    self._database.execute(statement)
                self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise HistoryError(f"{self._path}: written by another version of fedrho (schema {version})")

    def _check(self) -> None:
        """A damaged or foreign file is found out here, before anything is decided by it."""
        verdict = self._database.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            raise HistoryError(f"{self._path}: damaged ({verdict})")
        self._database.execute("SELECT run, step, at FROM contributions LIMIT 1").fetchone()
        self._database.execute("SELECT run, tag FROM tags LIMIT 1").fetchone()

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
