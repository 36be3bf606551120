"""`fedrho join --forever` as a user runs it, its unit for systemd, and what `--when` refuses."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main

from fedrho import cli
from fedrho.client.conditions import condition
from tests.commanding import Run, refused
from tests.test_cli import EXAMPLE, fedrho

__all__ = ["fedrho"]

UNIT = Path(__file__).parents[1] / "deploy" / "systemd" / "fedrho-join.service"


def service() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser["Service"]


def test_unit_runs_a_command_that_there_is() -> None:
    _, program, *arguments = shlex.split(service()["ExecStart"])
    assert (program, arguments[0]) == ("fedrho", "join")
    command = typer.main.get_command(cli.app).commands["join"]  # type: ignore[attr-defined]
    parsed = command.make_context("join", arguments[1:]).params
    assert parsed["forever"]
    assert [condition(text).name for text in parsed["when"]] == ["idle", "mains-power", "unmetered", "hours", "off-switch"]


def test_unit_does_not_start_again_what_waiting_does_not_mend() -> None:
    assert (service()["Restart"], service()["RestartPreventExitStatus"]) == ("on-failure", "2")
    assert service()["LimitCORE"] == "0"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_the_unit() -> None:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(UNIT)], capture_output=True, text=True, timeout=60)
    assert [line for line in done.stderr.splitlines() if UNIT.name in line] == []


@pytest.mark.parametrize("text", ["rain", "hours=22-6", "idle=soon", "off-switch", ""])
def test_condition_that_is_none_is_refused_before_anything_else(text: str, fedrho: Run) -> None:
    refused(fedrho("join", "127.0.0.1:1", "--data", "digits", f"--when={text}"), "--when", "allowed")


@pytest.fixture
def address() -> str:
    """Where nobody listens yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_service_that_waits_for_a_server_stops_at_once_when_it_is_told_to(
    number: signal.Signals, address: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "fedrho", "join", address, "--data", "digits", "--history", str(tmp_path), "--forever"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d server: the server is away; next try in \d\.\d s\n", line)
    process.send_signal(number)
    began = time.monotonic()
    _, rest = process.communicate(timeout=30)
    assert time.monotonic() - began < 5.0
    assert process.returncode == 0
    assert rest.splitlines()[-1].endswith(" fedrho: stopped; the same command goes on")


@pytest.mark.slow
def test_service_is_counted_by_a_server_that_comes_later_and_stays_when_it_goes(address: str, tmp_path: Path) -> None:
    port = address.rpartition(":")[2]
    task = tmp_path / "task.toml"
    task.write_text(EXAMPLE.read_text().replace("steps = 30", "steps = 2").replace("max_times = 10", "max_times = 2"))
    lines = (tmp_path / "lines").open("w+")
    base = [sys.executable, "-m", "fedrho"]
    join = subprocess.Popen(
        [*base, "join", address, "--data", "digits", "--history", str(tmp_path / "d"), "--forever"], stderr=lines
    )
    try:
        serve = [*base, "serve", str(task), "--port", port, "--store", str(tmp_path / "store"), "--json"]
        done = subprocess.run(serve, check=True, timeout=600, capture_output=True)
        ended = json.loads(done.stdout)
        assert join.poll() is None
        join.terminate()
        assert join.wait(30) == 0
    finally:
        join.kill()
        join.wait()
    assert [(run["state"], run["step"], 0 < run["rho"] <= 10) for run in ended["runs"]] == [("finished", 2, True)]
    assert (ended["running"], ended["combined"]["unit"]) == (False, "device")
    lines.seek(0)
    said = lines.read()
    lines.close()
    assert len(re.findall(r"device-\d{3}: counted, [01] of 2 steps released; next visit in \d", said)) == 2 * 10
