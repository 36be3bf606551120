"""One contract over every store; and what only a folder can get wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrho.privacy.noise import KeptVector, NoiseMismatch
from fedrho.privacy.tree import TreeState
from fedrho.protos.messages import SessionStatus
from fedrho.server.release import RunState, StoreConflict
from fedrho.server.storage.store import StoreBusy, latest_status, open_store, read_blob, read_history, read_status
from fedrho.server.tasks import Task
from tests.server.one_run import OneRun
from tests.server.test_store_contract import RUN, SIZE, commit

LONG: dict[str, Any] = {"steps = 4": "steps = 80", "max_times = 2": "max_times = 40"}
MakeTask = Callable[..., Task]
MakeEngine = Callable[..., OneRun]


# -- folders


def fill_round(engine: OneRun) -> None:
    """Full rounds of clipped unit vectors, by devices that nobody remembers."""
    for number in range(engine.task.file.round.goal):
        session = engine.reserve(engine.seat(tag=os.urandom(16)))
        assert engine.send(session, number).status is SessionStatus.COUNTED


@contextmanager
def engine_in(folder: Path, make_engine: MakeEngine, steps: int = 0, **task: Any) -> Iterator[OneRun]:
    with open_store(folder) as store:
        engine = make_engine(store, size=SIZE, **task)
        for _ in range(steps):
            fill_round(engine)
            engine.release(0.0)
        yield engine


def test_a_reopened_folder_continues_to_the_bit(tmp_path: Path, make_engine: MakeEngine) -> None:
    with engine_in(tmp_path / "s", make_engine, steps=3) as engine:
        before = engine.progress
    with engine_in(tmp_path / "s", make_engine) as engine:
        assert engine.progress.step == 3
        assert engine.progress.charge == before.charge
        np.testing.assert_array_equal(engine.progress.weights, before.weights)
        np.testing.assert_array_equal(engine.progress.velocity, before.velocity)
        assert engine.progress.mechanism.live == before.mechanism.live


def test_one_server_a_folder(tmp_path: Path) -> None:
    with open_store(tmp_path), pytest.raises(StoreBusy, match="another server"):
        open_store(tmp_path)
    with open_store(tmp_path):
        pass


def test_another_task_is_refused_and_the_difference_named(tmp_path: Path, make_task: MakeTask) -> None:
    with open_store(tmp_path) as store:
        store.create(make_task(), RUN, b"k" * 32, commit(0))
    with open_store(tmp_path) as store, pytest.raises(StoreConflict, match="steps is 4 there, 3 here"):
        store.find(make_task(**{"steps = 4": "steps = 3"}))


def test_a_database_older_than_what_was_published_stops_the_server(tmp_path: Path, make_engine: MakeEngine) -> None:
    folder = tmp_path / "s"
    with engine_in(folder, make_engine, steps=1):
        pass
    backup = tmp_path / "backup.sqlite"
    shutil.copy(folder / "fedrho.sqlite", backup)
    with engine_in(folder, make_engine, steps=1):
        pass
    for name in ("fedrho.sqlite-wal", "fedrho.sqlite-shm"):
        (folder / name).unlink(missing_ok=True)
    shutil.copy(backup, folder / "fedrho.sqlite")
    with pytest.raises(StoreConflict, match="older than what was published"), engine_in(folder, make_engine):
        pass
    (folder / "fedrho.sqlite").unlink()
    with pytest.raises(StoreConflict, match="older than what was published"), engine_in(folder, make_engine):
        pass


def test_noise_that_does_not_reproduce_stops_the_server(tmp_path: Path, make_engine: MakeEngine) -> None:
    with engine_in(tmp_path, make_engine, steps=2):
        pass
    with closing(sqlite3.connect(tmp_path / "fedrho.sqlite")) as database, database:
        database.execute("UPDATE noise_nodes SET seed = ? WHERE name = 'tree.0.0.1'", (bytes(32),))
    with pytest.raises(NoiseMismatch, match=r"tree\.0\.0\.1"), engine_in(tmp_path, make_engine):
        pass


def test_a_charge_that_is_not_the_price_stops_the_server(tmp_path: Path, make_engine: MakeEngine) -> None:
    with engine_in(tmp_path, make_engine, steps=2):
        pass
    with closing(sqlite3.connect(tmp_path / "fedrho.sqlite")) as database, database:
        database.execute("UPDATE releases SET rho = rho / 2 WHERE step = 2")
    with pytest.raises(StoreConflict, match="was charged"), engine_in(tmp_path, make_engine):
        pass


@pytest.mark.parametrize("damage", ["database", "blob"])
def test_damage_is_said_and_nothing_is_released(tmp_path: Path, make_engine: MakeEngine, damage: str) -> None:
    with engine_in(tmp_path, make_engine, steps=1) as engine:
        digest = engine.coordinator.checkpoint_sha256
    target = tmp_path / "fedrho.sqlite" if damage == "database" else tmp_path / "blobs" / digest.hex()
    target.write_bytes(b"nonsense" * 100)
    with pytest.raises(StoreConflict, match=r"not a usable store|damaged"), engine_in(tmp_path, make_engine):
        pass


def test_the_end_of_a_run_erases_every_seed_and_every_tag(tmp_path: Path, make_engine: MakeEngine) -> None:
    with engine_in(tmp_path, make_engine, steps=3, window=True) as engine:
        secrets = [node.seed for node in engine.progress.mechanism.live]
        assert len(secrets) == 4
        secrets += [engine.coordinator._tag_key, *engine.coordinator._past]
        assert len(secrets) == 5 + 9
        assert all(secret in content_of(tmp_path) for secret in secrets)
    with engine_in(tmp_path, make_engine, steps=1, window=True) as engine:
        assert engine.finished
        assert not any(secret in content_of(tmp_path) for secret in secrets)
    assert not any(secret in content_of(tmp_path) for secret in secrets)
    with engine_in(tmp_path, make_engine, window=True) as engine:
        assert engine.finished


def content_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_old_checkpoints_and_orphans_are_swept(tmp_path: Path, make_engine: MakeEngine) -> None:
    with engine_in(tmp_path, make_engine, steps=1):
        (tmp_path / "blobs" / "0123.45.tmp").write_bytes(b"left by a crash")
    with engine_in(tmp_path, make_engine, steps=2) as engine:
        names = {path.name for path in (tmp_path / "blobs").iterdir()}
        assert len(names) == 4
        assert engine.coordinator.checkpoint_sha256.hex() in names


def test_status_is_readable_beside_the_server(tmp_path: Path, make_engine: MakeEngine) -> None:
    assert read_status(tmp_path / "s") == ()
    with engine_in(tmp_path / "s", make_engine, steps=2) as engine:
        (status,) = read_status(tmp_path / "s")
        assert (status.step, status.rho, status.running) == (2, engine.progress.charge.rho, True)
        assert np.frombuffer(read_blob(tmp_path / "s", status.weights_sha256), "<f4").tolist() == engine.progress.weights.tolist()
    (status,) = read_status(tmp_path / "s")
    assert (status.running, status.state) == (False, RunState.ACTIVE)
    assert latest_status(tmp_path / "s") == status


def test_the_folder_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    with open_store(tmp_path / "s"):
        assert (tmp_path / "s").stat().st_mode & 0o077 == 0


def test_published_says_what_was_committed(tmp_path: Path, make_engine: MakeEngine) -> None:
    with engine_in(tmp_path, make_engine, steps=2) as engine:
        (path,) = (tmp_path / "published").iterdir()
        link = read_history(tmp_path).links[2]
        assert path.name == f"{engine.run.hex()}.2"
        assert json.loads(path.read_text()) == {"run": engine.run.hex(), "step": 2, "link": link.hex()}


@pytest.mark.parametrize("name", ["run#1", "run?2", "run%41", "run 3", "löwe"])
def test_any_name_of_a_folder_keeps_the_database_inside(name: str, tmp_path: Path, make_engine: MakeEngine) -> None:
    with engine_in(tmp_path / name, make_engine, steps=1):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (status,) = read_status(tmp_path / name)
    assert status.step == 1


def test_a_restart_says_again_what_may_have_been_seen(tmp_path: Path, make_engine: MakeEngine) -> None:
    """Killed between the commit and its note, the next server serves that step; an older database is then refused."""
    with engine_in(tmp_path, make_engine, steps=1):
        shutil.copytree(tmp_path / "published", tmp_path / "older")
    shutil.copy(tmp_path / "fedrho.sqlite", tmp_path / "older.sqlite")
    with engine_in(tmp_path, make_engine, steps=1):
        pass
    shutil.rmtree(tmp_path / "published")
    shutil.move(tmp_path / "older", tmp_path / "published")
    with engine_in(tmp_path, make_engine) as engine:
        assert engine.progress.step == 2
        assert [path.name for path in (tmp_path / "published").iterdir()] == [f"{engine.run.hex()}.2"]
    shutil.move(tmp_path / "older.sqlite", tmp_path / "fedrho.sqlite")
    with pytest.raises(StoreConflict, match="older than what was published"), engine_in(tmp_path, make_engine):
        pass


def test_blobs_of_vectors_go_when_nothing_needs_them(tmp_path: Path, make_task: MakeTask) -> None:
    vectors = [np.arange(SIZE) * factor for factor in (7, 9)]
    kept = tuple(KeptVector(f"vector.{number}", vector) for number, vector in enumerate(vectors))
    paths = [tmp_path / "s" / "blobs" / hashlib.sha256(vector.tobytes()).hexdigest() for vector in vectors]
    with open_store(tmp_path / "s") as store:
        store.create(make_task(), RUN, b"k" * 32, commit(0))
        store.commit(RUN, replace(commit(1), kept=kept))
        assert [path.exists() for path in paths] == [True, True]
        store.commit(RUN, replace(commit(2), kept=kept[1:]))
        assert [path.exists() for path in paths] == [False, True]
        store.commit(RUN, replace(commit(3), last=True))
        assert [path.exists() for path in paths] == [False, False]


def test_a_commit_never_sweeps_what_another_is_about_to_name(tmp_path: Path, make_task: MakeTask) -> None:
    """The first run's blobs are written, its transaction has not begun; meanwhile the second commits, and sweeps."""
    other, task = b"s" * 16, make_task(**{'"small"': '"other"'})
    with open_store(tmp_path) as store:
        store.create(make_task(), RUN, b"k" * 32, commit(0))
        store.create(task, other, b"k" * 32, commit(0))
        put, objects, written = store._objects.put, store._objects, list[str]()

        def interrupted(key: str, data: bytes) -> None:
            put(key, data)
            written.append(key)
            if len(written) == 2:
                store.commit(other, commit(1))

        objects.put = interrupted  # type: ignore[method-assign]
        store.commit(RUN, replace(commit(1), weights=np.full(SIZE, 77, dtype=np.float32)))
        assert store.load(make_task(), RUN).weights[0] == 77
        assert store.load(task, other).weights[0] == 1


def test_a_cancelled_run_leaves_no_secret(tmp_path: Path, make_engine: MakeEngine) -> None:
    with engine_in(tmp_path, make_engine, steps=3, window=True) as engine:
        coordinator = engine.coordinator
        secrets = [*(node.seed for node in engine.progress.mechanism.live), coordinator._tag_key, *coordinator._past]
        assert all(secret in content_of(tmp_path) for secret in secrets)
    with open_store(tmp_path) as store:
        store.set_state(engine.run, RunState.CANCELLED)
    assert not any(secret in content_of(tmp_path) for secret in secrets)


def test_a_run_goes_on_from_kept_vectors_and_few_seeds(tmp_path: Path, make_engine: MakeEngine) -> None:
    """After 70 steps the tree's first 64 leaves are one vector; their seeds are gone from the database."""
    with engine_in(tmp_path, make_engine, steps=70, **LONG) as engine:
        before: TreeState = engine.progress.mechanism  # type: ignore[assignment]
        with closing(sqlite3.connect(tmp_path / "fedrho.sqlite")) as database:
            ((seeds,),) = database.execute("SELECT COUNT(*) FROM noise_nodes WHERE seed IS NOT NULL")
        assert seeds == len(before.live) == 2 * 6 - 2
    with engine_in(tmp_path, make_engine, **LONG) as engine:
        after: TreeState = engine.progress.mechanism  # type: ignore[assignment]
        assert after.step == 70
        assert np.array_equal(after.prefix, before.prefix)
    (vector,) = before.kept
    (tmp_path / "blobs" / hashlib.sha256(vector.vector.tobytes()).hexdigest()).unlink()
    with pytest.raises(StoreConflict, match="missing"), engine_in(tmp_path, make_engine, **LONG):
        pass


def test_a_database_with_another_history_than_the_published_one_stops_the_server(tmp_path: Path, make_engine: MakeEngine) -> None:
    with engine_in(tmp_path, make_engine, steps=2):
        pass
    with closing(sqlite3.connect(tmp_path / "fedrho.sqlite")) as database, database:
        database.execute("UPDATE releases SET link = ? WHERE step = 2", (b"x" * 32,))
    with pytest.raises(StoreConflict, match="step 2 was published with another history"), engine_in(tmp_path, make_engine):
        pass


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b"{", b'{"run": 1, "step": "x"}', b'{"run": "ab", "step": 1}'])
def test_a_note_of_what_was_published_that_is_missing_or_damaged_stops_the_server(
    content: bytes | None, tmp_path: Path, make_engine: MakeEngine
) -> None:
    with engine_in(tmp_path, make_engine, steps=1) as engine:
        note = tmp_path / "published" / f"{engine.run.hex()}.1"
    note.unlink()
    if content is not None:
        note.write_bytes(content)
    with pytest.raises(StoreConflict, match="missing or damaged"), engine_in(tmp_path, make_engine):
        pass


def test_results_of_an_attempt_that_never_committed_are_removed_at_the_start(tmp_path: Path, make_engine: MakeEngine) -> None:
    with engine_in(tmp_path, make_engine, steps=1):
        pass
    (tmp_path / "blobs" / ("0" * 64)).write_bytes(b"noisy, and never charged")
    with engine_in(tmp_path, make_engine):
        assert not (tmp_path / "blobs" / ("0" * 64)).exists()


def test_a_folder_with_other_things_in_it_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    mode = tmp_path.stat().st_mode
    with pytest.raises(StoreConflict, match="holds other files"):
        open_store(tmp_path)
    assert tmp_path.stat().st_mode == mode
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_every_commit_is_written_through(tmp_path: Path) -> None:
    with open_store(tmp_path) as store, store._database.writer.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA secure_delete").scalar() == 1
