"""PostgreSQL: one leader by a lease, commits that are fenced by it, blobs elsewhere, and a database put back from a backup."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import sqlalchemy as sa

from fedrho.privacy.vectors import ClippedSum
from fedrho.server.chain import check, read_task
from fedrho.server.release import Attempt, RunState, StoreConflict
from fedrho.server.storage import databases
from fedrho.server.storage.store import (
    SqlStore,
    StoreBusy,
    latest_status,
    locate,
    open_store,
    read_blob,
    read_histories,
    read_history,
    read_status,
)
from fedrho.server.tasks import Task
from tests.server import postgres
from tests.server.one_run import OneRun
from tests.server.test_store_contract import RUN, SIZE, commit, started

MakeTask = Callable[..., Task]
MakeEngine = Callable[..., OneRun]


@pytest.fixture
def blobs(tmp_path: Path) -> str:
    return str(tmp_path / "blobs")


def advance(engine: OneRun, steps: int = 1) -> None:
    for _ in range(steps):
        total = ClippedSum(np.zeros(SIZE, np.int64), engine.task.mechanism.grid)
        engine.install(engine.through_gate(Attempt(1, total, (), 1.0), 2.0), 2.0)


@contextmanager
def engine_in(url: str, blobs: str, make_engine: MakeEngine, steps: int = 0, **task: Any) -> Iterator[OneRun]:
    with open_store(url, blobs) as store:
        engine = make_engine(store, **task)
        advance(engine, steps)
        yield engine


# -- one leader


def test_the_second_of_two_coordinators_is_refused(postgres_url: str, blobs: str, make_task: MakeTask) -> None:
    with open_store(postgres_url, blobs, lease_seconds=0.6) as store:
        started(store, make_task())
        with pytest.raises(StoreBusy, match="another server leads"):
            open_store(postgres_url, blobs, lease_seconds=0.6)
        store.commit(RUN, commit(1))
    with open_store(postgres_url, blobs) as store:
        assert store.load(make_task(), RUN).charge.step == 1


def test_an_idle_leader_stays_the_leader(postgres_url: str, blobs: str, make_task: MakeTask) -> None:
    with open_store(postgres_url, blobs, lease_seconds=0.4) as store:
        time.sleep(1.5)
        with pytest.raises(StoreBusy):
            open_store(postgres_url, blobs)
        started(store, make_task())


def take_over(url: str) -> None:
    """As if the leader had stood still for longer than its lease, and another had come."""
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE population SET leader = 'somebody else', expires_at = extract(epoch from now()) + 1")


def test_a_coordinator_that_was_overtaken_releases_nothing(postgres_url: str, blobs: str, make_engine: MakeEngine) -> None:
    with engine_in(postgres_url, blobs, make_engine, steps=1) as engine:
        take_over(postgres_url)
        with pytest.raises(StoreConflict, match="another server leads by now; this one has released nothing"):
            advance(engine)
        store = engine.coordinator._around.store
        calls: list[Callable[[], None]] = [
            lambda: store.set_budget(None),
            lambda: store.set_state(engine.run, RunState.PAUSED),
            lambda: store.create(engine.task, b"x" * 16, b"", commit(0)),
        ]
        for call in calls:
            with pytest.raises(StoreConflict, match="another server leads"):
                call()
    assert [status.step for status in read_status(postgres_url)] == [1]
    assert read_history(postgres_url).published_step == 1
    with engine_in(postgres_url, blobs, make_engine, steps=1) as engine:  # waits for the lease of somebody else, who is gone
        assert engine.progress.step == 2


def test_a_commit_under_way_when_another_takes_over_fails(postgres_url: str, blobs: str, make_engine: MakeEngine) -> None:
    """The lease is looked at in the transaction that writes, not before."""
    with engine_in(postgres_url, blobs, make_engine, steps=1) as engine:
        store = engine.coordinator._around.store
        assert isinstance(store, SqlStore)
        put, objects = store._objects.put, store._objects

        def slowly(key: str, data: bytes) -> None:
            put(key, data)
            take_over(postgres_url)

        objects.put = slowly  # type: ignore[method-assign]
        with pytest.raises(StoreConflict, match="another server leads"):
            advance(engine)
    assert [status.step for status in read_status(postgres_url)] == [1]


LEAD = """
import os, signal, sys
from fedrho.server.storage.store import open_store
store = open_store(*sys.argv[1:], lease_seconds=1.0)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_the_lease_of_a_killed_leader_runs_out(postgres_url: str, blobs: str, make_task: MakeTask) -> None:
    child = subprocess.run([sys.executable, "-c", LEAD, postgres_url, blobs], check=False, timeout=60)
    assert child.returncode == -signal.SIGKILL
    began = time.monotonic()
    with open_store(postgres_url, blobs) as store:
        assert time.monotonic() - began < 2.5
        started(store, make_task())


def test_of_many_that_open_at_once_one_leads(postgres_url: str, blobs: str) -> None:
    """Also when there are no tables yet."""
    together, opened, refused = threading.Barrier(4), list[SqlStore](), list[StoreBusy]()

    def open_it() -> None:
        together.wait(20)
        try:
            opened.append(open_store(postgres_url, blobs, lease_seconds=1.0))
        except StoreBusy as error:
            refused.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(opened), len(refused)) == (1, 3)
    opened[0].close()


def test_a_leader_that_stopped_hands_over_at_once(postgres_url: str, blobs: str) -> None:
    with open_store(postgres_url, blobs, lease_seconds=60):
        assert read_status(postgres_url) == ()
    began = time.monotonic()
    with open_store(postgres_url, blobs, lease_seconds=60):
        assert time.monotonic() - began < 10


# -- what was published


def test_a_reopened_store_continues_to_the_bit(postgres_url: str, blobs: str, make_engine: MakeEngine) -> None:
    with engine_in(postgres_url, blobs, make_engine, steps=3) as engine:
        before = engine.progress
    with engine_in(postgres_url, blobs, make_engine) as engine:
        assert engine.progress.charge == before.charge
        np.testing.assert_array_equal(engine.progress.weights, before.weights)
        np.testing.assert_array_equal(engine.progress.velocity, before.velocity)
        assert engine.progress.mechanism.live == before.mechanism.live


def test_a_database_restored_from_a_backup_stops_the_server(
    postgres_server: str, postgres_url: str, blobs: str, make_engine: MakeEngine
) -> None:
    with engine_in(postgres_url, blobs, make_engine, steps=1):
        pass
    name = databases.shown(postgres_url).rpartition("/")[2]
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}-backup" TEMPLATE "{name}"'.encode())
    with engine_in(postgres_url, blobs, make_engine, steps=1):
        pass
    backup = postgres_url.replace(f"/{name}?", f"/{name}-backup?")
    with pytest.raises(StoreConflict, match="older than what was published"), engine_in(backup, blobs, make_engine):
        pass
    with engine_in(postgres_url, blobs, make_engine) as engine:
        assert engine.progress.step == 2


def test_blobs_have_one_store(postgres_server: str, postgres_url: str, blobs: str) -> None:
    with open_store(postgres_url, blobs):
        pass
    other = postgres.new_database(postgres_server, f"other-{os.urandom(4).hex()}")
    with pytest.raises(StoreConflict, match="holds the blobs of another store"):
        open_store(other, blobs)


def test_blobs_of_an_empty_place_are_missed(postgres_url: str, blobs: str, tmp_path: Path, make_engine: MakeEngine) -> None:
    with engine_in(postgres_url, blobs, make_engine, steps=1):
        pass
    with pytest.raises(StoreConflict, match="missing or damaged"), engine_in(postgres_url, str(tmp_path / "b"), make_engine):
        pass


# -- reading beside it


def test_a_store_is_read_beside_its_server(postgres_url: str, blobs: str, make_engine: MakeEngine) -> None:
    with engine_in(postgres_url, blobs, make_engine, steps=2) as engine:
        status = latest_status(postgres_url)
        assert status is not None
        assert (status.step, status.rho, status.running, status.run) == (2, engine.progress.charge.rho, True, engine.run)
        assert read_blob(postgres_url, status.weights_sha256) == engine.progress.weights.astype("<f4").tobytes()
        (history,) = read_histories(postgres_url)
        assert history == read_history(postgres_url, "small") == read_history(postgres_url, engine.run)
        assert check(history, read_task(history)) == engine.statement()
        assert locate(postgres_url) == postgres_url
    status = latest_status(postgres_url)
    assert status is not None
    assert not status.running


def test_an_empty_database_holds_nothing(postgres_url: str) -> None:
    assert read_status(postgres_url) == ()
    with pytest.raises(StoreConflict, match="no run here"):
        read_history(postgres_url)
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


# -- what does not work is said in one line, without a password


@pytest.mark.parametrize(
    ("where", "blobs", "message"),
    [
        ("postgresql://me:hunter2@127.0.0.1:1/x", "memory://x", r"postgresql://127.0.0.1:1/x: not a usable store \(.*refused"),
        ("postgresql://me:hunter2@127.0.0.1:port/x", "memory://x", "not a URL"),
        ("postgresql://me:hunter2@localhost/x", None, "needs a place for its blobs"),
        ("mysql://me:hunter2@localhost/x", "memory://x", "allowed: a folder, or postgresql://HOST/DATABASE"),
        ("postgresql://me:hunter2@localhost/x", "nonsense://x", "not a place for blobs"),
        ("postgresql://me:hunter2@localhost/x", "s3://me:hunter2@x", "leave user and password out"),
    ],
)
def test_what_cannot_be_opened_is_said_without_its_password(where: str, blobs: str | None, message: str) -> None:
    with pytest.raises(StoreConflict, match=message) as raised:
        open_store(where, blobs)
    assert "hunter2" not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_database_that_goes_away_is_a_conflict_and_what_was_committed_stays(
    postgres_url: str, blobs: str, make_engine: MakeEngine
) -> None:
    with engine_in(postgres_url, blobs, make_engine, steps=1) as engine:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid()"
            )
        try:
            advance(engine)
        except StoreConflict:
            assert [status.step for status in read_status(postgres_url)] in ([1], [2])
        else:
            assert [status.step for status in read_status(postgres_url)] == [2]


def test_commits_wait_for_the_disk_even_where_the_server_does_not(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$"
        )
    database = databases.postgres(postgres_url)
    with database.writer.begin() as opened:
        assert opened.execute(sa.text("SHOW synchronous_commit")).scalar() == "on"
    database.close()
