"""A commit as what becomes durable: blobs, and rows that name them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from fedrho.server.chain import Entry
from fedrho.server.release import Commit
from fedrho.server.storage import blobs
from fedrho.server.storage.schema import noise_nodes, noise_vectors, participations, releases, runs


@dataclass(frozen=True, eq=False)
class Packed:
    """One commit: its entry in the chain, the blobs by key, and the commit itself."""

    commit: Commit
    entry: Entry
    blobs: dict[str, bytes]


def pack(commit: Commit, known: Collection[str]) -> Packed:
    """`known` names the vectors that were written down before."""
    stored: dict[str, bytes] = {}

    def keep(data: bytes) -> bytes:
        digest, key = blobs.name_of(data)
        stored[key] = data
        return digest

    kept = []
    for one in sorted(commit.kept, key=lambda one: one.name):
        if one.name not in known:
            vector = one.vector.astype(one.vector.dtype.newbyteorder("<"), copy=False)
            kept.append((one.name, vector.dtype.str, keep(vector.tobytes())))
    entry = Entry(
        step=commit.charge.step,
        attempt=commit.attempt,
        rho=float(commit.charge.rho),
        weights_sha256=keep(commit.weights.astype("<f4").tobytes()),
        velocity_sha256=keep(commit.velocity.astype("<f8").tobytes()),
        opened_at=commit.opened_at,
        committed_at=commit.committed_at,
        nodes=tuple((node.name, node.digest) for node in commit.drawn),
        kept=tuple(kept),
    )
    return Packed(commit, entry, stored)


def insert_release(connection: sa.Connection, run: bytes, packed: Packed, before: bytes) -> bytes:
    """The release with its noise and tags; returns its link of the chain. Forgets what no later step needs."""
    entry, commit = packed.entry, packed.commit
    link = entry.link(before)
    own = {column.name: getattr(entry, column.name) for column in releases.c if column.name not in ("run", "link")}
    connection.execute(sa.insert(releases).values(own | {"run": run, "link": link}))
    key = {"run": run, "step": entry.step}
    _insert(connection, noise_nodes, (key | row for row in _node_rows(commit)))
    rows = ({"name": name, "dtype": dtype, "sha256": sha256, "live": True} for name, dtype, sha256 in entry.kept)
    _insert(connection, noise_vectors, (key | row for row in rows))
    _insert(connection, participations, (key | {"tag": tag} for tag in commit.tags))
    _forget(connection, noise_nodes, noise_nodes.c.seed.is_not(None), run, commit.live, {"seed": None})
    _forget(connection, noise_vectors, noise_vectors.c.live, run, {one.name for one in commit.kept}, {"live": False})
    return link


def erase(connection: sa.Connection, run: bytes) -> None:
    """Seeds, kept vectors, tags and their key, once no step will need them; digests stay, as a record."""
    connection.execute(sa.update(noise_nodes).where(noise_nodes.c.run == run).values(seed=None))
    connection.execute(sa.update(noise_vectors).where(noise_vectors.c.run == run).values(live=False))
    connection.execute(sa.delete(participations).where(participations.c.run == run))
    connection.execute(sa.update(runs).where(runs.c.run == run).values(tag_key=b""))


def _node_rows(commit: Commit) -> Iterable[dict[str, Any]]:
    for position, node in enumerate(commit.drawn):
        seed = node.seed if node.name in commit.live else None
        yield {"name": node.name, "position": position, "seed": seed, "digest": node.digest}


def _insert(connection: sa.Connection, table: sa.Table, rows: Iterable[dict[str, Any]]) -> None:
    found = list(rows)
    if found:
        connection.execute(sa.insert(table), found)


def _forget(
    connection: sa.Connection,
    table: sa.Table,
    held: sa.ColumnElement[bool],
    run: bytes,
    live: Collection[str],
    values: dict[str, Any],
) -> None:
    names = connection.execute(sa.select(table.c.name).where((table.c.run == run) & held)).scalars()
    done = [{"done": name} for name in names if name not in live]
    if done:
        named = (table.c.run == run) & (table.c.name == sa.bindparam("done"))
        connection.execute(sa.update(table).where(named).values(values), done)
