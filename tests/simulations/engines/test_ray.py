"""Actors on a Ray cluster of two nodes give the bits of the serial engine, whichever of them end."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedrho.simulations.engines.base import EngineError
from fedrho.simulations.engines.ray import RayCluster
from tests.docs import shell
from tests.docs.beside import Beside
from tests.docs.pages import blocks_of
from tests.docs.running import installed
from tests.simulations.engines.small import open_made, rounds, serial, workload

pytestmark = [
    pytest.mark.slow,
    # Ray's own: of processes that it leaves to end by themselves, and of its generated messages.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
TOP = Path(__file__).parents[3]
MLP, LOGISTIC = workload("digits-mlp"), workload()
DASHBOARD = 8265


class Nodes:
    """Of one processor each, started by the commands of docs/engines.md and kept in the foreground, so that each can be ended."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        *_, self._head, self._other = commands()
        self._folder = folder
        self._started: list[Beside] = []

    def head(self) -> None:
        self._start(self._head, "--port", self.address.rpartition(":")[2], "--include-dashboard=false")

    def other(self) -> None:
        self._start([word.replace("HEAD:6379", self.address) for word in self._other])

    def end_last(self) -> None:
        self._started.pop().end()

    def close(self) -> None:
        while self._started:
            self.end_last()

    def _start(self, command: list[str], *options: str, tries: int = 3) -> None:
        """Ray gives a node thirty seconds to start, and a busy machine does not always keep to that."""
        ours = ["--block", "--num-cpus=1", f"--object-store-memory={100 << 20}", "--disable-usage-stats", *PORTS, *options]
        self._started.append(Beside([*in_this_environment(command), *ours], self._folder / f"{len(self._started)}.log"))
        try:
            self._started[-1].wait_for("Ray runtime started")
        except AssertionError:
            if tries == 1:
                raise
            self.end_last()
            self._start(command, *options, tries=tries - 1)


def in_this_environment(command: list[str]) -> list[str]:
    return [str(Path(sys.executable).parent / command[0]), *command[1:]]


PORTS = ("--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0")
"""Of two nodes on one machine."""


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With a token of its own, as the page says, before Ray is imported, which looks for one but once."""
    if find_spec("ray") is None:
        pytest.skip("ray is not installed")
    packages, mode, token, *_ = commands()
    installed(packages)
    folder = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("PYTHONPATH", str(TOP))
        patch.setenv(*mode[1].split("="))
        subprocess.run(in_this_environment(token), check=True, capture_output=True)
        yield folder


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[Nodes]:
    """Its processes find the tests, whose data set actors open."""
    with closing(Nodes(home)) as nodes:
        nodes.head()
        nodes.other()
        yield nodes


def commands() -> list[list[str]]:
    (block,) = [block for block in blocks_of("engines.md", "bash") if "ray start" in block.text]
    return [shell.words(line) for line in shell.lines(block)]


def meanwhile(happens: Callable[[], object], train: Callable[[], Any]) -> Any:
    timer = threading.Timer(0.02, happens)
    timer.start()
    try:
        return train()
    finally:
        timer.join()


def test_a_lost_actor_and_a_lost_node_change_no_bit(cluster: Nodes) -> None:
    import ray

    with closing(RayCluster(MLP, 2, open_data=open_made, address=cluster.address)) as engine:
        results, measured = rounds(engine, MLP, range(1))
        first = engine.actors
        results += meanwhile(lambda: ray.kill(first[0]), lambda: rounds(engine, MLP, range(1, 2)))[0]
        results += meanwhile(cluster.end_last, lambda: rounds(engine, MLP, range(2, 3)))[0]
        cluster.other()
        results += rounds(engine, MLP, range(3, 4))[0]
        assert not set(first) & set(engine.actors)
    assert (results, measured) == serial(MLP, range(4))
    assert not ray.is_initialized()


def test_more_workers_than_processors_are_refused(cluster: Nodes) -> None:
    with pytest.raises(EngineError, match=r"^engine.workers: 3, and the Ray cluster has 2 processors$"):
        RayCluster(MLP, 3, open_data=open_made, address=cluster.address)


def test_an_address_without_a_cluster_is_one_line() -> None:
    with pytest.raises(EngineError, match=r"^ray: no cluster at 127.0.0.1:1: .*") as raised:
        RayCluster(MLP, 1, open_data=open_made, address="127.0.0.1:1")
    assert "\n" not in str(raised.value)


def test_a_cluster_started_here_ends_with_the_engine() -> None:
    """Nothing in it listens where a dashboard would."""
    before = children()
    with closing(RayCluster(LOGISTIC, 1, open_data=open_made)) as engine:
        connections = [one for child in children() - before for one in child.net_connections()]
        listening = {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}
        assert listening
        assert DASHBOARD not in listening
        folder = Path(engine._folder)
        assert folder.exists()
    assert children() <= before
    assert not folder.exists()


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))
