"""The demo as a user runs it: real processes, real sockets, real training."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fedrho.server.app import read_address
from fedrho.server.storage.store import latest_status

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits.toml"
FIELDS = {"algorithm", "steps", "devices", "accuracy", "rho", "epsilon", "delta", "unit", "assumptions", "store"}

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `fedrho ARGUMENTS` in a session of its own; nothing that it started outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "fedrho", *map(str, arguments)]
        environment = {**os.environ, "HOME": str(tmp_path / "home")}
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    return out, err


def wait_for_step(folder: Path, step: int, seconds: float = 300.0) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = latest_status(folder)
        if status is not None and status.step >= step:
            return status.step
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached in {seconds} s")


def processes_of(folder: Path) -> list[int]:
    """Every process whose command line names `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def assert_nothing_left(folder: Path, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(folder) == []


@pytest.mark.parametrize(("algorithm", "seed"), [("dp-ftrl", 7), ("dp-fedavg", 1)])
def test_the_demo_learns_and_says_what_it_spent(algorithm: str, seed: int, start: Start, tmp_path: Path) -> None:
    """A tenth is chance, 0.96 what this model reaches without noise; 0.75 is ten standard deviations below what seeds gave."""
    folder = tmp_path / "d"
    out, err = finish(start("demo", "--json", "--algorithm", algorithm, "--seed", seed, "--store", folder))
    result = json.loads(out)
    assert result.keys() >= FIELDS
    assert (result["algorithm"], result["steps"], result["devices"], result["unit"]) == (algorithm, 30, 40, "device")
    assert result["accuracy"] > 0.75
    assert "accuracy" in result["simulation_only"]
    assert 9.99 < result["rho"] <= 10.0
    assert result["store"] == str(folder)
    assert len(result["assumptions"]) >= 5
    assert "step 30/30 rho 10 of 10, accuracy" in err
    assert_nothing_left(folder)
    assert_histories_keep_the_promise(folder, steps=30, reports=10)


def assert_histories_keep_the_promise(folder: Path, steps: int, reports: int) -> None:
    """Every device's own history: at most a third of the steps, two apart; and no step was counted that is in too few of them."""
    told: Counter[int] = Counter()
    for path in sorted((folder / "devices").glob("*.sqlite")):
        with closing(sqlite3.connect(path)) as database, database:
            given = [row[0] for row in database.execute("SELECT step FROM contributions ORDER BY step")]
        assert len(given) <= steps // 3
        assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(given))
        told.update(given)
    assert all(told[step] >= reports for step in range(1, steps + 1)), told


def test_a_server_and_a_client_killed_in_mid_demo_are_continued(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    process = start("demo", "--json", "--store", folder, "--steps", 12)
    reached = wait_for_step(folder / "server", 4)
    address = read_address(folder / "server")
    assert address is not None
    os.kill(address[1], signal.SIGKILL)
    os.kill(next(pid for pid in processes_of(folder) if b"join" in Path(f"/proc/{pid}/cmdline").read_bytes()), signal.SIGKILL)
    out, err = finish(process)
    assert json.loads(out)["steps"] == 12
    assert "a server process was killed" in err
    assert "a client process was killed" in err
    assert f"where step {reached} is the latest" in err or f"where step {reached + 1} is the latest" in err
    with closing(sqlite3.connect(folder / "server" / "fedrho.sqlite")) as database, database:
        assert [row[0] for row in database.execute("SELECT step FROM releases ORDER BY step")] == list(range(13))
    # The task's min_reports: a deadline does not wait for whom a kill kept out.
    assert_histories_keep_the_promise(folder, steps=12, reports=5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_demo_leaves_no_process_and_can_be_continued(number: signal.Signals, start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    process = start("demo", "--store", folder, "--steps", 10)
    reached = wait_for_step(folder / "server", 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == (-signal.SIGKILL if number is signal.SIGKILL else 130)
    assert out == ""
    assert "Traceback" not in err
    assert_nothing_left(folder)
    status = latest_status(folder / "server")
    assert status is not None
    assert reached <= status.step < 10
    out, err = finish(start("demo", "--store", folder, "--steps", 10, "--json"))
    assert json.loads(out)["steps"] == 10
    assert f"step {status.step}/10" in err
    assert "step 1/10" not in err
    again, _ = finish(start("demo", "--store", folder, "--steps", 10, "--json"))
    assert json.loads(again)["accuracy"] == json.loads(out)["accuracy"]


def test_by_hand_in_two_terminals(start: Start, tmp_path: Path) -> None:
    task = tmp_path / "task.toml"
    task.write_text(EXAMPLE.read_text().replace("steps = 30", "steps = 6").replace("max_times = 10", "max_times = 3"))
    server = start("serve", task, "--port", 0, "--store", tmp_path / "s")
    wait_for_step(tmp_path / "s", 0)
    deadline = time.monotonic() + 60
    while (address := read_address(tmp_path / "s")) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert address is not None
    client = start("join", address[0], "--data", "digits", "--history", tmp_path / "devices", "--json")
    out, _ = finish(client)
    ended = json.loads(out)
    assert ended["devices"] == 40
    assert ended["visits"]["counted"] >= 6 * 5  # fewer come only at a deadline
    out, _ = finish(server)
    assert "Privacy statement" in out
    assert "unit        one device" in out
    out, _ = finish(start("status", tmp_path / "s", "--json"))
    status = json.loads(out)
    assert (status["runs"][0]["step"], status["runs"][0]["state"], status["running"]) == (6, "finished", False)
    out, _ = finish(start("status"))
    assert "step 6 of 6, finished" in out
