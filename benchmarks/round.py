"""A whole round: 6,500 devices over loopback, from the first check-in to the release; and the server's memory meanwhile.

Two rounds: one of a small model, where the calls are what costs, and one of 1.3 million coordinates, where the bytes are. Every
device is a session of its own with everything the protocol asks of it: check-in, download of the weights, reservation, upload,
receipt. The server is a process of its own; its CPU time and peak memory are read from the operating system. Prints; asserts
nothing.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import time
import zlib
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import numpy as np

from fedrho.privacy.clipping import clip
from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.vectors import Grid, Update
from fedrho.protos import codec
from fedrho.protos.messages import (
    CHUNK_BYTES,
    ArtifactRequest,
    Assignment,
    BeginUpload,
    CheckIn,
    Encoding,
    Go,
    PopulationAnswer,
    PopulationRequest,
    PopulationSpec,
    Receipt,
    Reservation,
    SessionStatus,
    UploadHeader,
    UploadTrailer,
    Willing,
)
from fedrho.protos.signing import SigningKey
from fedrho.server.coordinator import Surroundings, open_run
from fedrho.server.guard import device_handlers
from fedrho.server.population import Population
from fedrho.server.ports import DevicePort
from fedrho.server.service import DeviceService
from fedrho.server.shard import LocalShard, Shard
from fedrho.server.storage.memory_store import MemoryStore
from fedrho.server.tasks import parse_task
from fedrho.server.uploads import UploadService

DEVICES = int(os.environ.get("FEDRHO_BENCH_DEVICES", "6500"))
CONNECTIONS = 64
MIB = 1024 * 1024
MEMORY = 128 * MIB
TASK = """
name = "bench"
algorithm = "dp-ftrl"
model = "digits-logistic"
steps = 1
population = 1000000
[round]
goal = {goal}
deadline_seconds = 3600
lease_seconds = 600
retry_seconds = [0.05, 0.1]
[privacy]
clip_norm = 1.0
rho = 1.0
delta = 1e-7
grid_bits = {bits}
[participation]
max_times = 1
"""


def serve(pipe: Connection, size: int, bits: int) -> None:
    """Until the run has ended; says its port, then when the step was released, CPU seconds and peak memory on the way."""
    asyncio.run(_serve(pipe, size, bits))


async def _serve(pipe: Connection, size: int, bits: int) -> None:
    shard, store = Shard(MEMORY), MemoryStore()
    task = parse_task(TASK.format(goal=DEVICES, bits=bits), "bench")
    around = Surroundings(SystemNoise(), store, lambda: os.urandom(16), [LocalShard(shard)])
    coordinator = open_run(task, around, lambda: np.zeros(size, dtype=np.float32), time.monotonic())
    service = DeviceService(Population([coordinator], store, SigningKey.generate()), time.monotonic, lambda _: None)
    server = DevicePort(calls=16_384).server()
    server.add_generic_rpc_handlers((device_handlers(service.methods(), UploadService(shard, time.monotonic).methods()),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send((port, _memory("VmRSS")))
    began = time.process_time()
    await service.run_rounds(asyncio.Event())
    pipe.send((time.monotonic(), time.process_time() - began, _memory("VmHWM")))
    await asyncio.to_thread(pipe.recv)
    await server.stop(None)


def _memory(name: str) -> int:
    """Bytes, as the kernel counts this process's pages."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class Devices:
    """Many devices in one process, on a few connections, so that the load generator is not what is measured."""

    def __init__(self, port: int, size: int, bits: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 4 * MIB)]
        self._channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(CONNECTIONS)]
        # Fewer calls at once on a connection than the server allows: it may still be closing a call that is over for us.
        self._turns = [asyncio.Semaphore(3) for _ in range(CONNECTIONS)]
        vector = clip(Update(np.random.default_rng(0).standard_normal(size).astype(np.float32)), Grid(1.0, bits)).vector
        payload = codec.encode_vector(vector, Encoding.for_grid(bits))
        chunks = [payload[start : start + CHUNK_BYTES] for start in range(0, len(payload), CHUNK_BYTES)]
        self._length = len(payload)
        self._parts = [codec.encode_part(part) for part in (*chunks, UploadTrailer(zlib.crc32(payload)))]

    async def run(self) -> None:
        answer = codec.decode(PopulationAnswer, await self._call(0, "GetPopulation", codec.encode(PopulationRequest())))
        run = codec.decode(PopulationSpec, answer.spec).tasks[0].run
        await asyncio.gather(*(self._device(number % CONNECTIONS, run) for number in range(DEVICES)))
        for channel in self._channels:
            await channel.close()

    async def _device(self, place: int, run: bytes) -> None:
        check_in = codec.encode(CheckIn(os.urandom(16), (Willing(run),)))
        assignment = codec.decode_answer(await self._call(place, "CheckIn", check_in))
        assert isinstance(assignment, Assignment)
        await self._download(place, assignment.plan.checkpoint_sha256)
        begin = codec.encode(BeginUpload(assignment.session, assignment.ticket))
        while True:
            reservation = codec.decode(Reservation, await self._call(place, "BeginUpload", begin))
            if reservation.answer is Go.GO:
                break
            await asyncio.sleep(reservation.seconds)
        receipt = await self._upload(place, assignment.session)
        assert receipt.status is SessionStatus.COUNTED, receipt

    async def _call(self, place: int, method: str, request: bytes) -> bytes:
        async with self._turns[place]:
            return bytes(await self._channels[place].unary_unary(f"/{codec.SERVICE}/{method}")(request))

    async def _download(self, place: int, sha256: bytes) -> None:
        async with self._turns[place]:
            call = self._channels[place].unary_stream(f"/{codec.SERVICE}/GetArtifact")
            async for _ in call(codec.encode(ArtifactRequest(sha256))):
                pass

    async def _upload(self, place: int, session: bytes) -> Receipt:
        async with self._turns[place]:
            call = self._channels[place].stream_unary(f"/{codec.SERVICE}/UploadUpdate")()
            await call.write(codec.encode_part(UploadHeader(session, self._length)))
            for part in self._parts:
                await call.write(part)
            await call.done_writing()
            return codec.decode(Receipt, await call)


def measure(what: str, size: int, bits: int) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there, size, bits), daemon=True)
    server.start()
    port, at_rest = here.recv()
    began = time.monotonic()
    asyncio.run(_run(port, size, bits))
    released, cpu, peak = here.recv()
    here.send("stop")
    server.join()
    width = Encoding.for_grid(bits).width * size
    print(f"\n{what}: {DEVICES} devices, {size} coordinates, {width / 1e6:.2f} MB an update")
    seconds = released - began
    print(f"  from the first check-in to the release   {seconds:8.1f} s  ({DEVICES / seconds:.0f} devices a second)")
    print(f"  CPU time of the server                   {cpu:8.1f} s  ({1000 * cpu / DEVICES:.2f} ms a device)")
    print(f"  memory of the server at rest             {at_rest / MIB:8.0f} MiB")
    print(f"  memory of the server at its peak         {peak / MIB:8.0f} MiB")
    print(f"  all updates together                     {DEVICES * width / MIB:8.0f} MiB")
    print(f"  updates allowed on their way             {MEMORY / MIB:8.0f} MiB")


async def _run(port: int, size: int, bits: int) -> None:
    await Devices(port, size, bits).run()


def main() -> None:
    print("A round, end to end over loopback")
    measure("small model", 650, 20)
    measure("1.3 million coordinates", 1_300_000, 14)


if __name__ == "__main__":
    sys.exit(main())
