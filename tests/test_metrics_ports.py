"""Where the shards of a server publish metrics, and what is refused before a shard could die of it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from fedrho.console import BadInput
from fedrho.metrics_ports import MetricsPorts, metrics_ports

TASK = Path(__file__).parents[1] / "examples" / "digits.toml"


def test_a_server_without_shards_has_the_one_port_that_it_was_told() -> None:
    assert metrics_ports("127.0.0.1", None, 3) is None
    assert metrics_ports("127.0.0.1", 9464, 0) == MetricsPorts("127.0.0.1", 9464)
    assert MetricsPorts("127.0.0.1", 9464).said("127.0.0.1:9464") == "metrics: http://127.0.0.1:9464/metrics"


def test_shards_have_the_ports_that_follow() -> None:
    found = metrics_ports("127.0.0.1", 47310, 2)
    assert found == MetricsPorts("127.0.0.1", 47310, (47311, 47312))
    assert found.options(1) == ["--metrics-host", "127.0.0.1", "--metrics-port", "47312"]
    assert found.said("127.0.0.1:47310").endswith("; its shards at ports 47311, 47312")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_free_ports_differ_and_are_free(host: str) -> None:
    found = metrics_ports(host, 0, 8)
    assert found is not None
    assert len({*found.shards}) == 8
    for port in found.shards:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()


def test_what_a_shard_could_not_have_is_refused_in_a_line() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        busy = taken.getsockname()[1]
        with pytest.raises(BadInput, match=rf"needs ports .*{busy} is in use"):
            metrics_ports("127.0.0.1", busy - 1, 1)
    with pytest.raises(BadInput, match="the last port is 65535"):
        metrics_ports("127.0.0.1", 65534, 2)
    with pytest.raises(BadInput, match="47313 is named by another option"):
        metrics_ports("127.0.0.1", 47310, 4, [47313, 0])
    for port in (47310, 0):
        with pytest.raises(BadInput, match=r"192\.0\.2\.1"):
            metrics_ports("192.0.2.1", port, 1)


@pytest.mark.slow
def test_a_server_says_where_its_shards_publish_and_they_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedrho", "serve", str(TASK), "--store", "store", "--shards", "2", "--metrics-port", "0"]
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=output)
    try:
        ends = time.monotonic() + 300
        while "listening on" not in (said := (tmp_path / "output").read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < ends
            time.sleep(0.2)
        own, shards = re.findall(r"metrics: http://([\d.:]+)/metrics; its shards at ports (\d+, \d+)", said)[0]
        for address in (own, *(f"127.0.0.1:{port}" for port in shards.split(", "))):
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
                assert 'fedrho_uploads_total{outcome="COUNTED"} 0.0' in answer.read().decode()
    finally:
        process.terminate()
        process.wait(60)
