"""Actors on a Ray cluster of two nodes give the bits of the serial engine, whichever of them end."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedrho.simulations.engines.base import EngineError
from fedrho.simulations.engines.ray import RayCluster
from tests.simulations.engines.small import open_made, rounds, serial, workload

pytestmark = [
    pytest.mark.slow,
    # Ray's own: of processes that it leaves to end by themselves, and of its generated messages.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
TOP = Path(__file__).parents[3]
MLP, LOGISTIC = workload("digits-mlp"), workload()
DASHBOARD = 8265


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each; their processes find the tests, whose data set actors open."""
    os.environ["RAY_USAGE_STATS_ENABLED"], before = "0", os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(TOP)
    utilities = pytest.importorskip("ray.cluster_utils")
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    made = two_nodes(utilities.Cluster, node)
    yield made
    made.shutdown()
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


def two_nodes(cluster: Any, node: dict[str, int], tries: int = 3) -> Any:
    """Ray gives a node thirty seconds to start, and a busy machine does not always keep to that."""
    try:
        made = cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        made.second = made.add_node(**node)
    except Exception:
        if tries == 1:
            raise
        return two_nodes(cluster, node, tries - 1)
    return made


def meanwhile(happens: Callable[[], object], train: Callable[[], Any]) -> Any:
    timer = threading.Timer(0.02, happens)
    timer.start()
    try:
        return train()
    finally:
        timer.join()


def test_a_lost_actor_and_a_lost_node_change_no_bit(cluster: Any) -> None:
    import ray

    with closing(RayCluster(MLP, 2, open_data=open_made, address=cluster.address)) as engine:
        results, measured = rounds(engine, MLP, range(1))
        first = engine.actors
        results += meanwhile(lambda: ray.kill(first[0]), lambda: rounds(engine, MLP, range(1, 2)))[0]
        results += meanwhile(lambda: cluster.remove_node(cluster.second), lambda: rounds(engine, MLP, range(2, 3)))[0]
        cluster.second = cluster.add_node(num_cpus=1)
        results += rounds(engine, MLP, range(3, 4))[0]
        assert not set(first) & set(engine.actors)
    assert (results, measured) == serial(MLP, range(4))
    assert not ray.is_initialized()


def test_more_workers_than_processors_are_refused(cluster: Any) -> None:
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
