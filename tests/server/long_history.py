"""A run with thousands of releases whose chain is whole, written into its store by hand: real releases would take minutes."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np

from fedrho.privacy.noise import SystemNoise
from fedrho.server.chain import Entry, _names
from fedrho.server.coordinator import Surroundings, open_run
from fedrho.server.storage.store import open_store, read_history
from fedrho.server.tasks import Task

BEGAN = 1_790_000_000.0


def long_history(folder: Path, task: Task, steps: int, seconds: float = 60.0, spread: float = 0.0) -> bytes:
    """The run; one release every `seconds`, give or take a share of them."""
    run = bytes(range(16))
    with open_store(folder) as store:
        open_run(
            task, Surroundings(SystemNoise(), store, lambda: run, []), lambda: np.zeros(4, dtype=np.float32), 1_790_000_000.0
        )
    history = read_history(folder, run)
    start, link = history.entries[0], history.links[0]
    releases, nodes, vectors = [], [], []
    ended = BEGAN
    for step, (drawn, written) in enumerate(_names(task, steps + 1)):
        if step == 0:
            continue
        digests = tuple((name, hashlib.sha256(name.encode()).digest()) for name in drawn)
        kept = tuple((name, "<i8", hashlib.sha256(name.encode()).digest()) for name in written)
        began, ended = ended, ended + seconds * (1.0 + spread * (2.0 * (step * 0.618 % 1.0) - 1.0))
        rho = task.mechanism.cost(step, task.participation)
        entry = Entry(step, 1, rho, start.weights_sha256, start.velocity_sha256, began, ended, digests, kept)
        link = entry.link(link)
        weights = (entry.weights_sha256, entry.velocity_sha256)
        releases.append((run, step, 1, rho, *weights, entry.opened_at, entry.committed_at, link))
        vectors += [(run, name, step, kind, digest, False) for name, kind, digest in kept]
        nodes += [(run, name, step, place, None, digest) for place, (name, digest) in enumerate(digests)]
    with closing(sqlite3.connect(folder / "fedrho.sqlite")) as database, database:
        database.executemany(f"INSERT INTO releases VALUES ({', '.join('?' * 9)})", releases)
        database.executemany("INSERT INTO noise_nodes VALUES (?, ?, ?, ?, ?, ?)", nodes)
        database.executemany("INSERT INTO noise_vectors VALUES (?, ?, ?, ?, ?, ?)", vectors)
    note = {"run": run.hex(), "step": steps, "link": link.hex()}
    (folder / "published" / f"{run.hex()}.{steps}").write_text(json.dumps(note))
    (folder / "published" / f"{run.hex()}.0").unlink()
    return run
