"""Processes for the benchmarks: a server under a chosen allocator on a core of its own, and what it has used so far.

The server is the one of `fedrho serve`: its port, its metrics and caps, its services, and the time that passes meanwhile.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from fedrho.privacy.noise import SystemNoise
from fedrho.protos import codec
from fedrho.protos.messages import ID_BYTES, PopulationAnswer, PopulationRequest, PopulationSpec
from fedrho.protos.signing import SigningKey
from fedrho.server.allocator import keep_freed_memory
from fedrho.server.coordinator import Surroundings, open_run
from fedrho.server.engine import Engine
from fedrho.server.guard import device_handlers
from fedrho.server.interceptors import Cap
from fedrho.server.operations.metrics import Metrics, device_metrics
from fedrho.server.population import Population
from fedrho.server.ports import DevicePort, device_server
from fedrho.server.service import DeviceService
from fedrho.server.shard import LocalShard, Shard
from fedrho.server.storage.memory_store import MemoryStore
from fedrho.server.tasks import parse_task
from fedrho.server.uploads import UploadService

KEEPS = "FEDRHO_BENCH_KEEPS"
LARGE = str(256 * 1024 * 1024)
JEMALLOC = next((str(path) for folder in ("/usr/lib", "/usr/lib64") for path in Path(folder).rglob("libjemalloc.so.2")), None)
ALLOCATORS: dict[str, dict[str, str]] = {
    "glibc": {},
    "glibc, thresholds in the environment": {"MALLOC_MMAP_THRESHOLD_": LARGE, "MALLOC_TRIM_THRESHOLD_": LARGE},
    "glibc, thresholds set by the process": {KEEPS: "1"},
} | ({"jemalloc": {"LD_PRELOAD": JEMALLOC}} if JEMALLOC else {})

LEASE_SECONDS = 36_000.0


def open_engine(task: str, size: int, now: float = 0.0) -> Engine:
    """One run of zeros, and its shard."""
    shard, store = Shard(2**40), MemoryStore()
    around = Surroundings(SystemNoise(), store, lambda: secrets.token_bytes(ID_BYTES), [LocalShard(shard)])
    coordinator = open_run(parse_task(task, "bench"), around, lambda: np.zeros(size, dtype=np.float32), now)
    return Engine(Population([coordinator], store, SigningKey.generate()), shard)


@dataclass(frozen=True)
class Listening:
    """The port of the real server, and of one without metrics and caps in front of the same services."""

    port: int
    bare: int


@asynccontextmanager
async def listening(engine: Engine, other: str, *others: grpc.GenericRpcHandler) -> AsyncIterator[Listening]:
    """As `server/app.py` builds it. `others` are served beside it; their method, `other`, may take as long as an upload."""
    metrics, stop = Metrics(), asyncio.Event()
    service = DeviceService(engine.population, time.monotonic, lambda _: None, metrics)
    uploads = UploadService(engine.shard, time.monotonic, metrics)
    caps = {other: Cap(LEASE_SECONDS, DevicePort().calls // 2)}
    servers = device_server(LEASE_SECONDS, device_metrics(metrics), caps=caps), DevicePort().server()
    ports = [server.add_insecure_port("127.0.0.1:0") for server in servers]
    for server in servers:
        server.add_generic_rpc_handlers((device_handlers(service.methods(), uploads.methods()), *others))
        await server.start()
    rounds = asyncio.create_task(service.run_rounds(stop))
    try:
        yield Listening(*ports)
    finally:
        stop.set()
        await rounds
        await asyncio.gather(*(server.stop(None) for server in servers))


async def run_at(channel: grpc.aio.Channel) -> bytes:
    """The run that is served there."""
    asked = await channel.unary_unary(f"/{codec.SERVICE}/GetPopulation")(codec.encode(PopulationRequest()))
    return codec.decode(PopulationSpec, codec.decode(PopulationAnswer, asked).spec).tasks[0].run


@contextmanager
def child(work: Callable[[Connection], None], environment: dict[str, str], cores: set[int]) -> Iterator[tuple[Connection, Any]]:
    """A process of its own, and what it says first: where it listens."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_pinned, args=(work, theirs, cores), daemon=True)
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    try:
        yield ours, ours.recv()
        ours.send("stop")
        process.join(10)
    finally:
        process.kill()


def _pinned(work: Callable[[Connection], None], pipe: Connection, cores: set[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    if os.environ.get(KEEPS):
        assert keep_freed_memory()
    work(pipe)


def cores() -> tuple[set[int], set[int]]:
    """The server's core, and those of the load; with --shared, all for both."""
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    if "--shared" in sys.argv:
        return set(available), set(available)
    return {available[0]}, set(available[1:]) or {available[0]}


def answer(pipe: Connection) -> None:
    """Tells CPU seconds and peak memory in MB whenever it is asked, until it hears "stop"."""
    for _ in iter(pipe.recv, "stop"):
        pipe.send((time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def used(server: Connection) -> tuple[float, float]:
    server.send("used")
    cpu, peak = server.recv()
    return float(cpu), float(peak)
