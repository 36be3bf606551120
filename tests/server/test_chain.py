"""The chain over a run's releases: untouched histories give the statement anew, touched ones say where."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrho.privacy.statement import PrivacyStatement
from fedrho.privacy.vectors import ClippedSum
from fedrho.server.chain import Entry, HistoryBroken, check, first_link, read_task
from fedrho.server.release import Attempt, StoreConflict
from fedrho.server.storage.store import open_store, read_history
from fedrho.server.tasks import Task
from tests.server.one_run import SIGNER, OneRun

MakeTask = Callable[..., Task]
MakeEngine = Callable[..., OneRun]


def run(folder: Path, make_engine: MakeEngine, steps: int, algorithm: str = "dp-ftrl") -> PrivacyStatement:
    with open_store(folder) as store:
        engine = make_engine(store=store, algorithm=algorithm)
        for _ in range(steps):
            total = ClippedSum(np.zeros(12, np.int64), engine.task.mechanism.grid)
            engine.install(engine.through_gate(Attempt(1, total, (), 1.0), 2.0), 2.0)
        return engine.statement()


@contextmanager
def database(folder: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(folder / "fedrho.sqlite")) as opened, opened:
        yield opened


@pytest.mark.parametrize("algorithm", ["dp-ftrl", "dp-fedavg"])
@pytest.mark.parametrize("steps", [0, 1, 3, 4])
def test_the_statement_is_derived_anew_at_every_step(
    steps: int, algorithm: str, tmp_path: Path, make_engine: MakeEngine, make_task: MakeTask
) -> None:
    claimed = run(tmp_path, make_engine, steps, algorithm)
    assert check(read_history(tmp_path), make_task(algorithm)) == claimed


def test_a_link_is_the_hash_of_all_before_it(tmp_path: Path, make_engine: MakeEngine) -> None:
    """By hand, from what the database holds."""
    run(tmp_path, make_engine, 2)
    with database(tmp_path) as opened:
        opened.row_factory = sqlite3.Row
        (row,) = opened.execute("SELECT * FROM runs").fetchall()
        link = hashlib.sha256(row["run"] + hashlib.sha256(row["task"].encode()).digest()).digest()
        for release in opened.execute("SELECT * FROM releases ORDER BY step").fetchall():
            nodes = opened.execute("SELECT name, digest FROM noise_nodes WHERE step = ? ORDER BY position", (release["step"],))
            values = {key: value.hex() if isinstance(value, bytes) else value for key, value in dict(release).items()}
            stored = bytes.fromhex(values.pop("link"))
            del values["run"]
            values["nodes"] = [[node["name"], node["digest"].hex()] for node in nodes]
            values["kept"] = []
            text = json.dumps(values, sort_keys=True, separators=(",", ":"))
            link = hashlib.sha256(link + text.encode()).digest()
            assert link == stored
    (published,) = (tmp_path / "published").iterdir()
    assert json.loads(published.read_text())["link"] == link.hex()


CHANGES = {
    "attempt": "UPDATE releases SET attempt = 7 WHERE step = 2",
    "weights": "UPDATE releases SET weights_sha256 = x'00' WHERE step = 2",
    "velocity": "UPDATE releases SET velocity_sha256 = x'00' WHERE step = 2",
    "opened": "UPDATE releases SET opened_at = 0.5 WHERE step = 2",
    "committed": "UPDATE releases SET committed_at = 3 WHERE step = 2",
    "price": "UPDATE releases SET rho = rho / 2 WHERE step = 2",
    "link": "UPDATE releases SET link = x'00' WHERE step = 2",
    "noise": "UPDATE noise_nodes SET digest = x'00' WHERE step = 2",
    "noise name": "UPDATE noise_nodes SET name = 'other' WHERE name = (SELECT name FROM noise_nodes WHERE step = 2 LIMIT 1)",
    "noise left out": "DELETE FROM noise_nodes WHERE step = 2",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_was_changed_afterwards_is_named(change: str, tmp_path: Path, make_engine: MakeEngine, make_task: MakeTask) -> None:
    run(tmp_path, make_engine, 4)
    with database(tmp_path) as opened:
        opened.execute("PRAGMA foreign_keys = OFF")
        opened.execute(change)
    with pytest.raises(HistoryBroken, match="step 2"):
        check(read_history(tmp_path), make_task())


def test_another_task_or_run_breaks_the_chain_at_its_start(tmp_path: Path, make_engine: MakeEngine, make_task: MakeTask) -> None:
    run(tmp_path, make_engine, 2)
    history = read_history(tmp_path)
    for other in (replace(history, run=b"x" * 16), replace(history, task=history.task.replace("small", "large"))):
        with pytest.raises(HistoryBroken, match="step 0"):
            check(other, make_task())


def test_a_step_left_out_is_named(tmp_path: Path, make_engine: MakeEngine, make_task: MakeTask) -> None:
    run(tmp_path, make_engine, 4)
    history = read_history(tmp_path)
    kept = [0, 1, 3, 4]
    shorter = replace(history, entries=tuple(history.entries[i] for i in kept), links=tuple(history.links[i] for i in kept))
    with pytest.raises(HistoryBroken, match="step 2"):
        check(shorter, make_task())


def rechained(run: bytes, task: str, entries: list[Entry]) -> tuple[bytes, ...]:
    links = [first_link(run, task)]
    for entry in entries:
        links.append(entry.link(links[-1]))
    return tuple(links[1:])


def test_a_history_written_anew_with_another_price_is_refused_by_the_accountant(
    tmp_path: Path, make_engine: MakeEngine, make_task: MakeTask
) -> None:
    run(tmp_path, make_engine, 3)
    history = read_history(tmp_path)
    entries = [*history.entries[:3], replace(history.entries[3], rho=history.entries[3].rho / 2)]
    links = rechained(history.run, history.task, entries)
    forged = replace(history, entries=tuple(entries), links=links, published_link=links[-1])
    with pytest.raises(HistoryBroken, match=r"step 3 was charged rho"):
        check(forged, make_task())


def test_a_history_written_anew_is_told_by_a_link_kept_elsewhere(
    tmp_path: Path, make_engine: MakeEngine, make_task: MakeTask
) -> None:
    run(tmp_path, make_engine, 3)
    history = read_history(tmp_path)
    entries = [*history.entries[:2], replace(history.entries[2], opened_at=0.0), history.entries[3]]
    forged = replace(history, entries=tuple(entries), links=rechained(history.run, history.task, entries))
    with pytest.raises(HistoryBroken, match="published with another link"):
        check(forged, make_task())


def test_two_nodes_of_the_same_noise_are_named(tmp_path: Path, make_engine: MakeEngine, make_task: MakeTask) -> None:
    run(tmp_path, make_engine, 3)
    history = read_history(tmp_path)
    (name, _), (_, digest) = history.entries[3].nodes[0], history.entries[1].nodes[0]
    entries = [*history.entries[:3], replace(history.entries[3], nodes=((name, digest), *history.entries[3].nodes[1:]))]
    links = rechained(history.run, history.task, entries)
    forged = replace(history, entries=tuple(entries), links=links, published_link=links[-1])
    with pytest.raises(HistoryBroken, match="same noise as"):
        check(forged, make_task())


@pytest.mark.parametrize("algorithm", ["dp-ftrl", "dp-fedavg"])
def test_a_run_whose_noise_rounds_to_nothing_is_no_forgery(algorithm: str, tmp_path: Path, make_engine: MakeEngine) -> None:
    with open_store(tmp_path) as store:
        engine = make_engine(store=store, algorithm=algorithm, **{"rho = 2.0": "rho = 1e12"})
        for _ in range(4):
            total = ClippedSum(np.zeros(12, np.int64), engine.task.mechanism.grid)
            engine.install(engine.through_gate(Attempt(1, total, (), 1.0), 2.0), 2.0)
    history = read_history(tmp_path)
    assert len({digest for entry in history.entries for _, digest in entry.nodes}) == 1
    assert check(history, engine.task) == engine.statement()


def test_steps_beyond_the_plan_are_refused(tmp_path: Path, make_engine: MakeEngine, make_task: MakeTask) -> None:
    run(tmp_path, make_engine, 4)
    history = read_history(tmp_path)
    entries = [*history.entries, replace(history.entries[4], step=5, nodes=(("x", b"y"),))]
    links = rechained(history.run, history.task, entries)
    with pytest.raises(HistoryBroken, match="priced for 4 steps"):
        check(replace(history, entries=tuple(entries), links=links), make_task())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE releases SET rho = 9e999 WHERE step = 2", "step 2: holds something else"),
        ("UPDATE releases SET attempt = 9e999 WHERE step = 0", "step 0: holds something else"),
        ("UPDATE releases SET weights_sha256 = 1.5 WHERE step = 2", "step 2"),
        ("DELETE FROM releases", "noise of step 1, which was never released|no step is stored|step 0"),
        ("DELETE FROM runs", "holds no run"),
        ("UPDATE runs SET state = 'free'", "its state was changed"),
        ("UPDATE releases SET run = x'02' WHERE step > 2", "noise of step 3, which was never released"),
        ("UPDATE runs SET task = 'garbage'", "step 0: its link does not follow"),
        ("UPDATE runs SET task = replace(task, '\"steps\":4', '\"steps\":5')", "step 0: its link does not follow"),
        ("INSERT INTO noise_nodes SELECT run, 'x', 99, 0, NULL, x'01' FROM runs", "noise of step 99"),
        ("INSERT INTO noise_vectors SELECT run, 'x', 99, '<i8', x'01', 0 FROM runs", "noise of step 99"),
    ],
)
def test_no_tampering_ends_in_anything_but_one_clear_sentence(
    change: str, message: str, tmp_path: Path, make_engine: MakeEngine
) -> None:
    run(tmp_path, make_engine, 4)
    with database(tmp_path) as opened:
        opened.execute("PRAGMA foreign_keys = OFF")
        opened.execute(change)

    def read_and_check() -> PrivacyStatement:
        history = read_history(tmp_path)
        return check(history, read_task(history))

    with pytest.raises((HistoryBroken, StoreConflict), match=message):
        read_and_check()


@pytest.mark.parametrize("step", ["-1", "Infinity", "1e999", "99", "null"])
def test_a_published_step_that_never_was_is_refused(
    step: str, tmp_path: Path, make_engine: MakeEngine, make_task: MakeTask
) -> None:
    run(tmp_path, make_engine, 4)
    (published,) = (tmp_path / "published").iterdir()
    published.write_text(published.read_text().replace('"step": 4', f'"step": {step}'))
    with pytest.raises((HistoryBroken, StoreConflict), match="published"):
        check(read_history(tmp_path), make_task())


def test_a_chain_starts_and_ends_a_server(tmp_path: Path, make_task: MakeTask) -> None:
    """A server that continues a run checks its history first; `serve` is told by the history of an old step."""
    from fedrho.server.app import Listener, Serving, serve

    task = make_task(**{"goal = 3": "goal = 1", "population = 12": "population = 40"})

    async def start() -> None:
        stopping = Listener(lambda address, population: os.kill(os.getpid(), signal.SIGTERM), lambda coordinator: None)
        await serve(Serving((task,), tmp_path / "run", lambda: SIGNER), stopping)

    asyncio.run(start())
    asyncio.run(start())
    with database(tmp_path / "run") as opened:
        opened.execute("UPDATE releases SET opened_at = 1.5 WHERE step = 0")
    with pytest.raises(HistoryBroken, match="step 0"):
        asyncio.run(start())


def test_a_folder_without_a_run_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreConflict, match="no run here"):
        read_history(tmp_path)
