"""The durable store: rows in a database, blobs beside it, and what was published noted there too.

A commit: blobs, each durable before the next thing happens; then one transaction that checks who leads, which step is next and
what is left of the budget, and holds everything else; then the note that the step may be seen; then the sweep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

import numpy as np
import sqlalchemy as sa

from fedrho.privacy.noise import KeptVector, NoiseNode
from fedrho.privacy.zcdp import Rho
from fedrho.server.chain import first_link
from fedrho.server.release import Commit, RunRecord, RunState, StoreConflict, Stored
from fedrho.server.storage import blobs, published, store_rules
from fedrho.server.storage.blobs import BLOBS, Objects
from fedrho.server.storage.databases import Database
from fedrho.server.storage.leader import Leader
from fedrho.server.storage.published import Published
from fedrho.server.storage.queries import Latest, latest, latest_of, live_blobs, read_file, record
from fedrho.server.storage.rows import Packed, erase, insert_release, pack
from fedrho.server.storage.schema import as_conflict, noise_nodes, noise_vectors, participations, population, releases, runs
from fedrho.server.tasks import Task

BACKUP = "fedrho.sqlite.backup"
"""Beside the database of a folder that was migrated: what it was before."""


class SqlStore:
    """Made by `open_store`; a context manager, and its one writer as long as it is open."""

    def __init__(self, database: Database, objects: Objects, leader: Leader) -> None:
        """Raises StoreConflict when what was published says that this database must not be continued."""
        self.shown = database.shown
        self._database, self._objects, self._leader = database, objects, leader
        self._unswept = Counter[str]()  # blobs of commits under way, which no row names yet
        self._sweeping = Lock()
        with as_conflict(self.shown):
            self._publish_again()
            published.tidy(objects)
        self._sweep()

    def __enter__(self) -> SqlStore:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def leads(self) -> bool:
        """False once another server may lead; the next commit would fail."""
        return self._leader.sure()

    def close(self) -> None:
        self._leader.close()
        self._database.close()

    def runs(self) -> tuple[RunRecord, ...]:
        with self._database.reading() as connection:
            return tuple(record(self.shown, row) for row in latest(connection))

    def find(self, task: Task) -> bytes | None:
        with self._database.reading() as connection:
            row = next((row for row in latest(connection) if row.name == task.file.name), None)
        if row is None:
            return None
        store_rules.check_same_task(self.shown, read_file(self.shown, row.task), task.file)
        store_rules.check_not_cancelled(self.shown, row.name, row.state)
        return row.run

    def create(self, task: Task, run: bytes, tag_key: bytes, start: Commit) -> None:
        packed, text, name = pack(start, ()), task.file.model_dump_json(), task.file.name
        with self._blobs_of(packed), self._transaction() as connection:
            taken = sa.select(runs.c.run).where((runs.c.name == name) | (runs.c.run == run))
            if connection.execute(taken).first() is not None:
                raise StoreConflict(f"{self.shown}: holds run {name!r} already")
            number = connection.execute(sa.select(sa.func.count()).select_from(runs)).scalar_one() + 1
            row = {"run": run, "number": number, "name": name, "task": text, "state": RunState.ACTIVE.value}
            connection.execute(sa.insert(runs).values(row | {"tag_key": tag_key, "created_at": start.committed_at}))
            link = insert_release(connection, run, packed, first_link(run, text))
        self._publish(Published(run, start.charge.step, link))

    def load(self, task: Task, run: bytes) -> Stored:
        with self._database.reading() as connection:
            row = self._latest(connection, run)
            store_rules.check_same_task(self.shown, read_file(self.shown, row.task), task.file)
            store_rules.check_not_cancelled(self.shown, row.name, row.state)
            self._check_published(connection, published.read_all(self._objects).get(run), run)
            seeds = sa.select(noise_nodes).where((noise_nodes.c.run == run) & noise_nodes.c.seed.is_not(None))
            nodes = connection.execute(seeds.order_by(noise_nodes.c.step, noise_nodes.c.position)).all()
            tags = connection.execute(sa.select(participations).where(participations.c.run == run)).all()
            kept = sa.select(noise_vectors).where((noise_vectors.c.run == run) & noise_vectors.c.live)
            vectors = connection.execute(kept).all()
            return Stored(
                run=run,
                tag_key=row.tag_key,
                charge=row.charge,
                weights=np.frombuffer(blobs.read(self._objects, row.weights_sha256), "<f4").astype(np.float32),
                velocity=np.frombuffer(blobs.read(self._objects, row.velocity_sha256), "<f8").astype(np.float64),
                nodes=tuple(NoiseNode(node.name, node.seed, node.digest) for node in nodes),
                participations=tuple((tag.tag, tag.step) for tag in tags),
                kept=tuple(
                    KeptVector(one.name, np.frombuffer(blobs.read(self._objects, one.sha256), dtype=one.dtype)) for one in vectors
                ),
            )

    def commit(self, run: bytes, commit: Commit) -> None:
        with self._database.reading() as connection:  # before a blob is written; the transaction looks again
            self._check_next(connection, run, commit)
            known = set(connection.execute(sa.select(noise_vectors.c.name).where(noise_vectors.c.run == run)).scalars())
        packed = pack(commit, known)
        with self._blobs_of(packed), self._transaction() as connection:
            before = self._check_next(connection, run, commit)
            link = insert_release(connection, run, packed, before)
            if commit.last:
                erase(connection, run)
                connection.execute(sa.update(runs).where(runs.c.run == run).values(state=RunState.FINISHED.value))
        self._publish(Published(run, commit.charge.step, link))

    def set_state(self, run: bytes, state: RunState) -> None:
        with self._transaction() as connection:
            row = self._latest(connection, run)
            if not store_rules.check_transition(self.shown, row.name, row.state, state):
                return
            if state is RunState.CANCELLED:
                erase(connection, run)
            connection.execute(sa.update(runs).where(runs.c.run == run).values(state=state.value))
        if state is RunState.CANCELLED:
            with as_conflict(self.shown):
                self._objects.delete(BACKUP)  # it has the seeds
            self._sweep()

    def budget(self) -> Rho | None:
        with self._database.reading() as connection:
            return _budget(connection)

    def set_budget(self, rho: Rho | None) -> None:
        with self._transaction() as connection:
            store_rules.check_budget(rho, [Rho(row.rho) for row in latest(connection)])
            connection.execute(sa.update(population).values(budget=None if rho is None else float(rho)))

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """All or nothing, by the leader alone; a full or broken disk is a StoreConflict."""
        with as_conflict(self.shown), self._database.writer.begin() as connection:
            self._leader.fence(connection)
            yield connection

    @contextmanager
    def _blobs_of(self, packed: Packed) -> Iterator[None]:
        """Written through first, so that a committed row never points to a missing or torn blob; not swept meanwhile."""
        with self._sweeping:
            self._unswept.update(packed.blobs.keys())
        try:
            with as_conflict(self.shown):
                for key, data in packed.blobs.items():
                    self._objects.put(key, data)
            yield
        finally:
            with self._sweeping:
                self._unswept.subtract(packed.blobs.keys())

    def _latest(self, connection: sa.Connection, run: bytes) -> Latest:
        found = latest_of(connection, run)
        if found is None:
            raise StoreConflict(f"{self.shown}: holds no such run")
        return found

    def _check_next(self, connection: sa.Connection, run: bytes, commit: Commit) -> bytes:
        """The link that `commit` follows."""
        row = self._latest(connection, run)
        store_rules.check_next(self.shown, row.name, row.state, row.charge, commit.charge)
        others = [Rho(other.rho) for other in latest(connection) if other.run != run]
        store_rules.check_spending(_budget(connection), row.name, commit.charge.rho, others)
        return row.link

    def _publish(self, note: Published) -> None:
        """Says that a step may be seen from now on, and removes what no latest release names."""
        with as_conflict(self.shown):
            published.publish(self._objects, note)
            self._objects.delete(BACKUP)  # from here on it is older than what was published
        self._sweep()

    def _publish_again(self) -> None:
        """A server that was killed after its commit has not said so; from now on its step is handed out."""
        notes = published.read_all(self._objects)
        with self._database.reading() as connection:
            found = {row.run: row for row in latest(connection)}
            for run in {*notes, *found}:
                self._check_published(connection, notes.get(run), run)
        for run, row in found.items():
            published.publish(self._objects, Published(run, row.step, row.link))

    def _check_published(self, connection: sa.Connection, note: Published | None, run: bytes) -> None:
        links = sa.select(releases.c.step, releases.c.link).where(releases.c.run == run)
        by_step: Mapping[int, bytes] = {row.step: row.link for row in connection.execute(links)}
        published.check(self._objects, note, by_step)

    def _sweep(self) -> None:
        """Removes blobs that no latest release names, among them those of a crash before its transaction.

        What is listed before the transaction that finds us leading was put by nobody who leads after us.
        """
        with as_conflict(self.shown):
            listed = self._objects.keys(BLOBS)
        with self._sweeping:
            with self._transaction() as connection:
                kept = {blobs.key_of(digest) for digest in live_blobs(connection)}
            kept |= {key for key, count in self._unswept.items() if count > 0}
            with as_conflict(self.shown):
                for key in sorted(listed):
                    if key.split(".")[0] not in kept and self._leader.sure():
                        self._objects.delete(key)


def _budget(connection: sa.Connection) -> Rho | None:
    found = connection.execute(sa.select(population.c.budget)).scalar()
    return None if found is None else Rho(found)
