"""Worker processes give the bits of the plain loop, whatever happens to them, and nothing of them outlives the engine."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from fedrho.simulations.data.base import DataSource, Examples, FederatedDataset
from fedrho.simulations.engines import dispatch
from fedrho.simulations.engines.base import EngineError
from fedrho.simulations.engines.member import OpenData
from fedrho.simulations.engines.processes import Processes
from tests.simulations.engines.small import Made, cohort, open_made, rounds, serial, weights_of, workload

pytestmark = pytest.mark.slow

LOGISTIC, VECTORISED, MLP = workload(), workload(vectorised=True), workload("digits-mlp")


def gone(pids: Sequence[int], within: float = 20.0) -> bool:
    deadline = time.monotonic() + within
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Descriptors and children, as they were before."""

    def held() -> tuple[list[str], set[int]]:
        me = psutil.Process()
        return sorted(os.listdir("/proc/self/fd")), {child.pid for child in me.children(True)}

    before = held()
    yield
    assert held() == before


def ready(engine: Processes) -> list[int]:
    return [member.process.pid for member in list(engine._members.values()) if member.ready]


@pytest.mark.usefixtures("nothing_left")
def test_three_workers_give_the_bits_of_the_serial_engine() -> None:
    with closing(Processes(VECTORISED, 3, open_data=open_made)) as engine:
        results, measured = rounds(engine, VECTORISED, range(3))
        assert len(engine.workers) == 3
    assert (results, measured) == serial(VECTORISED, range(3))
    failed = results[0][-1]
    assert isinstance(failed, list)
    assert 0 < sum(failed) < len(failed)


@pytest.mark.usefixtures("nothing_left")
def test_workers_killed_at_any_moment_change_no_bit() -> None:
    chance = random.Random(11)
    expected, results, killed = serial(LOGISTIC, range(3))[0], [], []
    with closing(Processes(LOGISTIC, 2, open_data=open_made)) as engine:
        engine.train(0, weights_of(), cohort(0))
        for step, victims in enumerate((1, 2, 1)):

            def kill() -> None:
                alive = ready(engine)
                for pid in chance.sample(alive, min(victims, len(alive))):  # noqa: B023
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

            timer = threading.Timer(chance.uniform(0, 0.03), kill)
            timer.start()
            results += rounds(engine, LOGISTIC, range(step, step + 1))[0]
            timer.join()
        assert len(killed) > 2
        assert not set(killed[:-1]) & set(engine.workers)
    assert results == expected


class Deadly(Made):
    """Whoever asks for the examples of device 13 ends at once."""

    def examples(self, device: int) -> Examples:
        if device == 13:
            os._exit(3)
        return super().examples(device)


def open_deadly(source: DataSource) -> FederatedDataset:
    return Deadly()


class Broken(Made):
    def examples(self, device: int) -> Examples:
        raise OSError(f"the file of device {device}\nis gone")


def open_broken(source: DataSource) -> FederatedDataset:
    return Broken()


def open_here_only(source: DataSource) -> FederatedDataset:
    if Path(sys.argv[0]).name == "worker_process.py":
        raise ValueError("the data set is not there")
    return Made()


@pytest.mark.usefixtures("nothing_left")
def test_a_device_that_ends_every_worker_is_named_with_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "PATIENCE", 2)
    said = r"^2 workers ended, one after another, at device 13: the last ended with exit code 3$"
    with closing(Processes(LOGISTIC, 2, open_data=open_deadly)) as engine:
        with pytest.raises(EngineError, match=said):
            engine.train(0, weights_of(), [13])
        assert engine.workers == ()


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("open_data", "said"),
    [
        (open_broken, r"failed: OSError \(test_processes.py:\d+\): the file of device 4 is gone$"),
        (open_here_only, r"failed: the data set is not there$"),
    ],
)
def test_what_a_worker_raises_is_one_line(open_data: OpenData, said: str) -> None:
    with closing(Processes(workload(), 1, open_data=open_data)) as engine, pytest.raises(EngineError, match=said):
        engine.train(0, weights_of(), [4])


SCRIPT = """
import sys
from fedrho.simulations.engines.processes import Processes
from tests.simulations.engines.small import open_made, weights_of, workload, cohort
engine = Processes(workload(), 2, open_data=open_made)
if sys.argv[1] == "trains":
    engine.train(0, weights_of(), cohort(0))
print(*engine.workers, flush=True)
while True:
    engine.train(0, weights_of(), cohort(0, 1000))
"""


@pytest.mark.parametrize(("sent", "at"), [(signal.SIGKILL, "starts"), (signal.SIGKILL, "trains"), (signal.SIGINT, "starts")])
def test_no_worker_outlives_a_parent_that_is_ended(sent: signal.Signals, at: str) -> None:
    command = [sys.executable, "-c", SCRIPT, at]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.send_signal(sent)
        parent.stdout.read()
        assert parent.wait(20) == -sent
    assert gone(workers)
