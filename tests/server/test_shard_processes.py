"""Shards as processes of their own: the same integers for any number of them, and none the wiser when one is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from fedrho.client.transport import GrpcWire
from fedrho.privacy.noise import SystemNoise
from fedrho.protos.messages import (
    Assignment,
    BeginUpload,
    CheckIn,
    Go,
    SessionStatus,
    TryLater,
    Upload,
    Willing,
)
from fedrho.protos.signing import SigningKey
from fedrho.server.coordinator import Coordinator, Surroundings, open_run
from fedrho.server.guard import device_handlers
from fedrho.server.interceptors import MALFORMED
from fedrho.server.population import Population
from fedrho.server.ports import device_server
from fedrho.server.service import DeviceService
from fedrho.server.shard_wire import RemoteShard
from fedrho.server.storage.memory_store import MemoryStore
from fedrho.server.tasks import parse_task

SIZE = 200_000
DEVICES = 24
TASK = """
name = "sharded"
algorithm = "dp-fedavg"
model = "digits-logistic"
steps = 3
population = 1000
[round]
goal = {goal}
min_reports = {min_reports}
overselect = 2.0
deadline_seconds = {deadline}
lease_seconds = 20
retry_seconds = [0.05, 0.1]
[privacy]
clip_norm = 1024.0   # a grid unit is 1: released weights are the exact sum over the goal
rho = 1e12           # noise far below a grid unit
delta = 1e-9
grid_bits = 10
[participation]
max_times = 3
"""


class Processes:
    """Shard processes on unix sockets, started and killed at will."""

    def __init__(self, folder: Path, count: int) -> None:
        self.targets = [f"unix:{folder / f'{number}.sock'}" for number in range(count)]
        self.children = [self._start(number) for number in range(count)]

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "fedrho", "shard", self.targets[number]],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def kill(self, number: int) -> None:
        self.children[number].send_signal(signal.SIGKILL)
        self.children[number].wait()

    def restart(self, number: int) -> None:
        self.children[number] = self._start(number)

    def stop(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()


@asynccontextmanager
async def sharded(
    folder: Path, count: int, goal: int = DEVICES, min_reports: int | None = None, deadline: float = 60.0
) -> AsyncIterator[tuple[Coordinator, str, Processes]]:
    """A coordinator over `count` shard processes, its address, and the processes."""
    processes = Processes(folder, count)
    links, stop = [RemoteShard(target) for target in processes.targets], asyncio.Event()
    talks = [asyncio.create_task(link.run(stop)) for link in links]
    try:
        await until(lambda: all(link.alive for link in links))
        store = MemoryStore()
        task = parse_task(TASK.format(goal=goal, min_reports=min_reports or goal, deadline=deadline), "sharded.toml")
        around = Surroundings(SystemNoise(), store, lambda: os.urandom(16), links)
        coordinator = open_run(task, around, lambda: np.zeros(SIZE, dtype=np.float32), time.monotonic())
        service = DeviceService(Population([coordinator], store, SigningKey.generate()), time.monotonic, lambda _: None)
        server = device_server(60.0)
        server.add_generic_rpc_handlers((device_handlers(service.methods()),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        rounds = asyncio.create_task(service.run_rounds(stop))
        try:
            yield coordinator, f"127.0.0.1:{port}", processes
        finally:
            stop.set()
            await rounds
            await server.stop(None)
    finally:
        stop.set()
        await asyncio.gather(*talks)
        processes.stop()


async def until(met: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not met():
            await asyncio.sleep(0.02)


def unit(device: int) -> np.ndarray:
    vector = np.zeros(SIZE, dtype=np.int32)
    vector[device] = 1024
    return vector


async def seat(wire: GrpcWire, run: bytes) -> Assignment:
    while True:
        answer = await wire.check_in(CheckIn(os.urandom(16), (Willing(run),)))
        if isinstance(answer, Assignment):
            return answer
        assert isinstance(answer, TryLater)
        await asyncio.sleep(0.05)


async def contribute(wire: GrpcWire, run: bytes, device: int) -> int | None:
    """One whole visit; the step in which it was counted, as far as the device knows."""
    answer = await seat(wire, run)
    shard = wire.to(answer.upload_address)
    reservation = await shard.begin_upload(BeginUpload(answer.session, answer.ticket))
    if reservation.answer is not Go.GO:
        return None
    receipt = await shard.upload(Upload(answer.session, unit(device)), answer.plan)
    return answer.plan.step if receipt.status is SessionStatus.COUNTED else None


def released_sum(coordinator: Coordinator) -> np.ndarray:
    return np.rint(coordinator.progress.weights.astype(np.float64) * coordinator.task.file.round.goal).astype(np.int64)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_sum_is_the_same_integers_for_any_number_of_shards(count: int, tmp_path: Path) -> None:
    async def run() -> None:
        async with sharded(tmp_path, count) as (coordinator, address, _):
            wires = [GrpcWire(address) for _ in range(4)]
            counted = await asyncio.gather(*(contribute(wires[device % 4], coordinator.run, device) for device in range(DEVICES)))
            assert all(counted)
            await until(lambda: coordinator.progress.step == 1)
            expected = np.zeros(SIZE, dtype=np.int64)
            expected[:DEVICES] = 1024
            np.testing.assert_array_equal(released_sum(coordinator), expected)
            for wire in wires:
                await wire.close()

    asyncio.run(run())


@pytest.mark.slow
def test_a_killed_shard_takes_its_part_with_it_and_others_collect_what_is_missing(tmp_path: Path) -> None:
    async def run() -> None:
        async with sharded(tmp_path, 2) as (coordinator, address, processes):
            wire = GrpcWire(address)
            lost = set()
            for device in range(DEVICES // 2):
                answer = await seat(wire, coordinator.run)
                shard = wire.to(answer.upload_address)
                await shard.begin_upload(BeginUpload(answer.session, answer.ticket))
                assert (await shard.upload(Upload(answer.session, unit(device)), answer.plan)).status is SessionStatus.COUNTED
                if coordinator.round.sessions[answer.session].shard == 0:
                    lost.add(device)
            assert 0 < len(lost) < DEVICES // 2
            await until(lambda: coordinator.round.counted() == DEVICES // 2)
            processes.kill(0)
            await until(lambda: coordinator.round.counted() == DEVICES // 2 - len(lost))
            processes.restart(0)
            device = DEVICES // 2
            while coordinator.progress.step == 0:
                if await contribute(wire, coordinator.run, device) == 1:
                    device += 1
                await asyncio.sleep(0.1)
            total = released_sum(coordinator)
            assert set(np.flatnonzero(total)) == set(range(device)) - lost
            assert total.max() == 1024
            assert (total > 0).sum() == DEVICES
            await wire.close()

    asyncio.run(run())


@pytest.mark.slow
def test_without_the_dead_shard_min_reports_decide_at_the_deadline(tmp_path: Path) -> None:
    async def run() -> None:
        async with sharded(tmp_path, 2, goal=8, min_reports=2, deadline=12.0) as (coordinator, address, processes):
            wire = GrpcWire(address)
            for device in range(6):
                assert await contribute(wire, coordinator.run, device)
            processes.kill(1)
            await until(lambda: coordinator.progress.step == 1)
            total = released_sum(coordinator)
            assert 2 <= (total > 0).sum() < 6
            assert total.max() == 1024
            await wire.close()

    asyncio.run(run())


@pytest.mark.slow
def test_a_shard_refuses_tickets_of_another_shard_and_strangers(tmp_path: Path) -> None:
    async def run() -> None:
        async with sharded(tmp_path, 2) as (coordinator, address, _):
            wire = GrpcWire(address)
            answers = [await seat(wire, coordinator.run) for _ in range(2)]
            one, other = answers
            assert one.upload_address != other.upload_address
            swapped = await wire.to(other.upload_address).begin_upload(BeginUpload(one.session, one.ticket))
            forged = await wire.to(one.upload_address).begin_upload(BeginUpload(one.session, other.ticket))
            assert (swapped.answer, forged.answer) == (Go.NOT_NEEDED, Go.NOT_NEEDED)
            right = await wire.to(one.upload_address).begin_upload(BeginUpload(one.session, one.ticket))
            assert right.answer is Go.GO
            await wire.close()

    asyncio.run(run())


@pytest.mark.slow
def test_a_call_without_a_message_is_no_call_at_a_shard_either(tmp_path: Path) -> None:
    """What shows that the caps of `interceptors.py` stand in front of a shard as of a coordinator."""

    async def run() -> None:
        async with sharded(tmp_path, 1) as (coordinator, address, _):
            wire = GrpcWire(address)
            shard = wire.to((await seat(wire, coordinator.run)).upload_address)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await shard._channel.stream_unary("/fedrho.v1.DeviceService/BeginUpload")(iter(()), timeout=10)
            assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, MALFORMED)
            await wire.close()

    asyncio.run(run())


def test_a_shard_is_no_device_service_at_its_control_and_the_other_way_round(tmp_path: Path) -> None:
    processes = Processes(tmp_path, 1)

    async def run() -> None:
        async with grpc.aio.insecure_channel(processes.targets[0]) as channel:
            await asyncio.wait_for(channel.channel_ready(), 20)
            for service, method in (("fedrho.v1.DeviceService", "UploadUpdate"), ("fedrho.shard.v1.ShardService", "Nothing")):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await channel.unary_unary(f"/{service}/{method}")(b"", timeout=10)
                assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

    try:
        asyncio.run(run())
    finally:
        processes.stop()
