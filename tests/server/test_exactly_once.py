"""Devices over a real wire that cut streams, lose acknowledgements, upload twice at once, lie, and come when it is too late.

Device i uploads the unit vector e_i, so the released sum shows who was counted, and how often. The seeds fix what each device
does, not how the calls interleave.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedrho.client.transport import GrpcWire
from fedrho.privacy.noise import SystemNoise
from fedrho.protos import codec
from fedrho.protos.messages import (
    CHUNK_BYTES,
    Assignment,
    BeginUpload,
    CheckIn,
    Encoding,
    Go,
    Receipt,
    SessionStatus,
    StatusRequest,
    UploadHeader,
    UploadTrailer,
    Willing,
)
from fedrho.protos.signing import SigningKey
from fedrho.server.coordinator import Coordinator, Surroundings, open_run
from fedrho.server.guard import device_handlers
from fedrho.server.population import Population
from fedrho.server.ports import device_server
from fedrho.server.release import Progress
from fedrho.server.service import DeviceService
from fedrho.server.shard import LocalShard, Shard
from fedrho.server.storage.memory_store import MemoryStore
from fedrho.server.tasks import parse_task
from fedrho.server.uploads import UploadService
from tests.server.test_shard_processes import TASK, sharded

SIZE = 600_000
"""Three chunks of int16."""

DEVICES = 80
GOAL = 40


@asynccontextmanager
async def embedded() -> AsyncIterator[tuple[Coordinator, str]]:
    """The coordinator with its shard in the same process, and its address."""
    shard, store, stop = Shard(), MemoryStore(), asyncio.Event()
    task = parse_task(TASK.format(goal=GOAL, min_reports=GOAL, deadline=60.0), "chaos.toml")
    around = Surroundings(SystemNoise(), store, lambda: os.urandom(16), [LocalShard(shard)])
    coordinator = open_run(task, around, lambda: np.zeros(SIZE, dtype=np.float32), time.monotonic())
    service = DeviceService(Population([coordinator], store, SigningKey.generate()), time.monotonic, lambda _: None)
    server = device_server(60.0)
    server.add_generic_rpc_handlers((device_handlers(service.methods(), UploadService(shard, time.monotonic).methods()),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    rounds = asyncio.create_task(service.run_rounds(stop))
    try:
        yield coordinator, f"127.0.0.1:{port}"
    finally:
        stop.set()
        await rounds
        await server.stop(None)


class Device:
    """One device that does not behave; what it remembers is what an honest one would have on its disk."""

    def __init__(self, number: int, wire: GrpcWire, run: bytes, size: int) -> None:
        self.number = number
        self.contributed: set[tuple[int, int]] = set()
        self.told: set[tuple[int, int]] = set()
        self._wire = wire
        self._run = run
        self._size = size
        self._random = random.Random(number)

    async def visit(self, rounds: int) -> None:
        for _ in range(rounds):
            answer = await self._wire.check_in(CheckIn(os.urandom(16), (Willing(self._run),)))
            if isinstance(answer, Assignment):
                await self._work(answer)
            await asyncio.sleep(self._random.uniform(0.0, 0.1))

    async def _work(self, answer: Assignment) -> None:
        if (answer.plan.step, answer.plan.attempt) in self.contributed:
            return  # as its history would tell an honest one; without tags the server knows sessions alone
        shard, begin = self._wire.to(answer.upload_address), BeginUpload(answer.session, answer.ticket)
        for _ in range(100):  # who gives up keeps a seat until the lease is over; when those keep them all, everybody waits
            reservation = await shard.begin_upload(begin)
            if reservation.answer is Go.WAIT:
                await asyncio.sleep(0.05)
                continue
            if reservation.answer is not Go.GO:
                return
            self.contributed.add((answer.plan.step, answer.plan.attempt))
            if await self._upload_somehow(shard, answer):
                return

    async def _upload_somehow(self, shard: GrpcWire, answer: Assignment) -> bool:
        """Whether the session has ended, as far as the device can tell."""
        kind = self._random.choice(["right", "right", "cut", "lost", "twice", "lie"])
        parts = self._parts(answer.session, 3 if kind == "lie" else 1)
        if kind == "cut":
            await self._send(shard, parts[: self._random.randrange(1, len(parts))], cancel_after=True)
            return False
        receipts: list[Receipt | None]
        if kind == "lost":
            await self._send(shard, parts)
            receipts = [Receipt((await shard.status(StatusRequest(answer.session))).status)]
        elif kind == "twice":
            receipts = list(await asyncio.gather(self._send(shard, parts), self._send(shard, parts), self._send(shard, parts)))
        else:
            receipts = [await self._send(shard, parts)]
        counted = any(receipt is not None and receipt.status is SessionStatus.COUNTED for receipt in receipts)
        if counted:
            self.told.add((answer.plan.step, answer.plan.attempt))
        return counted or kind == "lie"

    def _parts(self, session: bytes, times: int) -> Sequence[bytes]:
        vector = np.zeros(self._size, dtype=np.int32)
        vector[self.number] = 1024 * times
        payload = codec.encode_vector(vector, Encoding.INT16_LE)
        chunks = [payload[start : start + CHUNK_BYTES] for start in range(0, len(payload), CHUNK_BYTES)]
        parts: list[bytes | UploadHeader | UploadTrailer]
        parts = [UploadHeader(session, len(payload)), *chunks, UploadTrailer(zlib.crc32(payload))]
        return [codec.encode_part(part) for part in parts]

    async def _send(self, shard: GrpcWire, parts: Sequence[bytes], cancel_after: bool = False) -> Receipt | None:
        call: Any = shard._channel.stream_unary(f"/{codec.SERVICE}/UploadUpdate")(timeout=20)
        try:
            for part in parts:
                await call.write(part)
            if cancel_after:
                call.cancel()
                return None
            await call.done_writing()
            return codec.decode(Receipt, await call)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            return None


async def attack(coordinator: Coordinator, address: str, size: int) -> None:
    """All devices at once until every step is released; then each release is held against what the devices know."""
    weights, attempts = [coordinator.progress.weights], [0]
    install = coordinator.install

    def noting(progress: Progress, now: float) -> None:
        attempts.append(coordinator.round.attempt)
        install(progress, now)
        weights.append(coordinator.progress.weights)

    coordinator.install = noting  # type: ignore[method-assign]
    wires = [GrpcWire(address) for _ in range(DEVICES)]
    devices = [Device(number, wire, coordinator.run, size) for number, wire in enumerate(wires)]
    async with asyncio.timeout(300):
        while not coordinator.finished:
            await asyncio.gather(*(device.visit(1) for device in devices))
    for wire in wires:
        await wire.close()
    assert len(weights) == 4
    for step in (1, 2, 3):
        grown = (weights[step].astype(np.float64) - weights[step - 1]) * GOAL
        total = np.rint(grown).astype(np.int64)
        assert set(np.unique(total)) == {0, 1024}, "a device was counted twice, or a lie was"
        counted = set(np.flatnonzero(total).tolist())
        assert len(counted) == GOAL
        released = step, attempts[step]
        assert counted <= {device.number for device in devices if released in device.contributed}
        assert {device.number for device in devices if released in device.told} <= counted


def test_every_device_is_in_the_sum_at_most_once_and_only_if_it_knows() -> None:
    async def run() -> None:
        async with embedded() as (coordinator, address):
            await attack(coordinator, address, SIZE)

    asyncio.run(run())


@pytest.mark.slow
def test_the_same_with_two_shards(tmp_path: Path) -> None:
    async def run() -> None:
        async with sharded(tmp_path, 2, goal=GOAL) as (coordinator, address, _):
            await attack(coordinator, address, int(coordinator.progress.weights.size))

    asyncio.run(run())
