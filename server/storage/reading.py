"""A store read beside its server, or after it; nothing here changes anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from fedrho.server.chain import Entry, History, HistoryBroken
from fedrho.server.release import RunState, StoreConflict
from fedrho.server.storage import blobs, databases, migrations, published
from fedrho.server.storage.blobs import FolderObjects, Objects
from fedrho.server.storage.databases import DATABASE, Database
from fedrho.server.storage.leader import is_led, is_locked
from fedrho.server.storage.published import Published
from fedrho.server.storage.queries import Latest, latest, read_file
from fedrho.server.storage.schema import HEAD, as_conflict, noise_nodes, noise_vectors, population, releases
from fedrho.server.tasks import TaskFile


@dataclass(frozen=True)
class RunStatus:
    """How far a run is, and whether a server has its store open; times are in seconds since 1970."""

    file: TaskFile
    run: bytes
    state: RunState
    step: int
    rho: float
    weights_sha256: bytes
    created_at: float
    committed_at: float
    running: bool


def locate(where: str | Path) -> str | Path:
    """The store, given its URL, its folder, its database file, or a demo's folder around it."""
    if databases.is_url(where):
        return where
    path = Path(where)
    for folder in _candidates(path):
        if _is_there(folder):
            return folder
    raise StoreConflict(f"{path}: no run here; `fedrho serve TASK.toml --store FOLDER` makes one")


def _candidates(path: Path) -> Iterator[Path]:
    """One after the other, since who may not enter a folder cannot tell what is in it."""
    yield path
    yield path / "server"
    yield path.parent if path.is_file() else path


def _is_there(folder: Path) -> bool:
    """Whether there is a database; raises StoreConflict where nobody lets us see."""
    try:
        return (folder / DATABASE).exists()
    except PermissionError as error:
        raise StoreConflict(
            f"{folder}: not yours to read ({error.strerror}); ask its owner, "
            "or a running server: `fedrho status` and its like take --operator HOST:PORT with --token-file FILE"
        ) from error


def read_status(where: str | Path) -> tuple[RunStatus, ...]:
    """Every run of a store, by creation; none where there is no store yet.

    Raises StoreConflict for a database that is older than what was published: what it says was spent is too little.
    """
    with _opened(where) as database:
        if database is None:
            return ()
        with as_conflict(database.shown):
            objects = _objects(where, database)
            notes = published.read_all(objects)  # first, so that the database cannot be older
        with database.reading() as connection:
            found = latest(connection)
        for row in found:
            note = notes.get(row.run)
            published.check(objects, note if note and note.step > row.step else None, {})
        running = is_led(database) if databases.is_url(where) else is_locked(Path(where))
    return tuple(_status(database.shown, row, running) for row in found)


def latest_status(where: str | Path) -> RunStatus | None:
    """The run that was created last."""
    return next(reversed(read_status(where)), None)


def read_history(where: str | Path, run: bytes | str | None = None) -> History:
    """All that `chain.check` needs of a run, by its identity or its name; of the only one, if none is named.

    Raises StoreConflict without that run.
    """
    with _noted(where) as (database, notes), database.reading() as connection:
        chosen = _choose(database.shown, latest(connection), run)
        return _history(connection, database.shown, chosen, notes)


def read_histories(where: str | Path) -> tuple[History, ...]:
    """Those of all runs of a store, by creation; raises HistoryBroken when one that was published is not there."""
    with _noted(where) as (database, notes), database.reading() as connection:
        found = latest(connection)
        if not found and not notes:
            raise StoreConflict(f"{database.shown}: holds no run")
        missing = notes.keys() - {row.run for row in found}
        if missing:
            raise HistoryBroken(
                f"{database.shown}: run {min(missing).hex()[:8]} was published, but the database does not know it"
            )
        return tuple(_history(connection, database.shown, row, notes) for row in found)


def read_budget(where: str | Path) -> float | None:
    """What all runs of a store may spend together, where somebody has set it."""
    with _opened(where) as database:
        if database is None:
            return None
        with database.reading() as connection:
            found: float | None = connection.execute(sa.select(population.c.budget)).scalar()
            return found


def read_blob(where: str | Path, digest: bytes) -> bytes:
    """The bytes named `digest`; raises StoreConflict when they are missing or others."""
    if not databases.is_url(where):
        with as_conflict(str(where)):
            return blobs.read(FolderObjects(Path(where)), digest)
    with _opened(where) as database:
        if database is None:
            raise StoreConflict(f"{databases.shown(where)}: no run here")
        with as_conflict(database.shown):
            return blobs.read(_objects(where, database), digest)


@contextmanager
def _noted(where: str | Path) -> Iterator[tuple[Database, Mapping[bytes, Published]]]:
    """With what was published, read first, so that the database cannot be older than that."""
    with _opened(where) as database:
        if database is None:
            raise StoreConflict(f"{databases.shown(where)}: no run here")
        with as_conflict(database.shown):
            notes = published.read_all(_objects(where, database))
        yield database, notes


@contextmanager
def _opened(where: str | Path) -> Iterator[Database | None]:
    """None where there is no store yet; an older one is migrated in memory."""
    if databases.is_url(where):
        database = databases.postgres(str(where))
    elif not _is_there(Path(where)):
        yield None
        return
    else:
        with as_conflict(str(where)):
            reader = databases.sqlite_reader(Path(where))
            database = Database(str(where), reader, reader)
    try:
        with database.reading() as connection:
            there = migrations.revision(connection, database.shown)
        if there is not None and there != HEAD:
            database = _migrated(Path(where), database, there)
        yield None if there is None else database
    finally:
        database.close()


def _migrated(folder: Path, old: Database, before: str) -> Database:
    if databases.is_url(old.shown):
        raise StoreConflict(f"{old.shown}: written by an older version of fedrho; start its server once, which migrates it")
    with as_conflict(old.shown):
        copy = databases.sqlite_copy(folder)
        with copy.begin() as connection:
            migrations.upgrade(connection, old.shown, before)
    return Database(old.shown, copy, copy)


def _objects(where: str | Path, database: Database) -> Objects:
    if not databases.is_url(where):
        return FolderObjects(Path(where))
    with database.reading() as connection:
        place = connection.execute(sa.select(population.c.blobs)).scalar()
    if place is None:
        raise StoreConflict(f"{database.shown}: no run here")
    return blobs.open_objects(place)


def _choose(shown: str, found: list[Latest], run: bytes | str | None) -> Latest:
    chosen = [row for row in found if run is None or run in (row.run, row.name)]
    if len(chosen) == 1:
        return chosen[0]
    names = ", ".join(row.name for row in found)
    if not found:
        raise StoreConflict(f"{shown}: holds no run")
    if chosen:
        raise StoreConflict(f"{shown}: holds {len(found)} runs; name one of {names}")
    raise StoreConflict(f"{shown}: holds no such run; it holds {names}")


def _history(connection: sa.Connection, shown: str, row: Latest, notes: Mapping[bytes, Published]) -> History:
    if row.run not in notes:
        raise StoreConflict(f"{shown}: the note of what was published is missing or damaged, or another run's")
    entries, links = _entries(connection, shown, row.run)
    return History(row.run, row.task, entries, links, notes[row.run].step, notes[row.run].link)


def _entries(connection: sa.Connection, shown: str, run: bytes) -> tuple[tuple[Entry, ...], tuple[bytes, ...]]:
    rows = connection.execute(sa.select(releases).where(releases.c.run == run).order_by(releases.c.step)).all()
    nodes: dict[int, list[tuple[str, bytes]]] = {}
    drawn = sa.select(noise_nodes).where(noise_nodes.c.run == run).order_by(noise_nodes.c.step, noise_nodes.c.position)
    for node in connection.execute(drawn):
        nodes.setdefault(node.step, []).append((node.name, node.digest))
    kept: dict[int, list[tuple[str, str, bytes]]] = {}
    for vector in connection.execute(sa.select(noise_vectors).where(noise_vectors.c.run == run)):
        kept.setdefault(vector.step, []).append((vector.name, vector.dtype, vector.sha256))
    strangers = {*nodes, *kept} - {row.step for row in rows}
    if strangers:
        raise HistoryBroken(f"{shown}: holds noise of step {min(strangers)}, which was never released")
    fields = [column.name for column in releases.c if column.name not in ("run", "link")]
    entries = (
        Entry(
            **{name: getattr(row, name) for name in fields},
            nodes=tuple(nodes.get(row.step, ())),
            kept=tuple(sorted(kept.get(row.step, ()))),
        )
        for row in rows
    )
    return tuple(entries), tuple(row.link for row in rows)


def _status(shown: str, row: Latest, running: bool) -> RunStatus:
    return RunStatus(
        file=read_file(shown, row.task),
        run=row.run,
        state=row.state,
        step=row.step,
        rho=row.rho,
        weights_sha256=row.weights_sha256,
        created_at=row.created_at,
        committed_at=row.committed_at,
        running=running,
    )
