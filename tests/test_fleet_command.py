"""`fedrho fleet` as a user runs it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from fedrho.client.fleet import Counts, Ledgers
from fedrho.fleet import _fleet_json, _histories
from tests.client.fleet import contributions, open_small_run, small_task
from tests.client.serving import serving
from tests.commanding import Run, refused
from tests.test_cli import fedrho

__all__ = ["fedrho"]


@pytest.mark.slow
def test_fleet_tells_what_came_of_its_visits_and_keeps_the_histories_that_it_is_told_to_keep(tmp_path: Path) -> None:
    engine = open_small_run(small_task(steps=2, goal=5), now=time.monotonic())

    async def run() -> tuple[int | None, bytes, bytes]:
        async with serving(engine) as address:
            options = ["--devices", "12", "--spread", "0.2", "--history", str(tmp_path / "kept"), "--json"]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "fedrho", "fleet", address, *options),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            out, err = await asyncio.wait_for(process.communicate(), 60.0)
            return process.returncode, out, err

    code, out, err = asyncio.run(run())
    assert code == 0, err
    result = json.loads(out)
    assert result["visits"]["counted"] == 10
    assert (result["devices"], result["released"], result["steps"], result["lost"]) == (12, 2, 2, 0)
    files = list((tmp_path / "kept").glob("*.sqlite"))
    assert len(files) == 12
    assert sum(len(contributions(file)) for file in files) == result["in_ledgers"] >= 10
    assert b"step 2/2" in err


def test_histories_are_gone_with_the_fleet_unless_they_are_named(tmp_path: Path) -> None:
    with _histories(None) as folder:
        (folder / "device.sqlite").write_text("")
    assert not folder.exists()
    with _histories(tmp_path) as folder:
        assert folder == tmp_path
    assert tmp_path.exists()


def test_lost_contributions_are_in_the_figures() -> None:
    counts = Counts(Counter({"counted": 7}), released=3, steps=3)
    assert _fleet_json(5, counts, Ledgers(6, 1), 1.0, 1.0)["lost"] == 1


@pytest.mark.parametrize(
    ("option", "expected"),
    [("--devices=0", "--devices"), ("--drop-out=1", "--drop-out"), ("--slow=2", "--slow"), ("--update=none", "--update")],
)
def test_options_that_make_no_sense_are_refused(option: str, expected: str, fedrho: Run) -> None:
    refused(fedrho("fleet", "127.0.0.1:1", option), expected)


def test_fleet_needs_host_and_port(fedrho: Run) -> None:
    refused(fedrho("fleet", "localhost"), "is not HOST:PORT")


def test_fleet_without_a_server_says_so_in_time(fedrho: Run) -> None:
    refused(fedrho("fleet", "127.0.0.1:1", "--wait", 0.5), "no server answered")
