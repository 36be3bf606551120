"""Real runs behind real ports: devices that upload over gRPC, and an operator port beside them."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from fedrho.client.history import DeviceHistory
from fedrho.client.participant import Outcome, Participant
from fedrho.client.spec import SpecReader
from fedrho.client.transport import GrpcWire
from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.vectors import FloatVector, Update
from fedrho.protos.messages import RoundPlan
from fedrho.protos.signing import SigningKey
from fedrho.server.coordinator import Surroundings, open_run
from fedrho.server.guard import device_handlers
from fedrho.server.listen import ServerTls
from fedrho.server.operations.metrics import Metrics, device_metrics, operator_metrics
from fedrho.server.operations.observer import Observer, Observers
from fedrho.server.operations.operator_port import OPERATOR_FILE, OperatorAccess, OperatorPlace, OperatorServer, read_access
from fedrho.server.operations.watching import RunWatch, Views
from fedrho.server.population import Population
from fedrho.server.ports import device_server
from fedrho.server.release import Store
from fedrho.server.service import DeviceService
from fedrho.server.shard import LocalShard, Shard
from fedrho.server.storage.store import MemoryStore
from fedrho.server.tasks import Task, parse_task
from fedrho.server.uploads import UploadService

SIZE = 650
TASK = """
name = "{name}"
algorithm = "dp-fedavg"
model = "digits-logistic"
steps = {steps}
population = {population}
[round]
goal = {goal}
overselect = 2.0
deadline_seconds = {deadline}
lease_seconds = 5
retry_seconds = [0.05, 0.1]
[privacy]
clip_norm = 1.0
rho = 2.0
delta = 1e-3
grid_bits = 10
[participation]
max_times = {steps}
min_separation = 1
server_window = {window}
"""


def small_task(
    name: str = "small", steps: int = 3, goal: int = 2, deadline: float = 60.0, window: bool = False, population: int = 12
) -> Task:
    values = {"name": name, "steps": steps, "goal": goal, "deadline": deadline, "population": population}
    text = TASK.format(window=str(window).lower(), **values)
    return parse_task(text, f"{name}.toml")


def open_population(*tasks: Task, shard: Shard, store: Store | None = None, now: float = 0.0) -> Population:
    store = store or MemoryStore()
    ids = (number.to_bytes(16, "big") for number in itertools.count(1))
    around = Surroundings(SystemNoise(), store, lambda: next(ids), [LocalShard(shard)])
    runs = [open_run(task, around, lambda: np.zeros(SIZE, dtype=np.float32), now) for task in tasks]
    return Population(runs, store, SigningKey.generate())


@dataclass(frozen=True)
class Site:
    """A server with both its ports. `stop` ends its rounds and makes it unhealthy."""

    population: Population
    metrics: Metrics
    device_address: str
    operator: OperatorServer
    access: OperatorAccess
    stop: asyncio.Event


@asynccontextmanager
async def site(
    folder: Path,
    *tasks: Task,
    tell: Callable[[Views], None] | None = None,
    metrics: Metrics | None = None,
    store: Store | None = None,
    tls: ServerTls | None = None,
    beside: Observer | None = None,
) -> AsyncIterator[Site]:
    """Rounds go on until the end of the block; `operator.json` lies in `folder`; `beside` is told what the metrics are."""
    metrics, shard, stop = metrics or Metrics(with_runs=True), Shard(), asyncio.Event()
    population = open_population(*tasks, shard=shard, store=store, now=time.monotonic())
    observer = Observers([metrics, beside or Observer()])
    service = DeviceService(population, time.monotonic, lambda _: None, observer)
    uploads = UploadService(shard, time.monotonic, observer)
    devices = device_server(60.0, device_metrics(metrics, beside))
    devices.add_generic_rpc_handlers((device_handlers(service.methods(), uploads.methods()),))
    port = devices.add_insecure_port("127.0.0.1:0")
    operator = OperatorServer(OperatorPlace(folder / OPERATOR_FILE, tls=tls), [operator_metrics(metrics, beside)])
    watch = RunWatch(population.views, [metrics.observe, *([tell] if tell else [])])
    async with operator.serving(population, watch, stop, lambda run, step: bytes([step]) * 32):
        await devices.start()
        access = read_access(folder / OPERATOR_FILE)
        assert access is not None
        jobs = [asyncio.create_task(watch.run(stop)), asyncio.create_task(service.run_rounds(stop))]
        try:
            yield Site(population, metrics, f"127.0.0.1:{port}", operator, access, stop)
        finally:
            stop.set()
            await asyncio.gather(*jobs)
            await devices.stop(grace=0.2)


@asynccontextmanager
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as opened:
        yield opened


async def visit(address: str, history: Path, value: float = 0.001, visits: int = 1) -> list[Outcome]:
    """A device whose every update is `value` everywhere comes by."""
    wire, kept = GrpcWire(address), DeviceHistory(history)

    async def train(plan: RoundPlan, weights: FloatVector) -> Update:
        return Update(np.full(plan.size, value, dtype=np.float32))

    reader = SpecReader(wire.population, lambda key, epoch: None, time.monotonic)
    device = Participant(wire, reader, kept, ["digits-logistic"], train, asyncio.sleep, lambda: os.urandom(16))
    try:
        outcomes = []
        for _ in range(visits):
            outcomes.append(await device.take_part())
            await asyncio.sleep(0.06)
        return outcomes
    finally:
        await wire.close()
        kept.close()


async def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not true():
                await asyncio.sleep(0.02)
    assert true()
