"""How many check-ins one core answers over warm connections, and how long they wait. Prints; asserts nothing.

One server process, on a core of its own, serves the real device service and a method that answers the same bytes at once, each as
`fedrho serve` does and at a port without metrics and caps. Another process asks all four in passes that take turns. Latency is
the client's, under a load that keeps the server's core busy.
"""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import statistics
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import numpy as np
from _figures import Row, cpu_of, show
from _served import answer, child, cores, listening, open_engine, run_at, used

from fedrho.protos import codec
from fedrho.protos.messages import ID_BYTES, Assignment, CheckIn, TryLater, Willing
from fedrho.server.engine import Engine

PASSES = 7
CALLS = 3000
CONNECTIONS = 8
PARALLEL = 32
ECHO = "bench.Echo"
TASK = """
name = "bench"
algorithm = "dp-fedavg"
model = "digits-logistic"
steps = 1
population = 100000000
[round]
goal = 1000000
deadline_seconds = 36000
[privacy]
clip_norm = 1.0
rho = 1.0
delta = 1e-9
[participation]
max_times = 1
"""


def serve_check_ins(pipe: Connection) -> None:
    """The real service over the real engine, and a method that answers at once."""
    asyncio.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    engine = open_engine(TASK, 650, time.monotonic())
    sample = codec.encode_answer(_check_in(engine, time.monotonic()))

    async def echo(request: bytes, context: Any) -> bytes:
        return sample

    echoes = grpc.method_handlers_generic_handler(ECHO, {"Answer": grpc.unary_unary_rpc_method_handler(echo)})
    async with listening(engine, f"/{ECHO}/Answer", echoes) as where:
        pipe.send((where.port, where.bare))
        await asyncio.to_thread(answer, pipe)


def _check_in(engine: Engine, now: float) -> Assignment | TryLater:
    (run,) = engine.population.members
    return engine.check_in(CheckIn(secrets.token_bytes(ID_BYTES), (Willing(run),)), now)


@dataclass
class Side:
    """Of every pass: milliseconds of the server's CPU a call, calls a second, and every call's wait in milliseconds."""

    name: str
    cpu: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def show(self) -> None:
        p50, p99 = np.percentile(self.waits, (50, 99))
        print(
            f"   {self.name:<28} {min(self.cpu):>7.3f} {statistics.median(self.cpu):>7.3f} {1000 / min(self.cpu):>8.0f}"
            f" {statistics.median(self.rate):>8.0f} {p50:>8.1f} {p99:>8.1f}"
        )


async def _timed(server: Connection, side: Side, channels: list[Any], method: str, run: bytes) -> None:
    before, began, left = used(server)[0], time.monotonic(), iter(range(CALLS))

    async def caller(channel: Any) -> None:
        for _ in left:
            request, sent = codec.encode(CheckIn(secrets.token_bytes(ID_BYTES), (Willing(run),))), time.monotonic()
            await channel.unary_unary(method)(request)
            side.waits.append(1000 * (time.monotonic() - sent))

    await asyncio.gather(*(caller(channels[number % CONNECTIONS]) for number in range(PARALLEL)))
    wall = time.monotonic() - began
    side.rate.append(CALLS / wall)
    side.cpu.append(1000 * (used(server)[0] - before) / CALLS)


async def measure_calls(server: Connection, port: int, bare: int) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    real, plain = (
        [grpc.aio.insecure_channel(f"127.0.0.1:{at}", options=options) for _ in range(CONNECTIONS)] for at in (port, bare)
    )
    run, check_in = await run_at(real[0]), f"/{codec.SERVICE}/CheckIn"
    sides = [
        (Side("gRPC: answered at once"), plain, f"/{ECHO}/Answer"),
        (Side("the same, metrics and caps"), real, f"/{ECHO}/Answer"),
        (Side("gRPC: a check-in"), plain, check_in),
        (Side("the same, metrics and caps"), real, check_in),
    ]
    for turn in range(PASSES + 1):
        for side, channels, method in sides:
            await _timed(server, side if turn else Side("warms up"), channels, method, run)
    for channel in (*real, *plain):
        await channel.close()
    print(f"   {'':<28} {'CPU ms':>7} {'median':>7} {'/s, core':>8} {'/s, wall':>8} {'p50 ms':>8} {'p99 ms':>8}")
    for side, *_ in sides:
        side.show()


def measure_codec() -> None:
    """The parts of a check-in that are not gRPC, in this process."""
    engine = open_engine(TASK, 650)
    (run,) = engine.population.members
    request = codec.encode(CheckIn(secrets.token_bytes(ID_BYTES), (Willing(run),)))
    given = _check_in(engine, 0.0)
    wire = codec.encode_answer(given)
    works = {
        "decode CheckIn": lambda: codec.decode(CheckIn, request),
        "the engine": lambda: _check_in(engine, 0.0),
        "encode Assignment": lambda: codec.encode_answer(given),
        "decode Assignment (device)": lambda: codec.decode_answer(wire),
    }
    rows = [Row(name) for name in works]
    for _ in range(PASSES):
        for row, work in zip(rows, works.values(), strict=True):
            row.add(cpu_of(work, 2000))
    show("without gRPC, CPU", rows)


def main() -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "protobuf"))
    print(f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}")
    print(f"check-ins over {CONNECTIONS} warm connections, {PARALLEL} at a time\n")
    measure_codec()
    mine, others = cores()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, others)
    with child(serve_check_ins, {}, mine) as (server, (port, bare)):
        asyncio.run(measure_calls(server, port, bare))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
