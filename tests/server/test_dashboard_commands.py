"""The dashboard as commands bring it up, `fedrho serve` and `fedrho dashboard`, in processes of their own; over PostgreSQL."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import pytest

from fedrho.dashboard_command import KeptRuns
from fedrho.operate import Where, status_lines, status_values
from fedrho.privacy.noise import SystemNoise
from fedrho.server.coordinator import Surroundings, open_run
from fedrho.server.operations.dashboard.pages import Pages
from fedrho.server.storage.store import open_store
from tests.server.dashboarding import text_of
from tests.server.operating import TASK, small_task

pytestmark = pytest.mark.slow


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "fedrho", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def told(child: subprocess.Popen[str], pattern: str) -> str:
    """What a line says that matches."""
    assert child.stderr is not None
    for line in child.stderr:
        found = re.search(pattern, line)
        if found:
            return found[1]
    raise AssertionError(f"{pattern}: never said")


def opened(address: str, token: str) -> tuple[http.client.HTTPConnection, str]:
    """A connection that stays open, and the overview."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    connection.request("POST", "/login", f"token={quote(token)}")
    answer = connection.getresponse()
    answer.read()
    cookie = answer.headers["set-cookie"].partition(";")[0]
    connection.request("GET", "/", headers={"cookie": cookie})
    return connection, text_of(connection.getresponse().read().decode())


def test_serve_has_one_and_ends_with_it(tmp_path: Path) -> None:
    task = tmp_path / "small.toml"
    task.write_text(TASK.format(name="small", steps=3, goal=2, deadline=60, population=12, window="false"))
    with running("serve", task, "--store", tmp_path / "store", "--port", 0) as server:
        address = told(server, r"^dashboard: (http://127\.0\.0\.1:\d+),")
        told(server, r"(listening) on")
        known = json.loads((tmp_path / "store" / "operator.json").read_text())
        assert known["dashboard"] == address
        *_, last = status_lines(status_values(Where(str(tmp_path / "store"), None, None, None)))
        assert last == f"dashboard: {address}"
        connection, overview = opened(address, known["token"])
        assert "step 0 of 3" in overview.lower()
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 130
        connection.close()
    for number in (signal.SIGINT, signal.SIGTERM):
        ended_by(number, tmp_path / "store")


def ended_by(number: signal.Signals, store: Path) -> None:
    with running("dashboard", store) as looking:
        address = told(looking, r"^dashboard: (\S+),")
        connection, overview = opened(address, told(looking, r"^token: (\w{64})$"))
        assert "Runs of this store" in overview
        assert "Round" not in overview, "nobody knows of the open attempt"
        looking.send_signal(number)
        assert looking.wait(20) == 0, "it is meant to end so"
        connection.close()


def test_a_store_in_postgresql_is_shown_as_well(tmp_path: Path, postgres_url: str) -> None:
    with open_store(postgres_url, tmp_path) as store:
        around = Surroundings(SystemNoise(), store, lambda: bytes(16), [])
        open_run(small_task(), around, lambda: np.zeros(4, dtype=np.float32), 1_790_000_000.0)
        runs = KeptRuns(postgres_url)
        now, pages = runs.look(), Pages(runs, live=False)
        assert "rho 0 of 2" in text_of(pages.overview(now, "f"))
        for text in (pages.run(now, "small", "f"), pages.history(now, "small", 1, "f")):
            assert "chain whole" in text
            assert "postgres" not in text, "no page says where the database is"
