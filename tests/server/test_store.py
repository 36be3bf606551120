"""One contract over every store; and what only a folder can get wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrho.privacy.noise import KeptVector, NoiseMismatch, NoiseNode, SystemNoise
from fedrho.privacy.tree import TreeState
from fedrho.privacy.zcdp import Rho
from fedrho.server.coordinator import Coordinator
from fedrho.server.ledger import Charge
from fedrho.server.release import Commit, Store, StoreConflict
from fedrho.server.store import MemoryStore, SqliteStore, StoreBusy, read_blob, read_history, read_status
from fedrho.server.tasks import Task

SIZE = 12
LONG: dict[str, Any] = {"steps = 4": "steps = 80", "max_times = 2": "max_times = 40"}
MakeTask = Callable[..., Task]
MakeEngine = Callable[..., Coordinator]


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
    else:
        with SqliteStore(tmp_path / "store") as opened:
            yield opened


def commit(
    step: int, drawn: tuple[NoiseNode, ...] = (), live: frozenset[str] = frozenset(), tags: tuple[bytes, ...] = ()
) -> Commit:
    weights = np.full(SIZE, step, dtype=np.float32)
    return Commit(Charge(step, Rho(step / 8)), 1, weights, weights.astype(np.float64) / 3, drawn, live, tags, 1.0, 2.0)


def started(store: Store, task: Task) -> Store:
    store.create(task, b"r" * 16, b"k" * 32, commit(0))
    return store


def test_what_was_committed_is_loaded_again(store: Store, make_task: MakeTask) -> None:
    task = make_task()
    assert store.load(task) is None
    started(store, task)
    _, node = SystemNoise().draw("tree.0.0", SIZE, 10.0)
    store.commit(commit(1, (node,), frozenset({node.name}), (b"t" * 16,)))
    stored = store.load(task)
    assert stored is not None
    assert (stored.run, stored.tag_key, stored.charge) == (b"r" * 16, b"k" * 32, Charge(1, Rho(0.125)))
    np.testing.assert_array_equal(stored.weights, commit(1).weights)
    np.testing.assert_array_equal(stored.velocity, commit(1).velocity)
    assert stored.nodes == (node,)
    assert stored.participations == ((b"t" * 16, 1),)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_only_the_next_step_can_be_committed(store: Store, make_task: MakeTask, step: int) -> None:
    started(store, make_task()).commit(commit(1))
    with pytest.raises(StoreConflict):
        store.commit(commit(step))
    stored = store.load(make_task())
    assert stored is not None
    assert stored.charge.step == 1


def test_a_run_is_created_once(store: Store, make_task: MakeTask) -> None:
    started(store, make_task())
    with pytest.raises(StoreConflict):
        started(store, make_task())


def test_seeds_that_nothing_needs_are_forgotten(store: Store, make_task: MakeTask) -> None:
    started(store, make_task())
    nodes = [SystemNoise().draw(f"tree.0.{index}", SIZE, 1.0)[1] for index in range(2)]
    store.commit(commit(1, (nodes[0],), frozenset({nodes[0].name})))
    store.commit(commit(2, (nodes[1],), frozenset({nodes[1].name})))
    stored = store.load(make_task())
    assert stored is not None
    assert stored.nodes == (nodes[1],)
    if isinstance(store, SqliteStore):
        assert nodes[0].seed not in (store.folder / "fedrho.sqlite").read_bytes()


# -- folders


def fill_round(engine: Coordinator) -> None:
    """Full rounds of clipped unit vectors, by devices that nobody remembers."""
    from fedrho.protos.messages import Assignment, BeginUpload, CheckIn, Upload

    for number in range(engine.task.file.round.goal):
        answer = engine.check_in(CheckIn(os.urandom(16), engine.run, os.urandom(16)), 0.0)
        assert isinstance(answer, Assignment)
        engine.begin_upload(BeginUpload(answer.session), 0.0)
        vector = np.zeros(SIZE, dtype=np.int32)
        vector[number] = engine.task.mechanism.grid.radius
        engine.upload(Upload(answer.session, vector), 0.0)


@contextmanager
def engine_in(folder: Path, make_engine: MakeEngine, steps: int = 0, **task: Any) -> Iterator[Coordinator]:
    with SqliteStore(folder) as store:
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
    with SqliteStore(tmp_path), pytest.raises(StoreBusy, match="another server"):
        SqliteStore(tmp_path)
    with SqliteStore(tmp_path):
        pass


def test_another_task_is_refused_and_the_difference_named(tmp_path: Path, make_task: MakeTask) -> None:
    with SqliteStore(tmp_path) as store:
        started(store, make_task())
    with SqliteStore(tmp_path) as store, pytest.raises(StoreConflict, match="steps is 4 there, 3 here"):
        store.load(make_task(**{"steps = 4": "steps = 3"}))


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
        digest = engine._checkpoint_sha256
    target = tmp_path / "fedrho.sqlite" if damage == "database" else tmp_path / "blobs" / digest.hex()
    target.write_bytes(b"nonsense" * 100)
    with pytest.raises(StoreConflict, match=r"not a usable store|damaged"), engine_in(tmp_path, make_engine):
        pass


def test_the_end_of_a_run_erases_every_seed_and_every_tag(tmp_path: Path, make_engine: MakeEngine) -> None:
    with engine_in(tmp_path, make_engine, steps=3, window=True) as engine:
        secrets = [node.seed for node in engine.progress.mechanism.live]
        assert len(secrets) == 4
        secrets += [engine._tag_key, *engine._past]
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
        assert engine._checkpoint_sha256.hex() in names


def test_status_is_readable_beside_the_server(tmp_path: Path, make_engine: MakeEngine) -> None:
    assert read_status(tmp_path / "s") is None
    with engine_in(tmp_path / "s", make_engine, steps=2) as engine:
        status = read_status(tmp_path / "s")
        assert status is not None
        assert (status.step, status.rho, status.running) == (2, engine.progress.charge.rho, True)
        assert np.frombuffer(read_blob(tmp_path / "s", status.weights_sha256), "<f4").tolist() == engine.progress.weights.tolist()
    status = read_status(tmp_path / "s")
    assert status is not None
    assert not status.running


def test_the_folder_belongs_to_its_owner_alone(tmp_path: Path) -> None:
    with SqliteStore(tmp_path / "s"):
        assert (tmp_path / "s").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_sigkill_at_any_moment_never_gives_two_results_for_a_step(tmp_path: Path) -> None:
    """A hundred kills at random moments of a loop of releases; see kill_loop.py for what is compared."""
    script = Path(__file__).parent / "kill_loop.py"
    done = subprocess.run([sys.executable, str(script), str(tmp_path), "100"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    kills, steps = map(int, done.stdout.split())
    assert kills == 100
    assert steps > 100


def test_published_says_what_was_committed(tmp_path: Path, make_engine: MakeEngine) -> None:
    with engine_in(tmp_path, make_engine, steps=2) as engine:
        published = json.loads((tmp_path / "published.json").read_text())
        link = read_history(tmp_path).links[2]
        assert published == {"run": engine.run.hex(), "step": 2, "link": link.hex()}


@pytest.mark.parametrize("name", ["run#1", "run?2", "run%41", "run 3", "löwe"])
def test_any_name_of_a_folder_keeps_the_database_inside(name: str, tmp_path: Path, make_engine: MakeEngine) -> None:
    with engine_in(tmp_path / name, make_engine, steps=1):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]
    status = read_status(tmp_path / name)
    assert status is not None
    assert status.step == 1


def test_a_restart_says_again_what_may_have_been_seen(tmp_path: Path, make_engine: MakeEngine) -> None:
    """Killed between the commit and its note, the next server serves that step; an older database is then refused."""
    with engine_in(tmp_path, make_engine, steps=1):
        shutil.copy(tmp_path / "published.json", tmp_path / "older.json")
    shutil.copy(tmp_path / "fedrho.sqlite", tmp_path / "older.sqlite")
    with engine_in(tmp_path, make_engine, steps=1):
        pass
    shutil.move(tmp_path / "older.json", tmp_path / "published.json")
    with engine_in(tmp_path, make_engine) as engine:
        assert engine.progress.step == 2
        assert json.loads((tmp_path / "published.json").read_text())["step"] == 2
    shutil.move(tmp_path / "older.sqlite", tmp_path / "fedrho.sqlite")
    with pytest.raises(StoreConflict, match="older than what was published"), engine_in(tmp_path, make_engine):
        pass


def test_kept_vectors_are_stored_while_they_are_needed_and_leave_nothing(store: Store, make_task: MakeTask) -> None:
    task = make_task()
    started(store, task)
    vectors: list[NDArray[Any]] = [np.arange(SIZE, dtype=np.int64) * 7, np.linspace(0, 1, SIZE), np.arange(SIZE, dtype=np.int32)]
    kept = [KeptVector(f"vector.{number}", vector) for number, vector in enumerate(vectors)]
    store.commit(replace(commit(1), kept=(kept[0], kept[1])))
    store.commit(replace(commit(2), kept=(kept[1], kept[2])))
    stored = store.load(task)
    assert stored is not None
    assert {one.name: one.vector.tobytes() for one in stored.kept} == {one.name: one.vector.tobytes() for one in kept[1:]}
    assert {one.name: one.vector.dtype for one in stored.kept} == {one.name: one.vector.dtype for one in kept[1:]}
    if isinstance(store, SqliteStore):
        assert not (store.folder / "blobs" / hashlib.sha256(vectors[0].tobytes()).hexdigest()).exists()
    store.commit(replace(commit(3), last=True))
    stored = store.load(task)
    assert stored is not None
    assert stored.kept == ()
    if isinstance(store, SqliteStore):
        blobs = {path.name for path in (store.folder / "blobs").iterdir()}
        assert not blobs & {hashlib.sha256(vector.tobytes()).hexdigest() for vector in vectors}


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
    with engine_in(tmp_path, make_engine, steps=1):
        pass
    (tmp_path / "published.json").unlink()
    if content is not None:
        (tmp_path / "published.json").write_bytes(content)
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
        SqliteStore(tmp_path)
    assert tmp_path.stat().st_mode == mode
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_every_commit_is_written_through(tmp_path: Path) -> None:
    with SqliteStore(tmp_path) as store, store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA secure_delete").scalar() == 1
