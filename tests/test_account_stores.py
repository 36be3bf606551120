"""`fedrho account ledger` over stores with many runs."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.vectors import ClippedSum
from fedrho.server.coordinator import Surroundings, open_run
from fedrho.server.release import Attempt, RunState
from fedrho.server.storage.store import open_store
from fedrho.server.tasks import parse_task
from tests.commanding import Run, runner
from tests.server.conftest import TASK


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("COLUMNS", "80")

    return runner(monkeypatch, capfd, "account", "ledger")


def values(account: Run, *arguments: str) -> Any:
    code, out, err = account(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three runs: finished, on its way, cancelled."""
    with open_store(tmp_path / "s") as store:
        for name, steps in (("first", 4), ("second", 2), ("third", 1)):
            task = parse_task(TASK.format(algorithm="dp-ftrl", window="false").replace('"small"', f'"{name}"'), "small.toml")
            around = Surroundings(SystemNoise(), store, lambda: os.urandom(16), [])
            engine = open_run(task, around, lambda: np.zeros(12, dtype=np.float32), 0.0)
            for _ in range(steps):
                total = ClippedSum(np.zeros(12, np.int64), task.mechanism.grid)
                engine.install(engine.through_gate(Attempt(1, total, (), 1.0), 2.0), 2.0)
        store.set_state(store.runs()[-1].run, RunState.CANCELLED)
    return tmp_path / "s"


def test_every_run_of_a_store_is_checked_and_their_total_said(folder: Path, account: Run) -> None:
    found = values(account, str(folder))
    assert [(run["task"], run["released"]) for run in found["runs"]] == [("first", 4), ("second", 2), ("third", 1)]
    assert found["rho"] == sum(run["rho"] for run in found["runs"])
    code, out, _ = account(str(folder))
    assert code == 0
    assert out.count("chain whole, latest link") == 3
    assert "as the total of 3 runs" in out
    for run in found["runs"]:
        assert values(account, str(folder), "--link", f"{run['released']}:{run['link']}")["runs"] == found["runs"]


def test_all_runs_fit_one_budget_or_the_first_that_does_not_is_named(folder: Path, account: Run) -> None:
    total = values(account, str(folder))["rho"]
    assert values(account, str(folder), "--budget", repr(total))["budget"] == total
    code, _, err = account(str(folder), "--budget", repr(total - 0.01))
    assert code == 1
    assert f"run 'third in {folder}' would bring rho to" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["UPDATE releases SET rho = rho / 2 WHERE step = 2"], "step 2: its link does not follow"),
        (["DELETE FROM releases WHERE run = (SELECT run FROM runs WHERE name = 'second')"], "its releases were deleted"),
        (
            [
                f"DELETE FROM {table} WHERE run = (SELECT run FROM runs WHERE name = 'second')"
                for table in ("noise_nodes", "releases", "runs")
            ],
            "was published, but the database does not know it",
        ),
    ],
    ids=["price", "releases", "run"],
)
def test_a_run_that_was_made_cheaper_or_taken_away_is_said(changes: list[str], message: str, folder: Path, account: Run) -> None:
    with closing(sqlite3.connect(folder / "fedrho.sqlite")) as database, database:
        database.execute("PRAGMA foreign_keys = OFF")
        for change in changes:
            database.execute(change)
    code, _, err = account(str(folder))
    assert code == 1
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_url_that_cannot_be_reached_is_said_without_its_password(account: Run) -> None:
    code, _, err = account("postgresql://me:hunter2@127.0.0.1:1/x")
    assert code == 2
    assert "hunter2" not in err
    assert len(err.splitlines()) == 1
