"""No core file of a process that asked for none: seen in processes that abort, and in the real commands."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.server.http2 import RawHttp2

ABORTS = """
import ctypes, os, resource
hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))  # here, and not between fork and exec, where gRPC's own threads are lost
from fedrho.server.hardening import forbid_core_dumps
forbid_core_dumps()
print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), flush=True)
os.abort()
"""
PR_GET_DUMPABLE_OF_A_HARDENED_PROCESS = "0"
TASK = Path(__file__).parents[2] / "examples" / "digits.toml"

linux = pytest.mark.skipif(sys.platform != "linux", reason="the mark on the process is Linux's")


def cores_allowed() -> None:
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


@linux
def test_a_process_that_aborts_leaves_no_core(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", ABORTS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGABRT
    assert done.stdout.strip() == PR_GET_DUMPABLE_OF_A_HARDENED_PROCESS
    assert list(tmp_path.iterdir()) == []


@contextmanager
def command(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs until it says that it listens."""
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedrho", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(TASK.parents[1])},
            stdout=output,
            stderr=output,
            preexec_fn=cores_allowed,
        )
    try:
        ends = time.monotonic() + 60
        while b"listening on" not in (folder / "output").read_bytes():
            assert process.poll() is None, (folder / "output").read_text()
            assert time.monotonic() < ends
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def forbids_cores(process: subprocess.Popen[bytes]) -> bool:
    """Its limit; and, where the tests are not root's, the mark: its files in /proc are root's then."""
    limits = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
    limit = next(line for line in limits if line.startswith("Max core file size")).split()[4:6]
    return limit == ["0", "0"] and Path(f"/proc/{process.pid}/environ").stat().st_uid == 0


@pytest.mark.slow
@linux
def test_a_shard_that_aborts_leaves_no_core(tmp_path: Path) -> None:
    with command(tmp_path, "shard", f"unix:{tmp_path}/s") as process:
        assert forbids_cores(process)
        process.send_signal(signal.SIGABRT)
        assert process.wait(30) == -signal.SIGABRT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "s"]


@pytest.mark.slow
def test_a_server_says_that_it_stops_and_children_get_its_options(tmp_path: Path) -> None:
    options = ("--store", "store", "--port", "0", "--shards", "1", "--max-connections", "7", "--log-format", "json")
    with command(tmp_path, "serve", str(TASK), *options, "--log-file", "log") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (given,) = [Path(f"/proc/{child}/cmdline").read_text().split("\0") for child in children]
        assert given[given.index("--max-connections") + 1] == "7"
        assert given[given.index("--log-format") + 1] == "json"
        process.terminate()
        assert process.wait(30) == 130
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert events[-2:] == ["stopping", "stopped"]


@pytest.mark.slow
def test_a_server_has_no_more_connections_than_it_is_told(tmp_path: Path) -> None:
    for number, arguments in enumerate((("serve", str(TASK), "--port", "0"), ("shard", f"unix:{tmp_path}/s"))):
        (folder := tmp_path / str(number)).mkdir()
        with command(folder, *arguments, "--max-connections", "2"):
            address = (folder / "output").read_text().split("listening on ")[1].split()[0].rstrip(",")
            clients = [RawHttp2(address) for _ in range(3)]
            assert [client.frames(0.3)[1] for client in clients] == [False, False, True]
            for client in clients:
                client.socket.close()


@linux
@pytest.mark.slow
def test_a_server_and_its_shards_leave_no_core(tmp_path: Path) -> None:
    options = ("--store", "store", "--port", "0", "--shards", "1")
    with command(tmp_path, "serve", str(TASK), *options) as process:
        assert forbids_cores(process)
        process.send_signal(signal.SIGABRT)
        assert process.wait(30) == -signal.SIGABRT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "store"]
