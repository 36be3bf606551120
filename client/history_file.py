"""The file of a history: locked, migrated, sealed, and known to lie where it was written.

Every transaction ends by sealing all rows that decide anything with a digest over them, and begins by checking it. On opening,
the marker beside the file tells a history that has always been here from one that cannot know all:

    file         marker                                    it is
    none         none, or of a device without contributions   new
    none         of a device with contributions               deleted
    whole        ahead of it                                  restored
    whole        gone, of another file, touched, elsewhere    copied, restored or moved
    damaged      any                                          refused, and left as it was

    RuntimeError
    └── HistoryError       the device takes part in nothing
        └── ServerChanged  because the server contradicts what the device remembers of it
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

from fedrho.client import marker
from fedrho.protos.messages import ID_BYTES

MIGRATIONS = (
    (
        "CREATE TABLE contributions (run BLOB NOT NULL, step INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (run, step)) STRICT",
        "CREATE TABLE tags (run BLOB PRIMARY KEY, tag BLOB NOT NULL) STRICT",
    ),
    (
        "CREATE TABLE pins (server TEXT PRIMARY KEY, key BLOB NOT NULL) STRICT",
        "CREATE TABLE epochs (key BLOB PRIMARY KEY, epoch BLOB NOT NULL) STRICT",  # uint64, big-endian: more than INTEGER holds
    ),
    (
        "ALTER TABLE contributions ADD COLUMN ticks REAL",
        "UPDATE contributions SET ticks = at",
        "CREATE TABLE signed (run BLOB NOT NULL, step INTEGER NOT NULL, key BLOB NOT NULL, at REAL NOT NULL, "
        "PRIMARY KEY (run, step, key)) STRICT",
        "CREATE TABLE populations (key BLOB PRIMARY KEY, server_time REAL NOT NULL, since REAL, blind REAL) STRICT",
        "CREATE TABLE runs (key BLOB NOT NULL, run BLOB NOT NULL, epoch BLOB NOT NULL, released INTEGER NOT NULL, "
        "ended INTEGER NOT NULL, began REAL NOT NULL, announced TEXT NOT NULL, PRIMARY KEY (key, run)) STRICT",
        "CREATE TABLE seal (one INTEGER PRIMARY KEY CHECK (one = 1), instance TEXT NOT NULL, base INTEGER NOT NULL, "
        "inode TEXT, born REAL NOT NULL, trusted REAL, losses INTEGER NOT NULL, clock REAL NOT NULL, ticks REAL NOT NULL, "
        "digest BLOB) STRICT",
        "CREATE TABLE incidents (number INTEGER PRIMARY KEY, first REAL NOT NULL, last REAL NOT NULL, times INTEGER NOT NULL, "
        "kind TEXT NOT NULL, detail TEXT NOT NULL, run BLOB NOT NULL, UNIQUE (kind, detail, run)) STRICT",
    ),
    (
        "CREATE TABLE label_key (one INTEGER PRIMARY KEY CHECK (one = 1), key BLOB NOT NULL) STRICT",
        "CREATE TABLE label_terms (number INTEGER PRIMARY KEY, view TEXT NOT NULL, said TEXT NOT NULL, epsilon REAL NOT NULL, "
        "UNIQUE (view, said)) STRICT",
        "CREATE TABLE label_askings (number INTEGER PRIMARY KEY, terms INTEGER NOT NULL, run BLOB NOT NULL, at REAL NOT NULL, "
        "count INTEGER NOT NULL, digest BLOB NOT NULL) STRICT",
        "CREATE TABLE label_likelihoods (number INTEGER PRIMARY KEY, row BLOB NOT NULL UNIQUE) STRICT",
        "CREATE TABLE label_answers (record BLOB NOT NULL, terms INTEGER NOT NULL, asking INTEGER NOT NULL, "
        "label INTEGER NOT NULL, size INTEGER NOT NULL, likelihood INTEGER NOT NULL, PRIMARY KEY (record, terms)) "
        "STRICT, WITHOUT ROWID",
    ),
)
"""What leads from each version of the file to the next; an empty file is version 0.

ticks        how far the device's clock had gone when it contributed, leaps back not counted
signed       a time that each population signed then, or the first that was heard of it later
populations  the highest signed time; `since`: from when on this device has heard it; `blind`: what began by then may be unknown
runs         what was announced of a run, the strictest of it; never weaker later
label_*      what was answered for labels, under which terms (`labels.py`); never a label itself. The many rows of answers and
             likelihoods are not sealed one by one: each asking seals its own
seal         which history this is, when it began to be trusted, and a digest over everything that decides
incidents    what the owner should know
"""
SCHEMA_VERSION = len(MIGRATIONS)
COLUMNS = {
    "contributions": "run, step, at, ticks",
    "tags": "run, tag",
    "pins": "server, key",
    "epochs": "key, epoch",
    "signed": "run, step, key, at",
    "populations": "key, server_time, since, blind",
    "runs": "key, run, epoch, released, ended, began, announced",
    "label_key": "one, key",
    "label_terms": "number, view, said, epsilon",
    "label_askings": "number, terms, run, at, count, digest",
    "seal": "one, instance, base, inode, born, trusted, losses, clock, ticks",
}
MOST_INCIDENTS = 500
"""Of a kind, so that many small ones push no grave one out."""
BUSY_SECONDS = 30.0


class HistoryError(RuntimeError):
    """The history cannot be read or trusted; the device then takes part in nothing."""


class ServerChanged(HistoryError):
    """A server contradicts what this device has seen from it: key, epoch, progress or terms."""


def _is_busy(error: BaseException) -> bool:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)  # Python's own errors have none
    return code & 0xFF == sqlite3.SQLITE_BUSY


def digest(database: sqlite3.Connection) -> bytes:
    """Over every row that decides anything, whatever their order in the file."""
    total = hashlib.sha256()
    for table, columns in COLUMNS.items():
        rows = sorted(repr(row).encode() for row in database.execute(f"SELECT {columns} FROM {table}"))
        if table.startswith("label_") and not rows:
            continue  # as sealed by versions that had no such table
        total.update(f"{table} {len(rows)}\n".encode() + b"\n".join(rows))
    return total.digest()


class HistoryFile:
    """An open history; each change of it is a `transaction`."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """Opens or creates the file; raises HistoryError when it is not a history, or when another process uses it."""
        self.path = path
        self.clock = clock
        with self.trusted(), ExitStack() as opened:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileExistsError):  # what a device took part in is its owner's alone to read
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            self._held = marker.acquire(path)
            opened.callback(marker.release, path)
            self.database = sqlite3.connect(
                path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False, cached_statements=8
            )
            opened.callback(self.database.close)
            self._refuse_foreign()
            self._use_wal()
            self.database.execute("PRAGMA synchronous = FULL")
            self.database.execute("PRAGMA cache_size = -64")  # KiB: one process may be thousands of devices
            with self._held.mutex:
                self._enter(first=self._held.users == 1)
            self._closing = opened.pop_all()

    def close(self) -> None:
        self._closing.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing, durably, on rows that are as they were left."""
        with self._held.mutex:
            self.database.execute("BEGIN IMMEDIATE")
            try:
                self._check_seal()
                yield
                self.database.execute("UPDATE seal SET digest = ?", (digest(self.database),))
            except BaseException:
                self.database.execute("ROLLBACK")
                raise
            self.database.execute("COMMIT")

    def check_place(self) -> None:
        """Raises HistoryError where the folder was removed or replaced: another process may be this device by now."""
        if not marker.is_there(self.path, self._held):
            raise HistoryError(f"{self.path}: removed or replaced while this process was using it; start the process again")

    def mark(self) -> None:
        """Writes the number of contributions beside the file, where an older copy of it will meet it again."""
        with self._held.mutex:
            marker.write(self.path, self.value("instance"), self._counter())

    def ticks(self) -> float:
        """How far the device's clock has gone, leaps back not counted."""
        now, (clock, ticks) = self.clock(), self.database.execute("SELECT clock, ticks FROM seal").fetchone()
        return float(ticks) if now < clock else float(ticks + (now - clock))

    def leapt_back(self) -> bool:
        return bool(self.clock() < self.value("clock"))

    def keep_time(self) -> None:
        """Within a transaction: what `ticks` goes on from."""
        self.database.execute("UPDATE seal SET ticks = ?, clock = ?", (self.ticks(), self.clock()))

    def value(self, name: str) -> Any:
        """One value of the seal."""
        return self.database.execute(f"SELECT {name} FROM seal").fetchone()[0]

    def vouch(self) -> None:
        """The owner says that this history knows every contribution of this device, wherever it has come from."""
        with self.trusted():
            with self.transaction():
                self.database.execute("UPDATE seal SET trusted = NULL, losses = 0")
                self.database.execute("UPDATE populations SET blind = NULL")
                self._incident("trusted", "the owner has said that this history is complete")
            self._renew_marker()

    def incident(self, kind: str, detail: str, run: bytes = b"") -> None:
        """Leaves a dated record for the owner; of the same again, only the number and the last date."""
        with self.trusted(), self.transaction():
            self._incident(kind, detail, run)

    def _incident(self, kind: str, detail: str, run: bytes = b"") -> None:
        now = self.clock()
        self.database.execute(
            "INSERT INTO incidents (first, last, times, kind, detail, run) VALUES (?, ?, 1, ?, ?, ?) "
            "ON CONFLICT (kind, detail, run) DO UPDATE SET last = excluded.last, times = times + 1",
            (now, now, kind, detail, run),
        )
        self.database.execute(
            "DELETE FROM incidents WHERE kind = ? AND number NOT IN "
            "(SELECT number FROM incidents WHERE kind = ? ORDER BY last DESC, number DESC LIMIT ?)",
            (kind, kind, MOST_INCIDENTS),
        )

    # -- opening -----------------------------------------------------------------------------------------------------------------

    def _enter(self, first: bool) -> None:
        """Brings the file to this version, and finds out whether it has always been here."""
        self.database.execute("BEGIN IMMEDIATE")
        try:
            version = self._migrate()
            self._check()
            changed = self._judge(version) if first or not self._sealed() else False
            self.database.execute("UPDATE seal SET digest = ?", (digest(self.database),))
        except BaseException:
            self.database.execute("ROLLBACK")
            raise
        self.database.execute("COMMIT")
        if changed:
            self._renew_marker()

    def _judge(self, version: int) -> bool:
        """Whether the history needs a new marker; if it cannot know all, that is written down first."""
        seen = marker.read(self.path)
        if not self._sealed():
            upgraded = version > 0
            gave = seen is not None and not (seen.untouched and seen.counter == 0)
            reason = "" if not gave else "it is older than what was here" if upgraded else "it was deleted"
            self._begin(reason, 0 if seen is None else seen.counter, trust=upgraded)
            return True
        if seen is None and self._counter() == 0:  # stopped before the first marker, or a copy of before the first contribution
            if self.value("inode") is not None:
                self._begin("", 0, trust=False)
                self.database.execute("UPDATE populations SET since = NULL")
            return True
        reason = self._stranger(seen)
        if reason:
            self._begin(reason, max(self._counter(), seen.counter if seen else 0), trust=False)
        elif seen is not None and seen.counter < self._counter():  # stopped between the file and the marker
            self.mark()
        return bool(reason) or self.value("inode") is None

    def _stranger(self, seen: marker.Marker | None) -> str:
        """What speaks against the history having been here all the time; nothing, if empty."""
        if seen is None:
            return "its marker is gone"
        if seen.instance != self.value("instance") or self.value("inode") not in (None, seen.inode):
            return "its marker is that of another file: it was copied, restored or moved to another disk"
        if not seen.untouched:
            return "its marker was copied, restored or touched"
        if seen.machine != marker.machine():
            return "it was brought from another machine"
        return "it is older than what was here" if seen.counter > self._counter() else ""

    def _begin(self, loss: str, base: int, trust: bool) -> None:
        """Trusts the history from now on, as one that is new or has lost something; or, with `trust`, all that is in it."""
        now, losses, ticks = self.clock(), 0, self.database.execute("SELECT max(ticks) FROM contributions").fetchone()[0]
        ticks = now if ticks is None else max(now, ticks)
        if self._sealed():
            losses, ticks = self.value("losses"), self.ticks()
            self.database.execute("DELETE FROM seal")
        self.database.execute(
            "INSERT INTO seal VALUES (1, ?, ?, NULL, ?, ?, ?, ?, ?, NULL)",
            (
                os.urandom(ID_BYTES).hex(),
                base + 1 if loss else 0,
                now,
                None if trust and not loss else ticks,
                losses + bool(loss),
                now,
                ticks,
            ),
        )
        if loss:
            self.database.execute("UPDATE populations SET since = NULL, blind = NULL")
            self._incident("history", f"this history cannot know all that the device took part in: {loss}")

    def _renew_marker(self) -> None:
        """A crash before the last line leaves a marker of another file, and that counts as a copy."""
        inode = marker.create(self.path, self.value("instance"), self._counter())
        with self.transaction():
            self.database.execute("UPDATE seal SET inode = ?", (inode,))

    def _sealed(self) -> bool:
        return self.database.execute("SELECT 1 FROM seal").fetchone() is not None

    def _counter(self) -> int:
        """Contributions and askings of labels, and what an earlier history here has counted."""
        given = self.database.execute(
            "SELECT (SELECT count(*) FROM contributions) + (SELECT count(*) FROM label_askings)"
        ).fetchone()[0]
        return int(self.value("base") + given)

    @retry(retry=retry_if_exception(_is_busy), stop=stop_after_delay(BUSY_SECONDS), wait=wait_random(0.01, 0.1), reraise=True)
    def _use_wal(self) -> None:
        """Here alone SQLite does not wait by itself while another process is doing the same to a new file."""
        self.database.execute("PRAGMA journal_mode = WAL")

    def _refuse_foreign(self) -> None:
        """Before anything is written: somebody's data may be called like the device, and lie where its history would."""
        version, tables, ours = self.database.execute(
            "SELECT user_version, (SELECT count(*) FROM sqlite_schema), "
            "(SELECT count(*) FROM sqlite_schema WHERE name = 'contributions') FROM pragma_user_version"
        ).fetchone()
        if tables and (version < 1 or not ours):
            raise HistoryError(f"{self.path}: some other SQLite file, not a participation history; name another --history")

    def _migrate(self) -> int:
        """The version that the file had."""
        version: int = self.database.execute("PRAGMA user_version").fetchone()[0]
        if not 0 <= version <= SCHEMA_VERSION:
            raise HistoryError(f"{self.path}: written by another version of fedrho (schema {version})")
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                self.database.execute(statement)
        if version < SCHEMA_VERSION:
            self.database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        return version

    def _check(self) -> None:
        """A damaged or foreign file is found out here, before anything is decided by it, and is left as it was."""
        verdict = self.database.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            raise HistoryError(f"{self.path}: damaged ({verdict}); {MEND}")
        if self._sealed():
            self._check_seal()

    def _check_seal(self) -> None:
        if self.value("digest") != digest(self.database):
            raise HistoryError(f"{self.path}: damaged (a row was changed or is missing); {MEND}")

    @contextmanager
    def trusted(self) -> Iterator[None]:
        try:
            yield
        except marker.InUse:
            raise HistoryError(
                f"{self.path}: another process is this device already; "
                "stop it, or be another device, with data of its own and another --history"
            ) from None
        except (OSError, sqlite3.Error, UnicodeError, TypeError) as error:
            raise HistoryError(f"{self.path}: not a usable participation history ({error})") from error


MEND = "move it away, and the device begins anew with the runs that begin from then on"
