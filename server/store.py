"""Durable state: in memory, or in a folder with a SQLite database and content-addressed blobs.

FOLDER/fedrho.sqlite   run, releases (hash-chained), noise nodes, participations; one transaction a release
FOLDER/blobs/SHA256    weights (float32), optimizer state (float64) and vectors of noise that later steps need, fsynced before
                       the transaction that names them
FOLDER/published.json  the newest step that may have been seen outside, with its link of the chain; a database that is older,
                       or has another history, is not continued
FOLDER/lock            held by the one server that may write
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from fedrho.privacy.noise import KeptVector, NoiseNode
from fedrho.privacy.zcdp import Rho
from fedrho.server.chain import Entry, History, HistoryBroken, first_link
from fedrho.server.ledger import Charge
from fedrho.server.release import Commit, StoreConflict, Stored
from fedrho.server.tasks import Task, TaskFile

DATABASE = "fedrho.sqlite"
PUBLISHED = "published.json"
SCHEMA_VERSION = 2
KEPT_CHECKPOINTS = 2

metadata = sa.MetaData()
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("run", sa.LargeBinary, primary_key=True),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("tag_key", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)
releases = sa.Table(
    "releases",
    metadata,
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("rho", sa.Float, nullable=False),
    sa.Column("weights_sha256", sa.LargeBinary, nullable=False),
    sa.Column("velocity_sha256", sa.LargeBinary, nullable=False),
    sa.Column("opened_at", sa.Float, nullable=False),
    sa.Column("committed_at", sa.Float, nullable=False),
    sa.Column("link", sa.LargeBinary, nullable=False),
)
noise_nodes = sa.Table(
    "noise_nodes",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("step", sa.Integer, sa.ForeignKey("releases.step"), nullable=False),
    sa.Column("seed", sa.LargeBinary),
    sa.Column("digest", sa.LargeBinary, nullable=False),
)
noise_vectors = sa.Table(
    "noise_vectors",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("step", sa.Integer, sa.ForeignKey("releases.step"), nullable=False),
    sa.Column("dtype", sa.Text, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("live", sa.Boolean, nullable=False),
)
participations = sa.Table(
    "participations",
    metadata,
    sa.Column("tag", sa.LargeBinary, primary_key=True),
    sa.Column("step", sa.Integer, sa.ForeignKey("releases.step"), primary_key=True),
)


class StoreBusy(RuntimeError):
    """Another server holds this folder."""


class MemoryStore:
    """A run that lives as long as this object: for tests and simulations."""

    def __init__(self) -> None:
        self._stored: Stored | None = None

    def create(self, task: Task, run: bytes, tag_key: bytes, start: Commit) -> None:
        if self._stored is not None:
            raise StoreConflict("the store holds a run already")
        self._stored = Stored(run, tag_key, start.charge, start.weights, start.velocity, (), ())

    def load(self, task: Task) -> Stored | None:
        return self._stored

    def commit(self, commit: Commit) -> None:
        before = self._stored
        if before is None or commit.charge.step != before.charge.step + 1:
            raise StoreConflict(f"step {commit.charge.step} does not follow the latest release")
        nodes = tuple(node for node in (*before.nodes, *commit.drawn) if node.name in commit.live)
        tags = () if commit.last else (*before.participations, *((tag, commit.charge.step) for tag in commit.tags))
        tag_key = b"" if commit.last else before.tag_key
        self._stored = Stored(before.run, tag_key, commit.charge, commit.weights, commit.velocity, nodes, tags, commit.kept)


class SqliteStore:
    """A folder, private to its owner. Use as a context manager: one server at a time."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreBusy when another server holds the folder, StoreConflict when it is not a store."""
        self.folder = folder
        with ExitStack() as held, _as_conflict(folder):
            _refuse_foreign(folder)
            (folder / "blobs").mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            held.enter_context(_locked_soon(folder / "lock"))
            self._engine = _engine(folder / DATABASE, "rwc")
            self._prepare()
            self._held = held.pop_all()

    def __enter__(self) -> SqliteStore:
        return self

    def __exit__(self, *details: object) -> None:
        self._held.close()

    def create(self, task: Task, run: bytes, tag_key: bytes, start: Commit) -> None:
        with self._transaction() as connection:
            if connection.execute(sa.select(runs.c.run)).first() is not None:
                raise StoreConflict(f"{self.folder}: holds a run already")
            text = task.file.model_dump_json()
            row = {"run": run, "task": text, "tag_key": tag_key, "created_at": start.committed_at}
            connection.execute(sa.insert(runs).values(row))
            link = self._insert_release(connection, start, first_link(run, text))
        self._publish(run, start.charge.step, link)

    def load(self, task: Task) -> Stored | None:
        with _as_conflict(self.folder), self._engine.connect() as connection:
            run = connection.execute(sa.select(runs)).first()
            if run is None:
                self._check_published(b"", {})
                return None
            _check_same_task(self.folder, run.task, task)
            latest = connection.execute(sa.select(releases).order_by(releases.c.step.desc())).first()
            assert latest is not None
            links = {row.step: row.link for row in connection.execute(sa.select(releases.c.step, releases.c.link))}
            self._check_published(run.run, links)
            live = connection.execute(sa.select(noise_nodes).where(noise_nodes.c.seed.is_not(None)))
            nodes = tuple(NoiseNode(row.name, row.seed, row.digest) for row in live)
            tags = tuple((row.tag, row.step) for row in connection.execute(sa.select(participations)))
            vectors = connection.execute(sa.select(noise_vectors).where(noise_vectors.c.live)).all()
        self._publish(run.run, latest.step, latest.link)
        return Stored(
            run=run.run,
            tag_key=run.tag_key,
            charge=Charge(latest.step, Rho(latest.rho)),
            weights=self._read(latest.weights_sha256, "<f4").astype(np.float32),
            velocity=self._read(latest.velocity_sha256, "<f8").astype(np.float64),
            nodes=nodes,
            participations=tags,
            kept=tuple(KeptVector(row.name, self._read(row.sha256, row.dtype)) for row in vectors),
        )

    def commit(self, commit: Commit) -> None:
        step = commit.charge.step
        with self._transaction() as connection:
            latest = connection.execute(sa.select(releases).order_by(releases.c.step.desc())).first()
            if latest is None or latest.step != step - 1:
                there = latest.step if latest else None
                raise StoreConflict(f"{self.folder}: step {step} does not follow the latest release, {there}")
            link = self._insert_release(connection, commit, latest.link)
            if commit.drawn:
                connection.execute(sa.insert(noise_nodes), [_node_row(node, step, commit.live) for node in commit.drawn])
            _erase_seeds(connection, commit.live)
            _forget_vectors(connection, {one.name for one in commit.kept})
            if commit.tags:
                connection.execute(sa.insert(participations), [{"tag": tag, "step": step} for tag in commit.tags])
            if commit.last:
                connection.execute(sa.delete(participations))
                connection.execute(sa.update(runs).values(tag_key=b""))
            run: bytes = connection.execute(sa.select(runs.c.run)).scalar_one()
        self._publish(run, step, link)

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """All or nothing; a full or broken disk is a StoreConflict."""
        with _as_conflict(self.folder), self._engine.begin() as connection:
            yield connection

    def _prepare(self) -> None:
        with self._transaction() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar()
            if version == 0:
                metadata.create_all(connection)
                connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise StoreConflict(f"{self.folder}: written by another version of fedrho (schema {version})")

    def _publish(self, run: bytes, step: int, link: bytes) -> None:
        """Notes that `step` may be seen from now on, and removes what no latest release names."""
        with _as_conflict(self.folder):
            _write(self.folder / PUBLISHED, json.dumps({"run": run.hex(), "step": step, "link": link.hex()}).encode())
            self._sweep()

    def _check_published(self, run: bytes, links: Mapping[int, bytes]) -> None:
        """A database older than what was published would draw second noise for released steps."""
        if not (self.folder / PUBLISHED).exists() and max(links, default=0) == 0:
            return  # nothing was released, or the process ended between creating the run and saying so
        there, step, link = _read_published(self.folder)
        if there != run or step not in links:
            raise StoreConflict(
                f"{self.folder}: the database is older than what was published (step {step}); continuing would "
                "release steps twice. Put the newest database back, or start a new run in another folder"
            )
        if links[step] != link:
            raise StoreConflict(f"{self.folder}: step {step} was published with another history than the database holds")

    def _insert_release(self, connection: sa.Connection, commit: Commit, before: bytes) -> bytes:
        """Writes the blobs through to the disk first, so that a committed row never points to a missing or torn file."""
        vectors = self._write_vectors(connection, commit)
        entry = Entry(
            step=commit.charge.step,
            attempt=commit.attempt,
            rho=float(commit.charge.rho),
            weights_sha256=self._write_blob(commit.weights.astype("<f4").tobytes()),
            velocity_sha256=self._write_blob(commit.velocity.astype("<f8").tobytes()),
            opened_at=commit.opened_at,
            committed_at=commit.committed_at,
            nodes=tuple((node.name, node.digest) for node in commit.drawn),
            kept=tuple((row["name"], row["dtype"], row["sha256"]) for row in vectors),
        )
        link = entry.link(before)
        row = {column.name: getattr(entry, column.name) for column in releases.c if column.name != "link"}
        connection.execute(sa.insert(releases).values(row | {"link": link}))
        if vectors:
            connection.execute(sa.insert(noise_vectors), vectors)
        return link

    def _write_vectors(self, connection: sa.Connection, commit: Commit) -> list[dict[str, Any]]:
        """Rows of the kept vectors that are new, by name."""
        known = set(connection.execute(sa.select(noise_vectors.c.name)).scalars())
        rows = []
        for one in sorted(commit.kept, key=lambda one: one.name):
            if one.name not in known:
                stored = one.vector.astype(one.vector.dtype.newbyteorder("<"), copy=False)
                sha256 = self._write_blob(stored.tobytes())
                rows.append(
                    {"name": one.name, "step": commit.charge.step, "dtype": stored.dtype.str, "sha256": sha256, "live": True}
                )
        return rows

    def _write_blob(self, data: bytes) -> bytes:
        digest = hashlib.sha256(data).digest()
        path = self.folder / "blobs" / digest.hex()
        if not path.exists():
            _write(path, data)
        return digest

    def _read(self, digest: bytes, dtype: str) -> NDArray[Any]:
        return np.frombuffer(read_blob(self.folder, digest), dtype=dtype)

    def _sweep(self) -> None:
        """Removes blobs that none of the latest releases names, among them those of a crash before its transaction."""
        with self._engine.connect() as connection:
            query = sa.select(releases.c.weights_sha256, releases.c.velocity_sha256).order_by(releases.c.step.desc())
            kept = {digest.hex() for row in connection.execute(query.limit(KEPT_CHECKPOINTS)) for digest in row}
            kept |= {
                digest.hex()
                for digest in connection.execute(sa.select(noise_vectors.c.sha256).where(noise_vectors.c.live)).scalars()
            }
        for path in (self.folder / "blobs").iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)


def _read_published(folder: Path) -> tuple[bytes, int, bytes]:
    """The run, the newest published step and its link."""
    try:
        published = json.loads((folder / PUBLISHED).read_text())
        return bytes.fromhex(published["run"]), int(published["step"]), bytes.fromhex(published["link"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StoreConflict(f"{folder}: {PUBLISHED} is missing or damaged, so what was published is unknown") from error


@dataclass(frozen=True)
class RunStatus:
    """How far a run is, read beside a server or after it."""

    file: TaskFile
    run: bytes
    step: int
    rho: float
    weights_sha256: bytes
    created_at: float
    committed_at: float
    running: bool


def read_status(folder: Path) -> RunStatus | None:
    """The run in `folder`, or None when there is none; changes nothing."""
    if not (folder / DATABASE).exists():
        return None
    with _as_conflict(folder), _engine(folder / DATABASE, "ro").connect() as connection:
        if connection.exec_driver_sql("PRAGMA user_version").scalar() == 0:
            return None  # a server is just creating it
        run = connection.execute(sa.select(runs)).first()
        latest = connection.execute(sa.select(releases).order_by(releases.c.step.desc())).first()
    if run is None or latest is None:
        return None
    return RunStatus(
        file=TaskFile.model_validate_json(run.task),
        run=run.run,
        step=latest.step,
        rho=latest.rho,
        weights_sha256=latest.weights_sha256,
        created_at=run.created_at,
        committed_at=latest.committed_at,
        running=_is_locked(folder / "lock"),
    )


def locate(path: Path) -> Path:
    """The store's folder, given it, its database file, or a demo's folder around it."""
    for folder in (path, path / "server", path.parent if path.is_file() else path):
        if (folder / DATABASE).exists():
            return folder
    raise StoreConflict(f"{path}: no run here; `fedrho serve TASK.toml --store FOLDER` makes one")


def read_history(folder: Path) -> History:
    """All that `chain.check` needs, read beside a server or after it; changes nothing. Raises StoreConflict without a run."""
    if not (folder / DATABASE).exists():
        raise StoreConflict(f"{folder}: no run here")
    there, step, link = _read_published(folder)  # first, so that the database cannot be older
    with _as_conflict(folder), _engine(folder / DATABASE, "ro").connect() as connection:
        if connection.exec_driver_sql("PRAGMA user_version").scalar() != SCHEMA_VERSION:
            raise StoreConflict(f"{folder}: written by another version of fedrho, or not complete yet")
        found = connection.execute(sa.select(runs)).all()
        if len(found) != 1:
            raise StoreConflict(f"{folder}: holds {len(found)} runs, not one")
        (run,) = found
        rows = connection.execute(sa.select(releases).order_by(releases.c.step)).all()
        nodes: dict[int, list[tuple[str, bytes]]] = {}
        for node in connection.execute(sa.select(noise_nodes).order_by(sa.text("rowid"))):
            nodes.setdefault(node.step, []).append((node.name, node.digest))
        kept: dict[int, list[tuple[str, str, bytes]]] = {}
        for vector in connection.execute(sa.select(noise_vectors).order_by(noise_vectors.c.name)):
            kept.setdefault(vector.step, []).append((vector.name, vector.dtype, vector.sha256))
    if there != run.run:
        raise StoreConflict(f"{folder}: {PUBLISHED} is about another run")
    strangers = {*nodes, *kept} - {row.step for row in rows}
    if strangers:
        raise HistoryBroken(f"{folder}: holds noise of step {min(strangers)}, which was never released")
    fields = [column.name for column in releases.c if column.name != "link"]
    return History(
        run=run.run,
        task=run.task,
        entries=tuple(
            Entry(
                **{name: getattr(row, name) for name in fields},
                nodes=tuple(nodes.get(row.step, ())),
                kept=tuple(kept.get(row.step, ())),
            )
            for row in rows
        ),
        links=tuple(row.link for row in rows),
        published_step=step,
        published_link=link,
    )


def read_blob(folder: Path, digest: bytes) -> bytes:
    """The bytes named `digest`; raises StoreConflict when they are missing or others."""
    try:
        data = (folder / "blobs" / digest.hex()).read_bytes()
    except FileNotFoundError as error:
        raise StoreConflict(f"{folder}: blob {digest.hex()[:12]} is missing") from error
    if hashlib.sha256(data).digest() != digest:
        raise StoreConflict(f"{folder}: blob {digest.hex()[:12]} is damaged")
    return data


def _node_row(node: NoiseNode, step: int, live: frozenset[str]) -> dict[str, Any]:
    return {"name": node.name, "step": step, "seed": node.seed if node.name in live else None, "digest": node.digest}


def _erase_seeds(connection: sa.Connection, live: frozenset[str]) -> None:
    """Forgets the seeds that nothing needs any more; the digests stay, as a record."""
    held = connection.execute(sa.select(noise_nodes.c.name).where(noise_nodes.c.seed.is_not(None))).scalars()
    done = [{"done": name} for name in held if name not in live]
    if done:
        connection.execute(sa.update(noise_nodes).where(noise_nodes.c.name == sa.bindparam("done")).values(seed=None), done)


def _forget_vectors(connection: sa.Connection, live: set[str]) -> None:
    """Their files go with the sweep; name and digest stay, as a record."""
    held = connection.execute(sa.select(noise_vectors.c.name).where(noise_vectors.c.live)).scalars()
    done = [{"done": name} for name in held if name not in live]
    if done:
        connection.execute(sa.update(noise_vectors).where(noise_vectors.c.name == sa.bindparam("done")).values(live=False), done)


def _check_same_task(folder: Path, stored: str, task: Task) -> None:
    there, here = json.loads(stored), json.loads(task.file.model_dump_json())
    changed = sorted(_differences("", there, here))
    if changed:
        raise StoreConflict(f"{folder}: holds a run of another task ({'; '.join(changed)}); choose another folder")


def _differences(prefix: str, there: Any, here: Any) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in there.keys() | here.keys():
            yield from _differences(f"{prefix}.{key}" if prefix else key, there.get(key), here.get(key))
    elif there != here:
        yield f"{prefix} is {there} there, {here} here"


def _engine(path: Path, mode: str) -> sa.Engine:
    """SQLite as it should be: WAL, written through at every commit, erased pages overwritten, writers begin immediately."""
    query = {"mode": mode, "uri": "true"}
    if mode == "ro" and not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists():
        query["immutable"] = "1"  # whoever may only read cannot make SQLite's own files beside it
    url = sa.URL.create("sqlite+pysqlite", database=f"file:{quote(str(path))}", query=query)
    engine = sa.create_engine(url, poolclass=sa.NullPool)

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, record: object) -> None:
        connection.isolation_level = None
        if mode != "ro":
            connection.execute("PRAGMA journal_mode = WAL")
        for pragma in ("synchronous = FULL", "secure_delete = ON", "foreign_keys = ON", "busy_timeout = 10000"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if mode == "ro" else "BEGIN IMMEDIATE")

    return engine


def _write(path: Path, data: bytes) -> None:
    """The file exists whole or not at all, and survives a loss of power."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    with _directory(path.parent) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _refuse_foreign(folder: Path) -> None:
    """Somebody's own folder is not taken over."""
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in (DATABASE, PUBLISHED, "lock")):
        raise StoreConflict(f"{folder}: holds other files and no run; choose a new or empty folder")


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


def _is_locked(path: Path) -> bool:
    try:
        _locked(path).close()
    except StoreBusy:
        return True
    except OSError:
        return False
    return False


@contextmanager
def _as_conflict(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sa.exc.DatabaseError) as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise StoreConflict(f"{folder}: not a usable store ({reason})") from error
