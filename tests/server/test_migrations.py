"""Stores that older versions wrote are brought up to date, and their runs go on to the bit; newer ones are refused.

schema_2.json is a folder as fedrho wrote it when a folder held one run: its database as SQL, its blobs, its note of what was
published, and how the run stood in memory then.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from fedrho.privacy.noise import NoiseNode, SystemNoise
from fedrho.privacy.vectors import ClippedSum, IntVector
from fedrho.server.chain import check, read_task
from fedrho.server.coordinator import Coordinator, Surroundings, open_run
from fedrho.server.release import Attempt, RunState, StoreConflict
from fedrho.server.storage import databases, migrations
from fedrho.server.storage.schema import HEAD, metadata
from fedrho.server.storage.store import SqlStore, open_store, read_history, read_status
from fedrho.server.tasks import Task, parse_task

OLD: dict[str, Any] = json.loads((Path(__file__).parent / "schema_2.json").read_text())
TASK = parse_task("\n".join(OLD["task"]), "old.toml")


class NoNoise:
    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        return np.zeros(size, dtype=np.int64), NoiseNode(name, bytes(32), b"")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "old"
    (folder / "blobs").mkdir(parents=True)
    for text in OLD["blobs"]:
        data = bytes.fromhex(text)
        (folder / "blobs" / hashlib.sha256(data).hexdigest()).write_bytes(data)
    (folder / "published.json").write_text(json.dumps(OLD["published"]))
    with closing(sqlite3.connect(folder / "fedrho.sqlite", isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        for statement in OLD["sql"]:
            database.execute(statement)
    return folder


def engine(store: SqlStore, task: Task = TASK) -> Coordinator:
    around = Surroundings(SystemNoise(), store, lambda: os.urandom(16), [])
    return open_run(task, around, lambda: np.zeros(4, dtype=np.float32), 50.0)


def advance(coordinator: Coordinator) -> None:
    total = ClippedSum(np.zeros(4, np.int64), coordinator.task.mechanism.grid)
    coordinator.install(coordinator.through_gate(Attempt(1, total, (), 50.0), 51.0), 51.0)


def test_a_run_of_an_older_version_goes_on_to_the_bit(old: Path) -> None:
    with open_store(old) as store:
        coordinator = engine(store)
        progress, then = coordinator.progress, OLD["progress"]
        assert progress.step == 66
        assert progress.weights.tobytes().hex() == then["weights"]
        assert progress.velocity.tobytes().hex() == then["velocity"]
        assert sorted(node.name for node in progress.mechanism.live) == then["live"]
        assert TASK.mechanism.next_noise(progress.mechanism, NoNoise())[0].tobytes().hex() == then["next_noise"]
        assert len(coordinator._past) == 2
        before = read_history(old)
        assert [len(entry.kept) for entry in before.entries].count(0) == 66
        for _ in range(5):
            advance(coordinator)
        assert store.runs()[0].state is RunState.FINISHED
    after = read_history(old)
    assert after.links[:67] == before.links
    assert after.entries[:67] == before.entries
    assert check(after, read_task(after)).rho == coordinator.progress.charge.rho
    assert not (old / "published.json").exists()


def test_an_older_store_is_read_without_being_touched(old: Path) -> None:
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file() and path.suffix == ""}
    (status,) = read_status(old)
    assert (status.step, status.state, status.file.name) == (66, RunState.ACTIVE, "old")
    history = read_history(old, "old")
    assert check(history, read_task(history)).rho == status.rho
    with closing(sqlite3.connect(old / "fedrho.sqlite")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (2,)
    assert {path: path.read_bytes() for path in before} == before


def test_a_backup_is_kept_until_it_would_be_older_than_what_was_published(old: Path) -> None:
    backup = old / "fedrho.sqlite.backup"
    (seed,) = (bytes.fromhex(text.split("X'")[1][:64]) for text in OLD["sql"] if "'row.66'" in text)
    with open_store(old) as store:
        with closing(sqlite3.connect(backup)) as database:
            assert database.execute("PRAGMA user_version").fetchone() == (2,)
            assert database.execute("SELECT MAX(step) FROM releases").fetchone() == (66,)
        assert seed in backup.read_bytes()
        coordinator = engine(store)
        assert backup.exists()
        advance(coordinator)
        assert not backup.exists()


def test_cancelling_a_migrated_run_takes_the_seeds_out_of_the_backup_too(old: Path) -> None:
    with open_store(old) as store:
        store.set_state(store.runs()[0].run, RunState.CANCELLED)
    assert sorted(path.name for path in old.iterdir()) == ["blobs", "fedrho.sqlite", "lock", "published"]


def test_the_backup_can_be_put_back(old: Path) -> None:
    with open_store(old):
        pass
    (old / "fedrho.sqlite").unlink()
    (old / "fedrho.sqlite.backup").rename(old / "fedrho.sqlite")
    with open_store(old) as store:
        assert engine(store).progress.step == 66


def test_a_migration_that_fails_changes_nothing(old: Path) -> None:
    with closing(sqlite3.connect(old / "fedrho.sqlite")) as database, database:
        (task,) = database.execute("SELECT task FROM runs").fetchone()
        database.execute("UPDATE runs SET task = '{'")
    for _ in range(2):
        with pytest.raises(StoreConflict, match="cannot be brought up to date"):
            open_store(old)
    with closing(sqlite3.connect(old / "fedrho.sqlite")) as database, database:
        database.execute("UPDATE runs SET task = ?", (task,))
    with open_store(old) as store:
        assert engine(store).progress.step == 66


@pytest.mark.slow
def test_a_migration_killed_before_any_of_its_operations_is_done_by_the_next(old: Path) -> None:
    """Opening alone, killed before each fsync, rename, statement and COMMIT; then the run goes on to the bit."""
    script = Path(__file__).parent / "kill_loop.py"
    done = subprocess.run(
        [sys.executable, str(script), "open", str(old)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30
    with open_store(old) as store:
        progress = engine(store).progress
    assert progress.weights.tobytes().hex() == OLD["progress"]["weights"]
    assert TASK.mechanism.next_noise(progress.mechanism, NoNoise())[0].tobytes().hex() == OLD["progress"]["next_noise"]


def test_an_older_database_than_the_old_note_is_refused(old: Path) -> None:
    note = OLD["published"] | {"step": 67}
    (old / "published.json").write_text(json.dumps(note))
    with pytest.raises(StoreConflict, match="older than what was published"):
        open_store(old)


@pytest.mark.parametrize(("version", "message"), [(1, "schema 1"), (9, "schema 9")])
def test_tables_before_or_after_what_we_know_are_refused(old: Path, version: int, message: str) -> None:
    with closing(sqlite3.connect(old / "fedrho.sqlite")) as database, database:
        database.execute(f"PRAGMA user_version = {version}")
    for call in (open_store, read_status, read_history):
        with pytest.raises(StoreConflict, match=message):
            call(old)


def test_a_newer_revision_is_refused_in_one_line(tmp_path: Path) -> None:
    with open_store(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "fedrho.sqlite")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '0099'")
    for call in (open_store, read_status, read_history):
        with pytest.raises(StoreConflict, match=r"revision 0099\); update fedrho$"):
            call(tmp_path)


def test_fedrho_0_1_refuses_what_was_migrated(old: Path) -> None:
    with open_store(old):
        pass
    with closing(sqlite3.connect(old / "fedrho.sqlite")) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (3,)


def test_the_head_is_the_latest_revision() -> None:
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert script.get_current_head() == HEAD


def test_the_migrations_make_the_tables_that_the_code_uses_in_sqlite(tmp_path: Path) -> None:
    with open_store(tmp_path):
        differences(databases.sqlite(tmp_path).writer)


def test_the_migrations_make_the_tables_that_the_code_uses_in_postgresql(postgres_url: str) -> None:
    with open_store(postgres_url, "memory://tables"):
        database = databases.postgres(postgres_url)
        differences(database.writer)
        database.close()


def differences(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
    assert found == []
