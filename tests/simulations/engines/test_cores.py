"""How many cores there are, as a machine or a container says it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedrho.simulations.engines import cores
from fedrho.simulations.engines.cores import available_cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight processors on four cores, all of them allowed, and no control group yet."""
    for number in range(8):
        topology = tmp_path / "cpu" / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    monkeypatch.setattr(cores, "CPUS", tmp_path / "cpu")
    monkeypatch.setattr(cores, "GROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return tmp_path


def test_two_threads_of_a_core_count_once(machine: Path) -> None:
    assert available_cores() == 4


def test_affinity_counts(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2, 5}, raising=False)
    assert available_cores() == 2


@pytest.mark.parametrize(("text", "found"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 4), ("1600000 100000", 4)])
def test_what_a_control_group_gives_counts(machine: Path, text: str, found: int) -> None:
    (machine / "cpu.max").write_text(text + "\n")
    assert available_cores() == found


@pytest.mark.parametrize(("quota", "found"), [("300000", 3), ("-1", 4)])
def test_what_an_older_control_group_gives_counts(machine: Path, quota: str, found: int) -> None:
    (machine / "cpu").mkdir(exist_ok=True)
    (machine / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (machine / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert available_cores() == found


def test_this_machine_has_a_core() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
