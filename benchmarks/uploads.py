"""What an upload, a node of noise and a price cost, beside the least that the same work could cost. Prints; asserts nothing.

Every figure is taken in one run on one machine, in passes that take turns, so that a busy neighbour slows both sides of a ratio.
The best pass is shown first, the median second. Server figures are CPU time of the server's own process, so they do not depend
on how fast the client sends.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import platform
import secrets
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import numpy as np

from fedrho.client.transport import GrpcWire
from fedrho.privacy import tree_sensitivity
from fedrho.privacy.clipping import clip
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.noise import ReplayedNoise, SystemNoise
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import Clipped, ClippedSum, Grid, GridVector, Update
from fedrho.protos.codec import encode_vector
from fedrho.protos.messages import ID_BYTES, Assignment, BeginUpload, CheckIn, Encoding, Go, SessionStatus, Upload
from fedrho.server.aggregation import RunningSum
from fedrho.server.coordinator import CHUNK_BYTES, Surroundings, open_run
from fedrho.server.service import OPTIONS, DeviceService
from fedrho.server.store import MemoryStore
from fedrho.server.tasks import parse_task

SIZE = 1_300_000
SMALL = 10_000
PASSES = 7
UPLOADS = 8
SINK = "bench.Sink"
GRID = Grid(1.0)
TASK = """
name = "bench"
algorithm = "dp-fedavg"
model = "digits-logistic"
steps = 1
population = 100000
[round]
goal = 10000
deadline_seconds = 3600
[privacy]
clip_norm = 1.0
rho = 1.0
delta = 1e-6
[participation]
max_times = 1
"""


@dataclass
class Row:
    """One measurement: milliseconds of every pass."""

    name: str
    passes: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min(self.passes)

    def add(self, milliseconds: float) -> None:
        self.passes.append(milliseconds)

    def against(self, limit: Row) -> str:
        """The ratio of the best passes, and of the medians."""
        return f"{self.best / limit.best:.1f} ({statistics.median(self.passes) / statistics.median(limit.passes):.1f})"


def cpu_of(work: Callable[[], object], times: int = 1) -> float:
    """Milliseconds of CPU of one call, over `times` calls."""
    began = time.process_time()
    for _ in range(times):
        work()
    return 1000 * (time.process_time() - began) / times


def sample() -> GridVector:
    """A vector as devices send it: clipped onto the grid, norm close to the radius."""
    update = Update(np.random.default_rng(0).standard_normal(SIZE).astype(np.float32))
    return clip(update, GRID).vector


# -- the processes that receive ---------------------------------------------------------------------------------------------


def serve_updates(pipe: Connection) -> None:
    """The real service over the real engine. Answers each word on `pipe` with this process's CPU seconds."""
    asyncio.run(_serve(pipe))


async def _serve(pipe: Connection) -> None:
    around = Surroundings(SystemNoise(), MemoryStore(), lambda: secrets.token_bytes(ID_BYTES))
    engine = open_run(parse_task(TASK, "bench"), around, lambda: np.zeros(SIZE, dtype=np.float32), time.monotonic())
    server = grpc.aio.server(options=OPTIONS)
    port = server.add_insecure_port("127.0.0.1:0")
    sink = grpc.method_handlers_generic_handler(SINK, {"Take": grpc.stream_unary_rpc_method_handler(_take)})
    server.add_generic_rpc_handlers((DeviceService(engine, time.monotonic, lambda _: None).handlers(), sink))
    await server.start()
    pipe.send(port)
    await asyncio.to_thread(_answer, pipe)
    await server.stop(grace=None)


async def _take(parts: AsyncIterator[bytes], context: Any) -> bytes:
    """Reads a stream and forgets it: what gRPC costs when nothing is done with the bytes."""
    async for _ in parts:
        pass
    return b""


def sink_bytes(pipe: Connection) -> None:
    """Takes bytes off a socket and forgets them: what receiving costs when nothing is done with it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        sender, _ = listener.accept()
    buffer = bytearray(512 * 1024)
    with sender:
        for _ in iter(pipe.recv, "stop"):
            began, left = time.process_time(), 4 * SIZE
            while left:
                left -= sender.recv_into(buffer, min(left, len(buffer)))
            pipe.send(time.process_time() - began)


def _answer(pipe: Connection) -> None:
    for _ in iter(pipe.recv, "stop"):
        pipe.send(time.process_time())


@contextmanager
def child(work: Callable[[Connection], None]) -> Iterator[tuple[Connection, int]]:
    """A process of its own, and the port it listens on."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours, ours.recv()
        ours.send("stop")
        process.join(10)
    finally:
        process.kill()


# -- what is measured ---------------------------------------------------------------------------------------------------------


def measure_uploads() -> None:
    vector = sample()
    total, running = np.zeros(SIZE, dtype=np.int64), RunningSum(SIZE, GRID)
    bare, checked = Row("numpy: int64 += int32"), Row("verify the norm, add")
    raw, stream = Row("raw TCP socket, bytes thrown away"), Row("gRPC stream, bytes thrown away")
    whole = Row("gRPC: receive, verify, add, receipt")

    def add_bare() -> None:
        np.add(total, vector, out=total)

    with (
        child(serve_updates) as (server, port),
        child(sink_bytes) as (sink, sink_port),
        socket.create_connection(("127.0.0.1", sink_port)) as sender,
        asyncio.Runner() as runner,
    ):
        payload = encode_vector(vector, Encoding.INT32_LE)
        wire, channel = runner.run(_connect(port))
        for turn in range(PASSES + 1):
            figures = (
                cpu_of(add_bare, UPLOADS),
                cpu_of(lambda: running.add(Clipped(vector, GRID)), UPLOADS),
                statistics.mean(_sink(sink, sender, payload) for _ in range(UPLOADS)),
                runner.run(_stream_all(channel, server, payload)),
                runner.run(_upload_all(wire, server, vector)),
            )
            for row, figure in zip((bare, checked, raw, stream, whole), figures, strict=True):
                if turn:  # the first one warms up
                    row.add(figure)
        runner.run(_disconnect(wire, channel))
    title = f"an update of {SIZE:,} int32 coordinates ({4 * SIZE / 1e6:.1f} MB), server CPU"
    show(title, [bare, checked, raw, stream, whole], "x numpy", bare)
    print(f"   the whole path: {whole.against(checked)} x verify and add, {whole.against(stream)} x the gRPC stream,")
    print(f"   {whole.against(raw)} x the raw socket; one core takes {1000 / whole.best:.0f} updates/s.")
    print("   limit: memory bandwidth for the sum, the kernel's copy for the wire.\n")


async def _connect(port: int) -> tuple[GrpcWire, Any]:
    return GrpcWire(f"127.0.0.1:{port}"), grpc.aio.insecure_channel(f"127.0.0.1:{port}")


async def _disconnect(wire: GrpcWire, channel: Any) -> None:
    await wire.close()
    await channel.close()


async def _stream_all(channel: Any, server: Connection, payload: bytes) -> float:
    """Milliseconds of the server's CPU for each of `UPLOADS` streams of the same bytes in the same chunks."""
    chunks = [payload[start : start + CHUNK_BYTES] for start in range(0, len(payload), CHUNK_BYTES)]
    server.send("cpu")
    began = server.recv()
    for _ in range(UPLOADS):
        await channel.stream_unary(f"/{SINK}/Take")(iter(chunks))
    server.send("cpu")
    return float(1000 * (server.recv() - began) / UPLOADS)


async def _upload_all(wire: GrpcWire, server: Connection, vector: GridVector) -> float:
    """Milliseconds of the server's CPU for each of `UPLOADS` uploads, check-in and reservation included."""
    run = (await wire.population()).run
    server.send("cpu")
    began = server.recv()
    for _ in range(UPLOADS):
        assignment = await wire.check_in(CheckIn(secrets.token_bytes(ID_BYTES), run))
        assert isinstance(assignment, Assignment)
        reservation = await wire.begin_upload(BeginUpload(assignment.session))
        assert reservation.answer is Go.GO
        receipt = await wire.upload(Upload(assignment.session, vector), assignment.plan)
        assert receipt.status is SessionStatus.COUNTED
    server.send("cpu")
    return float(1000 * (server.recv() - began) / UPLOADS)


def _sink(sink: Connection, sender: socket.socket, payload: bytes) -> float:
    sink.send("receive")
    sender.sendall(payload)
    return float(1000 * sink.recv())


def measure_noise() -> None:
    generator, source = np.random.default_rng(), SystemNoise()
    bare, node = Row("numpy: standard_normal, PCG64"), Row("one node: AES-128, integers, SHA-256")
    independent, tree = Row("a step of independent noise"), Row("a step of the tree (mean of 16)")
    for turn in range(4):
        figures = (
            cpu_of(lambda: generator.standard_normal(SIZE), 4),
            cpu_of(lambda: source.draw("node", SIZE, 1e6), 4),
            _step_cost(IndependentGaussian(GRID, 1.0), 4),
            _step_cost(BinaryTree(GRID, 1.0), 16),
        )
        for row, figure in zip((bare, node, independent, tree), figures, strict=True):
            if turn:
                row.add(figure)
    show(f"noise for {SIZE:,} coordinates, CPU", [bare, node, independent, tree], "x numpy", bare)
    print("   limit: the Gaussian draw itself. A tree step draws two nodes on average.\n")


def _step_cost(mechanism: IndependentGaussian | BinaryTree, steps: int) -> float:
    state: Any = mechanism.init(SIZE)
    source = SystemNoise()
    sums = iter([ClippedSum(np.zeros(SIZE, dtype=np.int64), GRID) for _ in range(steps)])

    def one() -> None:
        nonlocal state
        _, state = mechanism.release(next(sums), state, source)

    return cpu_of(one, steps)


def measure_restore() -> None:
    steps, mechanism = 2047, BinaryTree(GRID, 1.0)
    state = mechanism.init(SMALL)
    for _ in range(steps):
        _, state = mechanism.next_noise(state, SystemNoise())
    replayed, nodes = ReplayedNoise(state.live), len(state.live)
    generator = np.random.default_rng()
    bare, restore = Row(f"numpy: standard_normal, {nodes} nodes"), Row(f"restore after {steps} steps")
    for _ in range(PASSES):
        bare.add(cpu_of(lambda: [generator.standard_normal(SMALL) for _ in range(nodes)]))
        restore.add(cpu_of(lambda: mechanism.restore(SMALL, steps, replayed, state.kept)))
    title = f"restart: the tree's noise from {nodes} stored seeds and {len(state.kept)} vectors, {SMALL:,} coordinates, CPU"
    show(title, [bare, restore], "x numpy", bare)
    print("   limit: the Gaussian draws of the 63 leaves, at most, since the latest kept vector.\n")


def measure_price() -> None:
    mechanism, limits = BinaryTree(GRID, 7.0), Participation(6, 314)
    cold, warm = Row("first time"), Row("again, from the cache")
    for _ in range(3):
        for cached in (tree_sensitivity._cached_table, tree_sensitivity._after, tree_sensitivity._separated):
            cached.cache_clear()
        cold.add(cpu_of(lambda: mechanism.cost(2000, limits)))
        warm.add(cpu_of(lambda: mechanism.cost(2000, limits)))
    show("exact price of a tree: 2,000 steps, at most 6 times, 314 apart, CPU", [cold, warm])
    print(f"   rho = {mechanism.cost(2000, limits):.6f} at noise multiplier 7, neighbours zero-out.\n")


# -- how it is shown ----------------------------------------------------------------------------------------------------------


def show(title: str, rows: list[Row], ratio: str = "", limit: Row | None = None) -> None:
    print(f"== {title}")
    print(f"   {'':<40} {'best ms':>9} {'median ms':>10}   {ratio}")
    for row in rows:
        against = row.against(limit) if limit else ""
        print(f"   {row.name:<40} {row.best:>9.3f} {statistics.median(row.passes):>10.3f}   {against}")


def main() -> None:
    began = time.monotonic()
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "grpcio", "protobuf", "randomgen"))
    print(f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}")
    print("ratios: of the best passes (of the medians)\n")
    for measure in (measure_uploads, measure_noise, measure_restore, measure_price):
        measure()
        sys.stdout.flush()
    print(f"{time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
