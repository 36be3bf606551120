"""The ledger under crashes, rivals and damage: a yes is on the disk first, and a damaged file says nothing but no."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from fedrho.client.history import SCHEMA_VERSION, DeviceHistory, HistoryError
from fedrho.protos.messages import PrivacyTerms
from tests.client.fleet import contributions, opened

RUN = bytes(16)
TERMS = PrivacyTerms("binary-tree", 1.0, 1.0, 1.0, max_participations=1000, min_separation=1, min_period_seconds=0.0)
PROLOGUE = """
import os, signal, sys
from pathlib import Path
from fedrho.client.history import DeviceHistory
from fedrho.protos.messages import PrivacyTerms
terms = PrivacyTerms("binary-tree", 1.0, 1.0, 1.0, 1000, 1, 0.0)
print("ready", flush=True)
sys.stdin.readline()
def die(): os.kill(os.getpid(), signal.SIGKILL)
def history(): return DeviceHistory(Path(sys.argv[1]))
"""
RECORD_AND_DIE = "print(history().record(bytes(16), 7, terms), flush=True); die()"
DIE_INSIDE = "own = history(); own._file.clock = die; own.record(bytes(16), 7, terms)"
RECORD_TWENTY = """
from fedrho.client.history import HistoryError
try: own = history()
except HistoryError: print("refused")
else: print(*(step for step in range(1, 21) if own.record(bytes(16), step, terms)), flush=True)
"""


def start(path: Path, program: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROLOGUE + program, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(*rivals: subprocess.Popen[str]) -> list[str]:
    """Lets all of them go at once, and returns what they said after that."""
    for rival in rivals:
        assert rival.stdout is not None
        assert rival.stdout.readline() == "ready\n"
    for rival in rivals:
        assert rival.stdin is not None
        rival.stdin.write("go\n")
        rival.stdin.flush()
    return [rival.communicate(timeout=60)[0].strip() for rival in rivals]


def filled(path: Path) -> DeviceHistory:
    history = opened(path)
    assert all(history.record(RUN, step, TERMS) for step in range(1, 101))
    return history


def test_contribution_is_on_disk_before_record_returns(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    history = opened(path)
    assert contributions(path) == []
    assert history.record(RUN, 7, TERMS)
    assert contributions(path) == [(RUN, 7)]


def test_process_killed_right_after_record_has_contributed(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    process = start(path, RECORD_AND_DIE)
    assert finish(process) == ["True"]
    assert process.returncode == -signal.SIGKILL
    assert not opened(path).allows(RUN, 7, TERMS)
    assert contributions(path) == [(RUN, 7)]


def test_process_killed_inside_record_leaves_a_usable_history_without_it(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    process = start(path, DIE_INSIDE)
    assert finish(process) == [""]
    assert process.returncode == -signal.SIGKILL
    assert contributions(path) == []
    assert opened(path).record(RUN, 7, TERMS)


@pytest.mark.slow
@pytest.mark.parametrize("exists", [True, False])
def test_of_racing_processes_exactly_one_may_give_each_step(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "device.sqlite"
    if exists:
        opened(path).close()
    said = finish(*(start(path, RECORD_TWENTY) for _ in range(3)))
    given = Counter(int(step) for line in said for step in line.split() if step != "refused")
    assert given == Counter(range(1, 21))
    assert contributions(path) == [(RUN, step) for step in range(1, 21)]


def test_second_process_is_told_that_the_device_is_in_use_until_the_first_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    first = start(path, "own = history(); print('open', flush=True); sys.stdin.readline()")
    assert first.stdin is not None
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    first.stdin.write("go\n")
    first.stdin.flush()
    assert first.stdout.readline() == "open\n"
    with pytest.raises(HistoryError, match=r"device\.sqlite: another process is this device already; stop it, or"):
        opened(path)
    opened(tmp_path / "another.sqlite")
    first.kill()
    first.communicate()
    assert opened(path).record(RUN, 7, TERMS)


def test_two_open_histories_of_one_file_see_each_other(tmp_path: Path) -> None:
    first, second = opened(tmp_path / "device.sqlite"), opened(tmp_path / "device.sqlite")
    assert first.record(RUN, 7, TERMS)
    assert not second.allows(RUN, 7, TERMS)
    assert not second.record(RUN, 7, TERMS)


def test_file_that_is_not_a_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(HistoryError, match=r"device\.sqlite: not a usable participation history"):
        opened(path)
    assert path.read_bytes() == b"not a database at all" * 100


def test_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="not a usable"):
        opened(tmp_path)


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "histories").write_text("")
    with pytest.raises(HistoryError, match="not a usable"):
        opened(tmp_path / "histories" / "device.sqlite")


def test_history_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "device.sqlite"
    opened(path).close()
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(HistoryError, match=f"another version of fedrho \\(schema {SCHEMA_VERSION + 1}\\)"):
        opened(path)


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION])
def test_database_of_something_else_is_refused(tmp_path: Path, version: int) -> None:
    path = tmp_path / "device.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE contributions (something TEXT)")
        database.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(HistoryError):
        opened(path).record(RUN, 1000, TERMS)


@pytest.mark.parametrize("damage", ["truncated", "zeroed", "overwritten"])
def test_damaged_history_takes_part_in_nothing(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "device.sqlite"
    filled(path).close()
    whole = path.read_bytes()
    rest = len(whole) - 4096
    changed = {"truncated": b"", "zeroed": bytes(rest), "overwritten": b"\xa5" * rest}[damage]
    path.write_bytes(whole[:4096] + changed)
    with pytest.raises(HistoryError):
        opened(path).record(RUN, 1000, TERMS)


def test_history_whose_table_is_lost_while_open_takes_part_in_nothing(tmp_path: Path) -> None:
    history = filled(tmp_path / "device.sqlite")
    with closing(sqlite3.connect(tmp_path / "device.sqlite")) as database:
        database.execute("DROP TABLE contributions")
    with pytest.raises(HistoryError):
        history.record(RUN, 1000, TERMS)


def test_only_its_owner_reads_a_history(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        DeviceHistory(tmp_path / "devices" / "laptop.sqlite").close()
    finally:
        os.umask(mask)
    assert (tmp_path / "devices").stat().st_mode & 0o077 == 0
    assert [path.name for path in (tmp_path / "devices").iterdir() if path.stat().st_mode & 0o077] == []
