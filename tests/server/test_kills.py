"""SIGKILL at every step of the commit, and at random moments; and the order of what makes a commit durable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "kill_loop.py"


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    if request.param == "sqlite":
        return [str(tmp_path / "store")]
    return [request.getfixturevalue("postgres_url"), str(tmp_path / "blobs")]


def kill_loop(*arguments: str) -> str:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_sigkill_before_any_operation_never_gives_two_results_or_a_release_without_its_charge(place: list[str]) -> None:
    """A hundred kills, one before each operation of opening, creating, committing and closing; see kill_loop.py."""
    kills, steps = map(int, kill_loop("every", *place).split())
    assert kills >= 60
    assert steps > 10


@pytest.mark.slow
def test_sigkill_at_any_moment_never_gives_two_results_for_a_step(place: list[str]) -> None:
    kills, steps = map(int, kill_loop("random", "40", *place).split())
    assert kills == 40
    assert steps > 20  # on a busy machine too: enough of them were in the middle of a commit, or between two


@pytest.mark.slow
def test_blobs_are_durable_before_the_commit_and_the_commit_before_the_note(place: list[str]) -> None:
    done = [line.split(maxsplit=1) for line in kill_loop("record", *place).splitlines()]
    wrote = max(number for number, (_, what) in enumerate(done) if what == "INSERT")
    committed = next(number for number in range(wrote, len(done)) if done[number][0] == "COMMIT")
    renamed = {number: what for number, (how, what) in enumerate(done) if how == "replace"}
    blobs = {number: what for number, what in renamed.items() if Path(what).parent == Path(place[-1]) / "blobs"}
    notes = {number: what for number, what in renamed.items() if "/published/" in what}
    assert (len(blobs), len(notes), len(renamed)) == (2, 1, 3)
    for number, what in renamed.items():
        content, directory = done[number - 1], done[number + 1]
        assert content[0] == directory[0] == "fsync"
        assert content[1].startswith(f"{what}.")
        assert directory[1] == str(Path(what).parent)
    assert max(blobs) + 1 < committed < min(notes) - 1
    assert all(number > min(notes) + 1 for number, (how, _) in enumerate(done) if how == "unlink")
