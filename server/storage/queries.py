"""What is asked of a store's tables, by its writer and by whoever reads beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from fedrho.privacy.zcdp import Rho
from fedrho.server.chain import HistoryBroken
from fedrho.server.ledger import Charge
from fedrho.server.release import RunRecord, RunState, StoreConflict
from fedrho.server.storage.schema import noise_vectors, releases, runs
from fedrho.server.tasks import TaskFile

KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Latest:
    """A run and its latest release."""

    run: bytes
    name: str
    task: str
    state: RunState
    tag_key: bytes
    created_at: float
    step: int
    rho: float
    weights_sha256: bytes
    velocity_sha256: bytes
    committed_at: float
    link: bytes

    @property
    def charge(self) -> Charge:
        return Charge(self.step, Rho(self.rho))


def latest(connection: sa.Connection) -> list[Latest]:
    """Every run, by creation."""
    return [_latest(row) for row in connection.execute(_latest_query())]


def latest_of(connection: sa.Connection, run: bytes) -> Latest | None:
    row = connection.execute(_latest_query().where(runs.c.run == run)).first()
    return None if row is None else _latest(row)


def record(shown: str, row: Latest) -> RunRecord:
    file = read_file(shown, row.task)
    return RunRecord(row.run, file, row.state, row.step, Rho(row.rho), row.created_at, row.committed_at, row.weights_sha256)


def read_file(shown: str, text: str) -> TaskFile:
    try:
        return TaskFile.model_validate_json(text)
    except ValueError as error:
        raise StoreConflict(f"{shown}: holds a task that cannot be read; it was changed, or is a newer version's") from error


def live_blobs(connection: sa.Connection) -> set[bytes]:
    """Digests of what the latest releases of every run name, and of vectors that later steps need."""
    recent = (releases.c.run == runs.c.run) & (releases.c.step > _newest_step() - KEPT_CHECKPOINTS)
    query = sa.select(releases.c.weights_sha256, releases.c.velocity_sha256).select_from(runs.join(releases, recent))
    checkpoints = connection.execute(query)
    vectors = connection.execute(sa.select(noise_vectors.c.sha256).where(noise_vectors.c.live)).scalars()
    return {digest for row in checkpoints for digest in row} | set(vectors)


def _newest_step() -> Any:
    """Of a run: one look at the end of an index, however many steps there are."""
    of_run = releases.alias("of_run")
    return sa.select(sa.func.max(of_run.c.step)).where(of_run.c.run == runs.c.run).correlate(runs).scalar_subquery()


def _latest_query() -> Any:
    both = runs.outerjoin(releases, (releases.c.run == runs.c.run) & (releases.c.step == _newest_step()))
    of_run = [runs.c[name] for name in ("run", "name", "task", "state", "tag_key", "created_at")]
    of_release = [releases.c[name] for name in ("step", "rho", "weights_sha256", "velocity_sha256", "committed_at", "link")]
    return sa.select(*of_run, *of_release).select_from(both).order_by(runs.c.number)


def _latest(row: Any) -> Latest:
    """A run begins with the release of its start; one without would go uncounted."""
    if row.step is None:
        raise HistoryBroken(f"run {row.name!r}: no step is stored; its releases were deleted")
    try:
        return Latest(**dict(row._mapping) | {"state": RunState(row.state)})
    except ValueError as error:
        raise HistoryBroken(f"run {row.name!r}: its state was changed to something that is none") from error
