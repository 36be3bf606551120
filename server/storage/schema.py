"""The tables of a store, the same in SQLite and PostgreSQL; migrations/ brings older ones up to them.

population       one row: its identity, its budget, where its blobs are, and the lease of the one server that may write
runs             one row a run: its task as it began, its state, the key of its tags
releases         one row a step, hash-chained: price, digests of the blobs, times
noise_nodes      name and digest of all noise that was drawn, with the seed while a later step needs it
noise_vectors    name and digest of the vectors of noise that were written down, `live` while a later step needs them
participations   which tag took part in which step, where the server's window needs it
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from fedrho.server.release import StoreConflict

HEAD = "0002"
"""The revision of these tables: the latest in migrations/versions."""

metadata = sa.MetaData(
    naming_convention={"pk": "pk_%(table_name)s", "fk": "fk_%(table_name)s_%(referred_table_name)s", "uq": "uq_%(column_0_name)s"}
)
population = sa.Table(
    "population",
    metadata,
    sa.Column("id", sa.LargeBinary, primary_key=True),
    sa.Column("budget", sa.Float),
    sa.Column("blobs", sa.Text),
    sa.Column("leader", sa.LargeBinary),
    sa.Column("expires_at", sa.Float),
)
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("run", sa.LargeBinary, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("name", sa.String(63), nullable=False, unique=True),
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("tag_key", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)
releases = sa.Table(
    "releases",
    metadata,
    sa.Column("run", sa.LargeBinary, sa.ForeignKey("runs.run"), primary_key=True),
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
    sa.Column("run", sa.LargeBinary, primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("seed", sa.LargeBinary),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.ForeignKeyConstraint(["run", "step"], ["releases.run", "releases.step"]),
)
noise_vectors = sa.Table(
    "noise_vectors",
    metadata,
    sa.Column("run", sa.LargeBinary, primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("dtype", sa.Text, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("live", sa.Boolean, nullable=False),
    sa.ForeignKeyConstraint(["run", "step"], ["releases.run", "releases.step"]),
)
participations = sa.Table(
    "participations",
    metadata,
    sa.Column("run", sa.LargeBinary, primary_key=True),
    sa.Column("tag", sa.LargeBinary, primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.ForeignKeyConstraint(["run", "step"], ["releases.run", "releases.step"]),
)


@contextmanager
def as_conflict(shown: str) -> Iterator[None]:
    """What a disk, a database or an object store says in its own words becomes one line about the store."""
    try:
        yield
    except (OSError, sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        said = error.strerror if isinstance(error, OSError) else getattr(error, "orig", None)
        reason = str(said or error).strip().splitlines() or [type(error).__name__]
        hint = "; ask its owner, or choose another" if isinstance(error, PermissionError) else ""
        raise StoreConflict(f"{shown}: not a usable store ({reason[0]}){hint}") from error
