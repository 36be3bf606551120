"""What taking in an update costs, beside a gRPC server that throws the bytes away, and a raw socket. Prints; asserts nothing.

One server process, on a core of its own, serves both the real device service, as `fedrho serve` does, and a sink behind the same
metrics and caps that reads the same streams and forgets them; another process sends the same messages to one and to the other,
several at a time, in passes that take turns; a ratio is of two passes that follow one another. Check-ins and reservations are
made before the clock starts, and once within it. Then the same under the next allocator.
CPU is of the server's process; "busy" is the share of its core that it used: near 1, the throughput is the server's own.
With --shared, server and load share all cores; then the wall clock counts the load too.
"""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import socket
import statistics
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import numpy as np
from _figures import Row, cpu_of, show
from _served import ALLOCATORS, answer, child, cores, listening, open_engine, run_at, used
from zlib_ng import zlib_ng

from fedrho.client.transport import GrpcWire
from fedrho.privacy.clipping import clip
from fedrho.privacy.kernels import COMPILED
from fedrho.privacy.vectors import Clipped, Gathered, Grid, GridVector, Update
from fedrho.protos import codec
from fedrho.protos.messages import (
    CHUNK_BYTES,
    ID_BYTES,
    Assignment,
    BeginUpload,
    CheckIn,
    Encoding,
    Go,
    Receipt,
    SessionStatus,
    UploadHeader,
    UploadTrailer,
    Willing,
)
from fedrho.server.aggregation import RunningSum
from fedrho.server.receiving import Receiver

SIZE = 1_300_000
BITS = int(os.environ.get("BITS", "20"))
PASSES = 15
UPLOADS = 48
CONNECTIONS = 4
PARALLEL = 8
SINK = "bench.Sink"
GRID = Grid(1.0, BITS)
ENCODING = Encoding.for_grid(BITS)
CORES = cores()
TASK = f"""
name = "bench"
algorithm = "dp-fedavg"
model = "digits-logistic"
steps = 1
population = 1000000
[round]
goal = 100000
deadline_seconds = 36000
lease_seconds = 36000
[privacy]
clip_norm = 1.0
rho = 1.0
delta = 1e-7
grid_bits = {BITS}
[participation]
max_times = 1
"""


def sample() -> GridVector:
    """A vector as devices send it: clipped onto the grid, norm close to the radius."""
    update = Update(np.random.default_rng(0).standard_normal(SIZE).astype(np.float32))
    return clip(update, GRID).vector


# -- the processes that receive ---------------------------------------------------------------------------------------------


def serve_updates(pipe: Connection) -> None:
    """The real service over the real engine, and the sink."""
    asyncio.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    sink = grpc.method_handlers_generic_handler(SINK, {"Take": grpc.stream_unary_rpc_method_handler(_take)})
    async with listening(open_engine(TASK, SIZE, time.monotonic()), f"/{SINK}/Take", sink) as where:
        pipe.send(where.port)
        await asyncio.to_thread(answer, pipe)


async def _take(parts: AsyncIterator[bytes], context: Any) -> bytes:
    """Reads a stream and forgets it: what gRPC costs when nothing is done with the bytes."""
    async for _ in parts:
        pass
    return b""


def receive_raw(pipe: Connection) -> None:
    """One thread and one socket: bytes straight into a buffer, then checksum, norm and sum; or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        sender, _ = listener.accept()
    total, chunk = RunningSum(SIZE, GRID), memoryview(bytearray(CHUNK_BYTES))
    with sender:
        for adds, checksum in iter(pipe.recv, "stop"):
            began, wall = time.process_time(), time.monotonic()
            for _ in range(UPLOADS):
                _receive_one(sender, chunk, Receiver(CHUNK_BYTES, ENCODING, SIZE, GRID), total if adds else None, checksum)
            pipe.send((time.process_time() - began, time.monotonic() - wall))


def _receive_one(sender: socket.socket, chunk: memoryview, receiver: Receiver, total: RunningSum | None, checksum: int) -> None:
    with receiver:
        left = ENCODING.width * SIZE
        while left:
            part = chunk[: min(left, len(chunk))]
            received = 0
            while received < len(part):
                received += sender.recv_into(part[received:])
            left -= received
            if total is not None:
                assert receiver.take(part) is None
        if total is not None:
            clipped = receiver.finish(checksum)
            assert isinstance(clipped, Gathered)
            total.add(clipped)


# -- the load -----------------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """Warm connections to one server, over which UPLOADS are made, PARALLEL at a time."""

    wires: list[GrpcWire]
    channels: list[Any]
    chunks: list[bytes]
    trailer: bytes
    run: bytes = b""

    async def reserve(self, number: int) -> bytes:
        wire = self.wires[number % CONNECTIONS]
        assignment = await wire.check_in(CheckIn(secrets.token_bytes(ID_BYTES), (Willing(self.run),)))
        assert isinstance(assignment, Assignment)
        reservation = await wire.begin_upload(BeginUpload(assignment.session, assignment.ticket))
        assert reservation.answer is Go.GO
        return assignment.session

    async def upload(self, number: int, session: bytes) -> None:
        receipt = codec.decode(Receipt, await self._send(number, f"/{codec.SERVICE}/UploadUpdate", session))
        assert receipt.status is SessionStatus.COUNTED, receipt

    async def sink(self, number: int) -> None:
        await self._send(number, f"/{SINK}/Take", bytes(ID_BYTES))

    async def whole(self, number: int) -> None:
        await self.upload(number, await self.reserve(number))

    async def _send(self, number: int, method: str, session: bytes) -> bytes:
        header = codec.encode_part(UploadHeader(session, ENCODING.width * SIZE))
        return bytes(await self.channels[number % CONNECTIONS].stream_unary(method)(iter([header, *self.chunks, self.trailer])))


@dataclass
class Side:
    """One side of a ratio: of every pass, milliseconds an update of CPU and of wall clock, and how busy the server was."""

    name: str
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def add(self, cpu: float, wall: float) -> None:
        self.cpu.append(1000 * cpu / UPLOADS)
        self.wall.append(1000 * wall / UPLOADS)

    def show(self, sink: Side) -> None:
        cpu, wall = statistics.median(self.cpu), statistics.median(self.wall)
        ratios = [
            statistics.median(theirs / ours for ours, theirs in zip(*both, strict=True))
            for both in ((self.cpu, sink.cpu), (self.wall, sink.wall))
        ]
        print(
            f"   {self.name:<38} {min(self.cpu):>7.2f} {cpu:>7.2f} {min(self.wall):>7.2f} {wall:>7.2f} {1000 / wall:>6.0f}"
            f" {cpu / wall:>5.2f}   {ratios[0]:>5.2f} {ratios[1]:>5.2f}"
        )


async def _timed(server: Connection, side: Side, one: Callable[[int], Awaitable[None]]) -> None:
    free, (before, _), began = asyncio.Semaphore(PARALLEL), used(server), time.monotonic()

    async def next_one(number: int) -> None:
        async with free:
            await one(number)

    await asyncio.gather(*(next_one(number) for number in range(UPLOADS)))
    wall = time.monotonic() - began
    side.add(used(server)[0] - before, wall)


async def _passes(server: Connection, port: int, payload: bytes, sides: tuple[Side, Side, Side]) -> None:
    async with AsyncExitStack() as stack:
        load = Load([], [], [], codec.encode_part(UploadTrailer(zlib.crc32(payload))))
        load.chunks = [codec.encode_part(payload[start : start + CHUNK_BYTES]) for start in range(0, len(payload), CHUNK_BYTES)]
        for _ in range(CONNECTIONS):
            load.wires.append(GrpcWire(f"127.0.0.1:{port}"))
            stack.push_async_callback(load.wires[-1].close)
            options = [("grpc.use_local_subchannel_pool", 1)]
            load.channels.append(await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)))
        load.run = await run_at(load.channels[0])
        for turn in range(PASSES + 1):
            sessions = [await load.reserve(number) for number in range(UPLOADS)]
            for side, one in zip(sides, (load.sink, lambda n: load.upload(n, sessions[n]), load.whole), strict=True):  # noqa: B023
                await _timed(server, side if turn else Side("warms up"), one)


def measure_allocator(name: str, environment: dict[str, str], payload: bytes) -> None:
    sink = Side("gRPC: bytes thrown away")
    upload, whole = Side("gRPC: receive, verify, add, receipt"), Side("the same with check-in, reservation")
    raw, tcp = Side("raw TCP: bytes thrown away"), Side("raw TCP: receive, verify, add")
    mine, others = CORES
    checksum = zlib.crc32(payload)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, others)
    with child(serve_updates, environment, mine) as (server, port):
        asyncio.run(_passes(server, port, payload, (sink, upload, whole)))
        _, peak = used(server)
    with (
        child(receive_raw, environment, mine) as (receiver, port),
        socket.create_connection(("127.0.0.1", port)) as sender,
    ):
        for turn in range(2 * (PASSES + 1)):
            receiver.send((turn % 2, checksum))
            for _ in range(UPLOADS):
                sender.sendall(payload)
            cpu, wall = receiver.recv()
            if turn > 1:
                (raw, tcp)[turn % 2].add(cpu, wall)
    print(f"== {name}; the server's peak memory {peak:.0f} MB")
    print(f"   {'ms an update':<38} {'CPU':>7} {'median':>7} {'wall':>7} {'median':>7} {'/s':>6} {'busy':>5}   ", end="")
    print("sink / this in the same pass, median: CPU, wall")
    for side in (sink, upload, whole, raw, tcp):
        side.show(sink)
    print()
    sys.stdout.flush()


def measure_arithmetic(vector: GridVector, payload: bytes) -> None:
    """The parts of the receiving that are not gRPC, in this process."""
    wide, running = np.zeros(SIZE, dtype=np.int64), RunningSum(SIZE, GRID)
    clipped, checksum = Clipped(vector, GRID), zlib.crc32(payload)
    chunks = [memoryview(payload)[start : start + CHUNK_BYTES] for start in range(0, len(payload), CHUNK_BYTES)]

    def receive() -> None:
        with Receiver(CHUNK_BYTES, ENCODING, SIZE, GRID) as receiver:
            for chunk in chunks:
                assert receiver.take(chunk) is None
            received = receiver.finish(checksum)
            assert isinstance(received, Gathered)
            running.add(received)

    works: dict[str, Callable[[], object]] = {
        "numpy: int64 += int32": lambda: np.add(wide, vector, out=wide),
        "the running sum: int32 lane": lambda: running.add(clipped),
        "norm, exactly, in one go": lambda: Clipped(vector, GRID),
        "CRC-32: zlib": lambda: zlib.crc32(payload),
        "CRC-32: zlib-ng": lambda: zlib_ng.crc32(payload),
        "receive, verify, add": receive,
    }
    rows = [Row(name) for name in works]
    for turn in range(PASSES + 1):
        for row, work in zip(rows, works.values(), strict=True):
            figure = cpu_of(work, 16)
            if turn:
                row.add(figure)
    show("without gRPC, CPU", rows, "x numpy", rows[0])
    print()


def main() -> None:
    began = time.monotonic()
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "grpcio", "protobuf"))
    print(f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}")
    vector = sample()
    payload = codec.encode_vector(vector, ENCODING)
    print(f"an update of {SIZE:,} coordinates, {ENCODING.name} ({len(payload) / 1e6:.1f} MB), {PARALLEL} at a time")
    print(f"its loops are run {'in C' if COMPILED else 'by numpy'}\n")
    measure_arithmetic(vector, payload)
    for name, environment in ALLOCATORS.items():
        measure_allocator(name, environment, payload)
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
