"""One writer a store: a lock on a file where the database is a folder's, a lease in the database where it is PostgreSQL's.

A lease is a row with a token and a time by the database's clock. Whoever holds it renews it; whoever wants it waits until it has
run out. Every transaction that writes checks the token first and holds the row until it ends, so of two that take themselves for
the leader one fails, and has released nothing.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

import sqlalchemy as sa

from fedrho.server.release import StoreConflict
from fedrho.server.storage.databases import Database
from fedrho.server.storage.schema import population

LEASE_SECONDS = 15.0
LOCK = "lock"
NETWORK_FILE_SYSTEMS = frozenset(
    ["nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs"]
    + [f"fuse.{name}" for name in ("sshfs", "glusterfs", "s3fs", "gcsfuse", "rclone", "davfs", "ceph-fuse")]
)


class StoreBusy(RuntimeError):
    """Another server writes to this store."""


class Leader(Protocol):
    def fence(self, connection: sa.Connection) -> None:
        """In the transaction that is about to write; raises StoreConflict when another leads by now."""
        ...

    def sure(self) -> bool:
        """Whether nobody else can lead yet, as far as this machine's clock tells."""
        ...

    def close(self) -> None: ...


class FileLock:
    """Raises StoreBusy when another server holds it; the system lets go of it when the process dies."""

    def __init__(self, folder: Path) -> None:
        self._file = _locked_soon(folder / LOCK)

    def fence(self, connection: sa.Connection) -> None:
        """SQLite's folder has one process, from its opening to its end."""

    def sure(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()


class Lease:
    """Raises StoreBusy when another server holds it, and renews it; waits for one that a dead server left behind."""

    def __init__(self, database: Database, seconds: float = LEASE_SECONDS) -> None:
        self._database, self._seconds, self._token = database, seconds, os.urandom(16)
        self._sure_until = 0.0
        self._stop = threading.Event()
        self._acquire()
        self._renewal = threading.Thread(target=self._renew, name="fedrho-lease", daemon=True)
        self._renewal.start()

    def fence(self, connection: sa.Connection) -> None:
        if not self._extend(connection, population.c.leader == self._token):
            raise StoreConflict(
                f"{self._database.shown}: another server leads by now; this one has released nothing and must end"
            )

    def sure(self) -> bool:
        return time.monotonic() < self._sure_until

    def close(self) -> None:
        self._stop.set()
        self._renewal.join()
        with suppress(sa.exc.DBAPIError), self._database.writer.begin() as connection:
            mine = sa.update(population).where(population.c.leader == self._token)
            connection.execute(mine.values(leader=None, expires_at=None))

    def _acquire(self) -> None:
        """One that was renewed while we waited has a living owner."""
        free = population.c.leader.is_(None) | (population.c.expires_at <= _now())
        waited_for = None
        while True:
            with self._database.writer.begin() as connection:
                if self._extend(connection, free):
                    return
                query = sa.select(population.c.leader, population.c.expires_at, (population.c.expires_at - _now()).label("left"))
                held = connection.execute(query).first()
            if held is not None and held.expires_at is not None:
                if waited_for not in (None, (held.leader, held.expires_at)):
                    raise StoreBusy(f"{self._database.shown}: another server leads this store, and renews its lease")
                waited_for = (held.leader, held.expires_at)
                time.sleep(min(max(held.left, 0.0), self._seconds) / 4 + 0.01)

    def _extend(self, connection: sa.Connection, whose: sa.ColumnElement[bool]) -> bool:
        asked = time.monotonic()
        values = {"leader": self._token, "expires_at": _now() + self._seconds}
        taken: bool = connection.execute(sa.update(population).where(whose).values(values)).rowcount == 1
        if taken:
            self._sure_until = asked + self._seconds
        return taken

    def _renew(self) -> None:
        """Until closed, or overtaken; what fails is tried again, and the next commit says so if it was too late."""
        while not self._stop.wait(self._seconds / 4):
            with suppress(sa.exc.DBAPIError, sa.exc.TimeoutError), self._database.writer.begin() as connection:
                if not self._extend(connection, population.c.leader == self._token):
                    return


def is_led(database: Database) -> bool:
    """Whether a lease is held right now, by the database's clock."""
    with database.reading() as connection:
        query = sa.select(sa.func.count()).where(population.c.leader.is_not(None) & (population.c.expires_at > _now()))
        return bool(connection.execute(query).scalar())


def is_locked(folder: Path) -> bool:
    try:
        _locked(folder / LOCK).close()
    except StoreBusy:
        return True
    except OSError:
        return False
    return False


def refuse_network(folder: Path) -> None:
    """Locks of network file systems are not to be trusted with a database; raises StoreConflict where Linux says it is one."""
    with suppress(OSError):
        kind = file_system(folder, Path("/proc/self/mounts").read_text())
        if kind in NETWORK_FILE_SYSTEMS:
            raise StoreConflict(f"{folder}: lies on a network file system ({kind}); take a local disk, or a postgresql:// store")


def file_system(folder: Path, mounts: str) -> str:
    """The kind of file system that `folder` lies on, or will, by a table like /proc/mounts."""
    kinds: Mapping[str, str] = {
        fields[1].encode().decode("unicode_escape"): fields[2] for line in mounts.splitlines() if len(fields := line.split()) > 2
    }
    there = folder.resolve()
    return next((kinds[str(place)] for place in (there, *there.parents) if str(place) in kinds), "")


def _now() -> sa.ColumnElement[float]:
    """Seconds since 1970 by the database's clock, at this moment rather than at the transaction's start."""
    return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Float)


def _locked_soon(path: Path) -> IO[bytes]:
    """Tries for a second, because whoever asks for the status holds the lock for an instant."""
    for _ in range(20):
        with suppress(StoreBusy):
            return _locked(path)
        time.sleep(0.05)
    return _locked(path)


def _locked(path: Path) -> IO[bytes]:
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise StoreBusy(f"{path.parent}: another server is using this folder") from error
    return file
