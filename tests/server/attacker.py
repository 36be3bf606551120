"""What a stranger at the device port can send: every message is built here, from sound to hostile."""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.noise import SystemNoise
from fedrho.protos import codec
from fedrho.protos import messages as m
from fedrho.protos.messages import CHUNK_BYTES
from fedrho.server.coordinator import Surroundings, open_run
from fedrho.server.guard import device_handlers
from fedrho.server.interceptors import Cap
from fedrho.server.operations.metrics import Metrics, device_metrics
from fedrho.server.population import Population
from fedrho.server.ports import DevicePort, device_server
from fedrho.server.service import DeviceService
from fedrho.server.shard import LocalShard, Shard
from fedrho.server.storage.store import MemoryStore
from fedrho.server.tasks import parse_task
from fedrho.server.uploads import UploadService
from tests.server.one_run import SIGNER, OneRun

TASK = """
name = "attacked"
algorithm = "dp-fedavg"
model = "digits-logistic"
steps = 2
population = 1000000
[round]
goal = {goal}
min_reports = 1
overselect = 4.0
deadline_seconds = 1e6
lease_seconds = {lease}
retry_seconds = [1, 2]
[privacy]
clip_norm = {clip_norm}   # a grid unit is 1: released weights are the exact sum over the goal
rho = 1e15           # noise far below a grid unit
delta = 1e-9
grid_bits = {bits}
[participation]
max_times = 2
[server]
learning_rate = 1.0
"""
SIZE = 270_000
"""Coordinates: two chunks, the second one short."""
RADIUS = 1024
MEMORY = 2**31
"""Bytes of updates on their way: more than any attack sends at once, so that none of them waits."""
METHODS = ("GetPopulation", "CheckIn", "GetArtifact", "BeginUpload", "UploadUpdate", "GetUploadStatus", "AbortSession")
Part = bytes | m.UploadHeader | m.UploadTrailer
Vector = NDArray[np.int32]
Answer = bytes | tuple[str, str]
"""Of a call: the bytes of its answer, or the name of its status and the details."""


def path(method: str) -> str:
    return f"/{codec.SERVICE}/{method}"


def attacked_run(size: int = SIZE, goal: int = 64, lease: float = 60.0, bits: int = 10, now: float = 0.0) -> OneRun:
    task = parse_task(TASK.format(goal=goal, lease=lease, bits=bits, clip_norm=float(2**bits)), "attacked.toml")
    store, shard = MemoryStore(), Shard(MEMORY)
    around = Surroundings(SystemNoise(), store, lambda: os.urandom(16), [LocalShard(shard)])
    coordinator = open_run(task, around, lambda: np.zeros(size, dtype=np.float32), now)
    return OneRun(Population([coordinator], store, SIGNER), shard, coordinator)


def released_sum(run: OneRun, now: float = 0.0) -> dict[int, int]:
    """Ends the attempt at its deadline, and reads the sum from what is released: the coordinates that are not zero.

    Needs one upload that counted.
    """
    run.tick(now + 1e9)
    run.release(now + 1e9)
    total = np.rint(run.progress.weights.astype(np.float64) * run.task.file.round.goal)
    return {int(place): int(total[place]) for place in np.flatnonzero(total)}


@asynccontextmanager
async def served(
    run: OneRun,
    port: DevicePort | None = None,
    clock: Callable[[], float] = lambda: 0.0,
    caps: dict[str, Cap] | None = None,
    credentials: Any = None,
) -> AsyncIterator[str]:
    """The address of the real service behind its port; `run` stands still unless somebody calls. `caps` are by short name."""
    chosen = {path(method): cap for method, cap in (caps or {}).items()}
    metrics = Metrics(with_runs=True)
    server = device_server(60.0, device_metrics(metrics), port=port, caps=chosen)
    devices = DeviceService(run.population, clock, lambda _: None, metrics)
    uploads = UploadService(run.shard, clock, metrics)
    server.add_generic_rpc_handlers((device_handlers(devices.methods(), uploads.methods()),))
    bound = server.add_secure_port("127.0.0.1:0", credentials) if credentials else server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(None)
        await asyncio.sleep(0.01)  # calls that were cut off are unwound: the end of the loop would be an error in each of them


class Stranger:
    """One connection of its own, over which any bytes can be sent. Also an honest device, if it keeps to `take_part`."""

    def __init__(self, address: str, credentials: Any = None) -> None:
        self.address = address
        alone = [("grpc.use_local_subchannel_pool", 1)]
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(address, options=alone)
        else:
            self.channel = grpc.aio.secure_channel(address, credentials, options=alone)

    async def __aenter__(self) -> Stranger:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.channel.close()

    async def call(self, method: str, request: bytes, seconds: float = 20.0, **how: Any) -> Answer:
        """Any method but UploadUpdate; of a stream of answers, the first."""
        if method == "GetArtifact":
            return await first(self.channel.unary_stream(path(method))(request, timeout=seconds, **how))
        return await outcome(self.channel.unary_unary(path(method))(request, timeout=seconds, **how))

    async def send(self, messages: Iterable[bytes] | AsyncIterator[bytes], seconds: float = 20.0) -> Answer:
        """UploadUpdate with these messages, as they are."""
        stream = messages if isinstance(messages, AsyncIterator) else each(messages)
        return await outcome(self.channel.stream_unary(path("UploadUpdate"))(stream, timeout=seconds))

    async def upload(self, parts: Sequence[Part]) -> m.Receipt:
        return receipt(await self.send([codec.encode_part(part) for part in parts]))

    async def check_in(self, run: bytes) -> m.Assignment:
        answer = codec.decode_answer(sound(await self.call("CheckIn", check_in(run))))
        assert isinstance(answer, m.Assignment), answer
        return answer

    async def begin(self, assignment: m.Assignment) -> m.Reservation:
        return codec.decode(m.Reservation, sound(await self.call("BeginUpload", begin_upload(assignment))))

    async def reserve(self, run: bytes) -> bytes:
        assignment = await self.check_in(run)
        assert (await self.begin(assignment)).answer is m.Go.GO
        return assignment.session

    async def status(self, session: bytes) -> m.SessionStatus:
        asked = codec.encode(m.StatusRequest(session))
        return codec.decode(m.StatusAnswer, sound(await self.call("GetUploadStatus", asked))).status

    async def take_part(self, run: bytes, vector: Vector) -> None:
        """All that an honest device does, and what it expects."""
        assert not isinstance(await self.call("GetPopulation", codec.encode(m.PopulationRequest())), tuple)
        session = await self.reserve(run)
        assert await self.upload(parts(session, vector)) == m.Receipt(m.SessionStatus.COUNTED)


async def each(messages: Iterable[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def until(enough: asyncio.Event) -> AsyncIterator[bytes]:
    """An upload that says nothing, and ends when it is told to."""
    await enough.wait()
    silence: tuple[bytes, ...] = ()
    for message in silence:
        yield message


async def outcome(call: Awaitable[bytes]) -> Answer:
    try:
        return bytes(await call)
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""


async def first(call: Any) -> Answer:
    try:
        async for part in call:
            return bytes(part)
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return b""


def sound(answer: Answer) -> bytes:
    assert isinstance(answer, bytes), answer
    return answer


def receipt(answer: Answer) -> m.Receipt:
    return codec.decode(m.Receipt, sound(answer))


# -- messages: the one place that knows their fields --------------------------------------------------------------------------


def check_in(run: bytes) -> bytes:
    return codec.encode(m.CheckIn(os.urandom(16), (m.Willing(run),)))


def begin_upload(assignment: m.Assignment) -> bytes:
    return codec.encode(m.BeginUpload(assignment.session, assignment.ticket))


def abort(assignment: m.Assignment) -> bytes:
    return codec.encode(m.Abort(assignment.session, m.AbortReason.CONDITIONS, assignment.ticket))


def sound_requests(assignment: m.Assignment) -> dict[str, bytes]:
    """A sound message for every method; of UploadUpdate, its header."""
    return {
        "GetPopulation": codec.encode(m.PopulationRequest()),
        "CheckIn": check_in(assignment.plan.run),
        "GetArtifact": codec.encode(m.ArtifactRequest(assignment.plan.checkpoint_sha256)),
        "BeginUpload": begin_upload(assignment),
        "UploadUpdate": codec.encode_part(m.UploadHeader(assignment.session, 2 * assignment.plan.size)),
        "GetUploadStatus": codec.encode(m.StatusRequest(assignment.session)),
        "AbortSession": abort(assignment),
    }


def one_hot(place: int, value: int = RADIUS, size: int = SIZE) -> Vector:
    vector = np.zeros(size, dtype=np.int32)
    vector[place] = value
    return vector


def parts(session: bytes, vector: Vector, bits: int = 10) -> list[Part]:
    """Header, chunks, trailer, as the protocol wants them."""
    data = codec.encode_vector(vector, m.Encoding.for_grid(bits))
    chunks = [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
    return [m.UploadHeader(session, len(data)), *chunks, m.UploadTrailer(zlib.crc32(data))]


def encoded(session: bytes, vector: Vector) -> list[bytes]:
    return [codec.encode_part(part) for part in parts(session, vector)]


def running(test: Awaitable[None], seconds: float = 60.0) -> None:
    """Runs one test to its end, or fails it."""

    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await test

    asyncio.run(bounded())
