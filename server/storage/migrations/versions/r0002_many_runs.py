"""Many runs in one store, whose prices add up: every row names its run, runs have states, the population has one row.

Order of noise nodes within a step, which the chain is over, was the order of the rows; here it is a column.
"""

import json
import os
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TABLES = ("participations", "noise_vectors", "noise_nodes", "releases", "runs")
"""Those that refer to others first."""


def upgrade() -> None:
    bind = op.get_bind()
    held = {} if bind.dialect.name != "sqlite" else {name: _rows(name) for name in TABLES}
    for name in TABLES:
        op.drop_table(name)
    tables = _create_tables()
    bind.execute(sa.insert(tables["population"]).values(id=os.urandom(16)))
    for run in held.get("runs", []):
        _insert(tables["runs"], [_run(run, held["releases"])])
        _insert(tables["releases"], _of(run, held["releases"]))
        _insert(tables["noise_nodes"], _of(run, _positioned(held["noise_nodes"])))
        _insert(tables["noise_vectors"], [row | {"live": bool(row["live"])} for row in _of(run, held["noise_vectors"])])
        _insert(tables["participations"], _of(run, held["participations"]))
    if bind.dialect.name == "sqlite":
        bind.exec_driver_sql("PRAGMA user_version = 3")  # so that fedrho 0.1 refuses it


def _rows(name: str) -> list[dict[str, Any]]:
    found = op.get_bind().execute(sa.text(f"SELECT * FROM {name} ORDER BY rowid"))
    columns = list(found.keys())
    return [dict(zip(columns, row, strict=True)) for row in found]


def _insert(table: sa.Table, rows: list[dict[str, Any]]) -> None:
    if rows:
        op.get_bind().execute(sa.insert(table), rows)


def _of(run: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"run": run["run"]} | row for row in rows]


def _run(run: dict[str, Any], releases: list[dict[str, Any]]) -> dict[str, Any]:
    task = json.loads(run["task"])
    ended = max((row["step"] for row in releases), default=0) >= task["steps"]
    return run | {"number": 1, "name": task["name"], "state": "finished" if ended else "active"}


def _positioned(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_step = groupby(sorted(nodes, key=lambda node: node["step"]), key=lambda node: node["step"])  # sorted() keeps the order
    return [node | {"position": position} for _, group in by_step for position, node in enumerate(group)]


def _create_tables() -> dict[str, sa.Table]:
    made = [
        op.create_table(
            "population",
            sa.Column("id", sa.LargeBinary, nullable=False),
            sa.Column("budget", sa.Float),
            sa.Column("blobs", sa.Text),
            sa.Column("leader", sa.LargeBinary),
            sa.Column("expires_at", sa.Float),
            sa.PrimaryKeyConstraint("id", name="pk_population"),
        ),
        op.create_table(
            "runs",
            sa.Column("run", sa.LargeBinary, nullable=False),
            sa.Column("number", sa.Integer, nullable=False),
            sa.Column("name", sa.String(63), nullable=False),
            sa.Column("task", sa.Text, nullable=False),
            sa.Column("state", sa.Text, nullable=False),
            sa.Column("tag_key", sa.LargeBinary, nullable=False),
            sa.Column("created_at", sa.Float, nullable=False),
            sa.PrimaryKeyConstraint("run", name="pk_runs"),
            sa.UniqueConstraint("name", name="uq_name"),
        ),
        op.create_table(
            "releases",
            sa.Column("run", sa.LargeBinary, nullable=False),
            sa.Column("step", sa.Integer, nullable=False),
            sa.Column("attempt", sa.Integer, nullable=False),
            sa.Column("rho", sa.Float, nullable=False),
            sa.Column("weights_sha256", sa.LargeBinary, nullable=False),
            sa.Column("velocity_sha256", sa.LargeBinary, nullable=False),
            sa.Column("opened_at", sa.Float, nullable=False),
            sa.Column("committed_at", sa.Float, nullable=False),
            sa.Column("link", sa.LargeBinary, nullable=False),
            sa.PrimaryKeyConstraint("run", "step", name="pk_releases"),
            sa.ForeignKeyConstraint(["run"], ["runs.run"], name="fk_releases_runs"),
        ),
        op.create_table(
            "noise_nodes",
            sa.Column("run", sa.LargeBinary, nullable=False),
            sa.Column("name", sa.String(200), nullable=False),
            sa.Column("step", sa.Integer, nullable=False),
            sa.Column("position", sa.Integer, nullable=False),
            sa.Column("seed", sa.LargeBinary),
            sa.Column("digest", sa.LargeBinary, nullable=False),
            sa.PrimaryKeyConstraint("run", "name", name="pk_noise_nodes"),
            _of_a_release("noise_nodes"),
        ),
        op.create_table(
            "noise_vectors",
            sa.Column("run", sa.LargeBinary, nullable=False),
            sa.Column("name", sa.String(200), nullable=False),
            sa.Column("step", sa.Integer, nullable=False),
            sa.Column("dtype", sa.Text, nullable=False),
            sa.Column("sha256", sa.LargeBinary, nullable=False),
            sa.Column("live", sa.Boolean, nullable=False),
            sa.PrimaryKeyConstraint("run", "name", name="pk_noise_vectors"),
            _of_a_release("noise_vectors"),
        ),
        op.create_table(
            "participations",
            sa.Column("run", sa.LargeBinary, nullable=False),
            sa.Column("tag", sa.LargeBinary, nullable=False),
            sa.Column("step", sa.Integer, nullable=False),
            sa.PrimaryKeyConstraint("run", "tag", "step", name="pk_participations"),
            _of_a_release("participations"),
        ),
    ]
    return {table.name: table for table in made}


def _of_a_release(name: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["run", "step"], ["releases.run", "releases.step"], name=f"fk_{name}_releases")
