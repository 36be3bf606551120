"""How a store's database is opened: SQLite in a folder, PostgreSQL by URL; for the one writer, or for reading beside it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from fedrho.server.release import StoreConflict
from fedrho.server.storage.schema import as_conflict

DATABASE = "fedrho.sqlite"
CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Database:
    """`shown` names it in messages, without a password."""

    shown: str
    writer: sa.Engine
    reader: sa.Engine

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One snapshot; a database that cannot be read is a StoreConflict."""
        with as_conflict(self.shown), self.reader.begin() as connection:
            yield connection

    def close(self) -> None:
        self.writer.dispose()
        self.reader.dispose()


def sqlite(folder: Path) -> Database:
    path = folder / DATABASE
    return Database(str(folder), _sqlite(path, "rwc", "BEGIN IMMEDIATE"), _sqlite(path, "rw", "BEGIN"))


def sqlite_reader(folder: Path) -> sa.Engine:
    """Changes nothing, and needs no right to write."""
    return _sqlite(folder / DATABASE, "ro", "BEGIN")


def sqlite_copy(folder: Path) -> sa.Engine:
    """The database of `folder` in memory, where it may be migrated without touching the folder."""
    memory = sqlite3.connect(":memory:", check_same_thread=False)
    _configure(memory, "memory")
    query = "&".join(f"{key}={value}" for key, value in _query(folder / DATABASE, "ro").items())
    with closing(sqlite3.connect(f"file:{quote(str(folder / DATABASE))}?{query}", uri=True)) as source:
        source.backup(memory)
    engine = sa.create_engine("sqlite+pysqlite://", creator=lambda: memory, poolclass=sa.pool.StaticPool)
    _begin_with(engine, "BEGIN")
    return engine


def postgres(where: str) -> Database:
    """Raises StoreConflict for a URL that is none, or without the driver."""
    url = _postgres_url(where)
    return Database(shown(where), _postgres(url), _postgres(url, isolation_level="REPEATABLE READ"))


def is_url(where: str | Path) -> bool:
    return isinstance(where, str) and "://" in where


def shown(where: str | Path) -> str:
    """`where` as a message may show it: without user, password and options."""
    if not is_url(where):
        return str(where)
    scheme, _, rest = str(where).partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def _postgres_url(where: str) -> sa.engine.URL:
    scheme = where.partition("://")[0]
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise StoreConflict(f"{shown(where)}: not a place for a store; allowed: a folder, or postgresql://HOST/DATABASE")
    try:
        return sa.engine.make_url(where).set(drivername="postgresql+psycopg")
    except (sa.exc.ArgumentError, ValueError) as error:
        raise StoreConflict(f"{shown(where)}: not a URL; it reads postgresql://USER@HOST:PORT/DATABASE") from error


def _postgres(url: sa.engine.URL, **options: Any) -> sa.Engine:
    """Written through at every commit, even where the server's default is not to wait for it."""
    arguments = {"connect_timeout": CONNECT_SECONDS, "application_name": "fedrho"}
    try:
        engine = sa.create_engine(url, pool_pre_ping=True, hide_parameters=True, connect_args=arguments, **options)
    except (ImportError, sa.exc.NoSuchModuleError) as error:
        needed = 'pip install "fedrho[cluster]" "sqlalchemy>=2"'
        raise StoreConflict(f"PostgreSQL needs psycopg 3, and SQLAlchemy 2: {needed}") from error

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, record: object) -> None:
        if connection.execute("SHOW synchronous_commit").fetchone()[0] == "off":
            connection.execute("SET synchronous_commit = on")
        connection.commit()

    return engine


def _sqlite(path: Path, mode: str, begin: str) -> sa.Engine:
    """SQLite as it should be: WAL, written through at every commit, erased pages overwritten, writers begin immediately."""
    query = _query(path, mode) | {"uri": "true"}
    url = sa.engine.URL.create("sqlite+pysqlite", database=f"file:{quote(str(path))}", query=query)
    engine = sa.create_engine(url, poolclass=sa.pool.NullPool, hide_parameters=True)

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, record: object) -> None:
        _configure(connection, mode)

    _begin_with(engine, begin)
    return engine


def _query(path: Path, mode: str) -> dict[str, str]:
    """Whoever may only read cannot make SQLite's own files beside the database, and needs none without a writer."""
    alone = mode == "ro" and not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
    return {"mode": mode} | ({"immutable": "1"} if alone else {})


def _configure(connection: sqlite3.Connection, mode: str) -> None:
    connection.isolation_level = None
    if mode == "rwc":
        connection.execute("PRAGMA journal_mode = WAL")
    for pragma in ("synchronous = FULL", "secure_delete = ON", "foreign_keys = ON", "busy_timeout = 10000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_with(engine: sa.Engine, statement: str) -> None:
    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(statement)
