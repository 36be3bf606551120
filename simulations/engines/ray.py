"""The engine `ray`: long-lived actors on a Ray cluster, one a processor, each with one thread of TensorFlow.

Weights are put into Ray's object store once a round, and every actor hands over one sum a round. An actor that ends, alone or
with its node, is replaced wherever the cluster has room, and its units of the round are trained again.
"""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import platform
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.vectors import FloatVector, unpack
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.engines.base import EngineError, Tested, Told, Trained, Workload
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
from fedrho.simulations.engines.member import Failed, Member, OpenData, Start, one_line, pickled

START_SECONDS: Final = 300.0
"""While no actor at all is ready, how long to wait for one."""
KNOCK_SECONDS: Final = 10.0
LEAST_STORE: Final = 100 << 20
DECIDES_BITS: Final = ("fedrho", "tensorflow", "keras", "numpy")
"""Packages of which driver and actors must have the same versions."""

Versions = dict[str, str]
Call = Callable[[Any, Unit], Any]
"""Sends a unit to an actor, and returns what Ray calls the answer."""


class Actor:
    """What runs in an actor's process. It raises nothing but what Ray itself raises: a failure is an answer, too."""

    def __init__(self) -> None:
        self._member: Member | None = None

    def start(self, start: bytes) -> Versions | Failed:
        try:
            self._member = Member(pickle.loads(start))
        except Exception as error:
            return Failed(one_line(error))
        return versions()

    def train(self, step: int, weights: FloatVector, devices: Sequence[int]) -> Told | Failed:
        return self._ready.train(step, weights, devices)

    def hand_over(self) -> NDArray[np.uint8]:
        """An array, because Ray moves those without a copy."""
        return np.frombuffer(self._ready.hand_over(), dtype=np.uint8)

    def test(self, weights: FloatVector, places: range) -> Tested | Failed:
        return self._ready.test(weights, places)

    @property
    def _ready(self) -> Member:
        assert self._member is not None
        return self._member


class RayCluster:
    """`workers` 0: one for each processor of the cluster, or for each core here where no cluster is running yet.

    `address` is that of a running cluster, in Ray's own words. Without one, and without a setting of Ray's that names one, one
    starts on this machine, with neither dashboard nor usage statistics, and ends with `close`. Raises EngineError.
    """

    name = "ray"

    def __init__(
        self,
        work: Workload,
        workers: int = 0,
        *,
        dataset: FederatedDataset | None = None,
        open_data: OpenData,
        address: str = "",
    ) -> None:
        self._work = work
        self._dataset = dataset or open_data(work.data)
        self._start = pickled(Start(work, open_data))
        self._ray = _ray()
        self._folder, self._connected = "", False
        self._actors: dict[int, Any] = {}
        self._ready: set[int] = set()
        self._calls: dict[Any, int] = {}
        self._started = 0
        self._ended_early = 0
        self._connect(address, workers)
        there = int(self._ray.cluster_resources().get("CPU", 0))
        self._count = workers or there
        if not 1 <= self._count <= there:
            self.close()
            raise EngineError(f"engine.workers: {self._count}, and the Ray cluster has {there} processors")
        self._fill()

    @property
    def actors(self) -> tuple[Any, ...]:
        return tuple(self._actors.values())

    def train(self, step: int, weights: FloatVector, devices: Sequence[int]) -> Trained:
        broadcast = self._ray.put(checked(weights, self._work))
        job = Round(units(self._work, self._dataset, devices, self._count), empty_sum(self._work))
        self._run(job, lambda actor, unit: actor.train.remote(step, broadcast, unit.devices))
        return job.result()

    def test(self, weights: FloatVector) -> Tested:
        broadcast = self._ray.put(checked(weights, self._work))
        job = Measurement(held_out_units(self._dataset))
        self._run(job, lambda actor, unit: actor.test.remote(broadcast, unit.span))
        return job.result()

    def close(self) -> None:
        """Ends the actors, and the cluster if it was started here."""
        self._stop()
        if self._connected:
            self._ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self, address: str, workers: int) -> None:
        """To the cluster that this process is connected to already, to the one that is named, or to one that starts here."""
        if self._ray.is_initialized():
            return
        quiet = {"log_to_driver": False, "logging_level": "error"}
        address = address or os.environ.get("RAY_ADDRESS", "")
        knocked = False
        try:
            if address:
                _knock(address)
                knocked = True
                self._ray.init(address=address, **quiet)
                self._connected = True
                return
            self._folder = tempfile.mkdtemp(prefix="fedrho-ray-")
            store = max(LEAST_STORE, 64 * self._work.plan.size)
            self._ray.init(
                address="local",
                num_cpus=workers or available_cores(),
                include_dashboard=False,
                object_store_memory=store,
                _temp_dir=self._folder,
                **quiet,
            )
            self._connected = True
        except Exception as error:
            if self._folder:
                shutil.rmtree(self._folder, ignore_errors=True)
            where = f"no cluster at {address}" if address else "no cluster"
            hint = f"; {ITS_TOKEN}" if knocked else ""
            raise EngineError(f"ray: {where}: {one_line(error)}{hint}") from error

    def _run(self, job: Dispatch, call: Call) -> None:
        try:
            self._fill()
            while job.open:
                self._tell(job, call)
                self._listen(job)
        except BaseException:
            self._stop()
            raise

    def _tell(self, job: Dispatch, call: Call) -> None:
        for number in self._ready:
            turn, actor = job.turn(number), self._actors[number]
            if isinstance(turn, HandOver):
                self._calls[actor.hand_over.remote()] = number
            elif turn is not None:
                self._calls[call(actor, turn)] = number

    def _listen(self, job: Dispatch) -> None:
        done, _ = self._ray.wait(list(self._calls), timeout=None if self._ready else START_SECONDS)
        if not done:
            raise EngineError(
                f"ray: no actor was ready after {START_SECONDS:g} s; `ray status` shows what the cluster has room for"
            )
        for answered in done:
            number = self._calls.pop(answered)
            try:
                reply = self._ray.get(answered)
            except self._ray.exceptions.RayError as error:
                self._replace(job, number, f"ended with {type(error).__name__}")
            else:
                self._take(job, number, reply)

    def _take(self, job: Dispatch, number: int, reply: Versions | Told | Tested | NDArray[np.uint8] | Failed) -> None:
        if isinstance(reply, Failed):
            raise EngineError(f"an actor of the engine {self.name!r} failed: {reply.why}")
        if isinstance(reply, dict):
            _check(reply)
            self._ready.add(number)
            self._ended_early = 0
        elif isinstance(reply, np.ndarray):
            assert isinstance(job, Round)
            job.handed_over(number, unpack(reply.data, self._work.plan.size, self._work.grid))
        else:
            job.done(number, reply)

    def _replace(self, job: Dispatch, number: int, how: str) -> None:
        self._ray.kill(self._actors.pop(number))
        self._ended_early += number not in self._ready
        self._ready.discard(number)
        if self._ended_early >= PATIENCE:
            raise EngineError(f"{PATIENCE} actors ended, one after another, as they started: the last {how}")
        job.ended(number, how)
        self._fill()

    def _fill(self) -> None:
        while len(self._actors) < self._count:
            actor = self._ray.remote(num_cpus=1, max_restarts=0)(Actor).remote()
            self._actors[self._started] = actor
            self._calls[actor.start.remote(self._start)] = self._started
            self._started += 1

    def _stop(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors, self._calls = {}, {}
        self._ready.clear()


ITS_TOKEN = "if it asks for a token, set RAY_AUTH_MODE=token and copy ~/.ray/auth_token from its head node"


def _knock(address: str) -> None:
    """Raises OSError where nobody listens; Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()


def versions() -> Versions:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in DECIDES_BITS}}


def _check(theirs: Versions) -> None:
    for name, ours in versions().items():
        if theirs[name] != ours:
            raise EngineError(f"ray: {name} is {ours} here and {theirs[name]} on a node; results would differ in their last bits")


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise EngineError("the engine 'ray' needs Ray: install fedrho[ray]") from error
    return ray
