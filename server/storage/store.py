"""Where state lives: `open_store` for the one server that writes, `reading` for whoever looks; in memory for simulations.

FOLDER                          SQLite with its blobs beside it, one process at a time
    fedrho.sqlite               the tables of `schema`
    blobs/SHA256, published/    what `blobs` and `published` say
    lock                        held by the process that may write
postgresql://HOST/DATABASE      the same tables, blobs in an object store or folder, one leader at a time
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

import sqlalchemy as sa

from fedrho.server.release import StoreConflict
from fedrho.server.storage import blobs as objects
from fedrho.server.storage import databases, migrations
from fedrho.server.storage.blobs import FolderObjects, Objects
from fedrho.server.storage.databases import DATABASE, Database
from fedrho.server.storage.leader import LEASE_SECONDS, LOCK, FileLock, Lease, StoreBusy, refuse_network
from fedrho.server.storage.memory_store import MemoryStore
from fedrho.server.storage.reading import (
    RunStatus,
    latest_status,
    locate,
    read_blob,
    read_budget,
    read_histories,
    read_history,
    read_status,
)
from fedrho.server.storage.schema import HEAD, as_conflict, population
from fedrho.server.storage.sql_store import BACKUP, SqlStore

__all__ = [
    "MemoryStore",
    "RunStatus",
    "SqlStore",
    "StoreBusy",
    "latest_status",
    "locate",
    "open_store",
    "read_blob",
    "read_budget",
    "read_histories",
    "read_history",
    "read_status",
]

OWNER = "population"
MIGRATION_LOCK = 0x66656472686F
"""Of PostgreSQL's advisory locks: "fedrho"."""


def open_store(where: str | Path, blobs: str | Path | None = None, lease_seconds: float = LEASE_SECONDS) -> SqlStore:
    """A folder, private to its owner, or PostgreSQL by URL with a place for its blobs; older tables are migrated.

    Raises StoreBusy when another server writes there, StoreConflict for what is no store, or must not be continued. A lease
    that a dead server left is waited for.
    """
    if databases.is_url(where):
        if blobs is None:
            raise StoreConflict(f"{databases.shown(where)}: needs a place for its blobs, a folder or s3://BUCKET/PREFIX")
        return _open_postgres(str(where), blobs, lease_seconds)
    if blobs is not None:
        raise StoreConflict(f"{where}: a folder keeps its own blobs; leave their place out")
    return _open_folder(Path(where))


def _open_folder(folder: Path) -> SqlStore:
    with ExitStack() as held, as_conflict(str(folder)):
        _refuse_foreign(folder)
        refuse_network(folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        leader = FileLock(folder)
        held.callback(leader.close)
        database = databases.sqlite(folder)
        held.callback(database.close)
        _migrate_folder(folder, database)
        store = SqlStore(database, FolderObjects(folder), leader)
        held.pop_all()
    return store


def _open_postgres(where: str, blobs: str | Path, lease_seconds: float) -> SqlStore:
    place = str(blobs) if databases.is_url(blobs) else str(Path(blobs).resolve())
    with ExitStack() as held, as_conflict(databases.shown(where)):
        found = objects.open_objects(place)
        database = databases.postgres(where)
        held.callback(database.close)
        _migrate_postgres(database, None)
        leader = Lease(database, lease_seconds)
        held.callback(leader.close)
        _migrate_postgres(database, leader)
        _own(database, found, place, leader)
        store = SqlStore(database, found, leader)
        held.pop_all()
    return store


def _refuse_foreign(folder: Path) -> None:
    """Somebody's own folder is not taken over."""
    ours = (DATABASE, "published.json", "published", LOCK)
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in ours):
        raise StoreConflict(f"{folder}: holds other files and no run; choose a new or empty folder")


def _migrate_folder(folder: Path, database: Database) -> None:
    with database.writer.begin() as connection:
        before = migrations.revision(connection, database.shown)
        if before == HEAD:
            return
    if before is not None:
        _back_up(folder)
    with database.writer.begin() as connection:
        migrations.upgrade(connection, database.shown, before)


def _back_up(folder: Path) -> None:
    """The database as it was; it goes with the next commit, after which it would be older than what was published."""
    temporary = folder / f"{BACKUP}.tmp"
    temporary.unlink(missing_ok=True)
    with closing(sqlite3.connect(folder / DATABASE)) as source, closing(sqlite3.connect(temporary)) as copy:
        source.backup(copy)
    os.replace(temporary, folder / BACKUP)  # SQLite has written it through
    objects.sync(folder)


def _migrate_postgres(database: Database, leader: Lease | None) -> None:
    """New tables are made by whoever comes first; old ones are changed by the leader alone."""
    with database.writer.begin() as connection:
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        before = migrations.revision(connection, database.shown)
        if leader is not None:
            leader.fence(connection)
        if before is None or (leader is not None and before != HEAD):
            migrations.upgrade(connection, database.shown, before)


def _own(database: Database, found: Objects, place: str, leader: Lease) -> None:
    """Two populations never share blobs: each would sweep what the other needs."""
    with database.writer.begin() as connection:
        leader.fence(connection)
        own: bytes = connection.execute(sa.select(population.c.id)).scalar_one()
        found.put(OWNER, own.hex().encode())
        if found.get(OWNER) != own.hex().encode():
            raise StoreConflict(
                f"{found.shown}: holds the blobs of another store; choose another place, or put its database back"
            )
        connection.execute(sa.update(population).values(blobs=place))
