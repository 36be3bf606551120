"""The engine `processes`: long-lived workers on this machine, one a core, each with one thread of TensorFlow.

Weights go out once a round through shared memory, and every worker hands over one sum a round the same way. Whoever is
free takes the next unit. A worker that ends, however it ends, is replaced, and its units of the round are trained again; sums are
integers, so that the round's result is the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Final

from fedrho.privacy.vectors import FloatVector, unpack
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.engines.base import EngineError, Tested, Trained, Workload
from fedrho.simulations.engines.cores import available_cores
from fedrho.simulations.engines.dispatch import (
    PATIENCE,
    Dispatch,
    HandOver,
    Measurement,
    Round,
    Unit,
    checked,
    empty_sum,
    held_out_units,
    units,
)
from fedrho.simulations.engines.member import Failed, OpenData, Start, pickled
from fedrho.simulations.engines.shared import Shared
from fedrho.simulations.engines.worker_process import HandedOver, Measure, Order, Ready, Reply, Train

GRACE_SECONDS: Final = 3.0
ONE_THREAD: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)


class _Member:
    """One worker process, from its start to its end."""

    def __init__(self, start: bytes, weights: Shared, size: int) -> None:
        self.ready = False
        self.area = Shared(8 * size)
        self.channel, theirs = Pipe()
        given = (theirs.fileno(), weights.descriptor, self.area.descriptor)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fedrho.simulations.engines.worker_process", *map(str, given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=given,
            start_new_session=True,  # Ctrl-C is for the parent alone
            env={**os.environ, **dict.fromkeys(ONE_THREAD, "1"), "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        )
        theirs.close()
        with contextlib.suppress(OSError):  # it has ended, which is noticed as its channel is read
            self.channel.send_bytes(start)

    def tell(self, order: Order) -> None:
        with contextlib.suppress(OSError):
            self.channel.send(order)

    def let_go(self) -> None:
        """Asks it to end."""
        self.channel.close()
        assert self.process.stdin is not None
        self.process.stdin.close()

    def ended(self) -> str:
        """How; makes it end if it has not within a grace period."""
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
        code = self.process.wait()
        self.area.close()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class Processes:
    """Workers start at once, and make themselves ready while the caller goes on. `workers` 0: one for each core.

    `dataset` says how many examples devices hold, and is opened here if it is not given. `open_data` opens it in each worker.
    Whatever breaks a call off, Ctrl-C included, ends all workers; the next call starts others.
    """

    name = "processes"

    def __init__(self, work: Workload, workers: int = 0, *, dataset: FederatedDataset | None = None, open_data: OpenData) -> None:
        self._work = work
        self._dataset = dataset or open_data(work.data)
        self._start = pickled(Start(work, open_data))
        self._count = workers or available_cores()
        self._weights = Shared(4 * work.plan.size)
        self._members: dict[int, _Member] = {}
        self._started = 0
        self._ended_early = 0
        self._fill()

    @property
    def workers(self) -> tuple[int, ...]:
        """Their process ids."""
        return tuple(member.process.pid for member in list(self._members.values()))

    def train(self, step: int, weights: FloatVector, devices: Sequence[int]) -> Trained:
        job = Round(units(self._work, self._dataset, devices, self._count), empty_sum(self._work))
        self._run(job, weights, lambda unit: Train(step, unit.devices))
        return job.result()

    def test(self, weights: FloatVector) -> Tested:
        job = Measurement(held_out_units(self._dataset))
        self._run(job, weights, lambda unit: Measure(unit.span))
        return job.result()

    def close(self) -> None:
        self._stop()
        self._weights.close()

    def _run(self, job: Dispatch, weights: FloatVector, order_for: Callable[[Unit], Order]) -> None:
        self._weights.write(checked(weights, self._work).tobytes())
        try:
            self._fill()
            self._listen(job, timeout=0)
            while job.open:
                self._tell(job, order_for)
                self._listen(job)
        except BaseException:
            self._stop()
            raise

    def _tell(self, job: Dispatch, order_for: Callable[[Unit], Order]) -> None:
        for number, member in self._members.items():
            turn = job.turn(number) if member.ready else None
            if turn is not None:
                member.tell(turn if isinstance(turn, HandOver) else order_for(turn))

    def _listen(self, job: Dispatch, timeout: float | None = None) -> None:
        """Waits until something happens, and takes in all that has."""
        numbers = {member.channel: number for number, member in self._members.items()}
        for channel in wait(list(numbers), timeout):
            assert isinstance(channel, Connection)
            try:
                reply: Reply = channel.recv()
            except (EOFError, OSError):
                self._replace(job, numbers[channel])
            else:
                self._take(job, numbers[channel], reply)

    def _take(self, job: Dispatch, number: int, reply: Reply) -> None:
        if isinstance(reply, Failed):
            raise EngineError(f"a worker of the engine {self.name!r} failed: {reply.why}")
        if isinstance(reply, Ready):
            self._members[number].ready = True
            self._ended_early = 0
        elif isinstance(reply, HandedOver):
            assert isinstance(job, Round)
            with self._members[number].area.taken() as area:
                job.handed_over(number, unpack(area, self._work.plan.size, self._work.grid))
        else:
            job.done(number, reply)

    def _replace(self, job: Dispatch, number: int) -> None:
        member = self._members.pop(number)
        member.let_go()
        how = member.ended()
        self._ended_early += not member.ready
        if self._ended_early >= PATIENCE:
            raise EngineError(f"{PATIENCE} workers ended, one after another, as they started: the last {how}")
        job.ended(number, how)
        self._fill()

    def _fill(self) -> None:
        while len(self._members) < self._count:
            try:
                self._members[self._started] = _Member(self._start, self._weights, self._work.plan.size)
            except OSError as error:
                raise EngineError(f"no worker can be started: {error.strerror}") from error
            self._started += 1

    def _stop(self) -> None:
        """Ends all workers; another Ctrl-C meanwhile leaves none behind either, because they end with their standard input."""
        members, self._members = list(self._members.values()), {}
        for member in members:
            member.let_go()
        for member in members:
            member.ended()
