"""The wire over real gRPC on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedrho.client.participant import Participant, Result, Wire, WireLost
from fedrho.client.transport import GrpcWire
from fedrho.protos import codec
from fedrho.protos.messages import (
    Abort,
    AbortReason,
    Assignment,
    CheckIn,
    PopulationRequest,
    Receipt,
    Refusal,
    SessionStatus,
    StatusRequest,
    Upload,
    Willing,
)
from tests.client.fleet import (
    LocalWire,
    contributions,
    gives,
    networked,
    one_hot,
    open_small_run,
    plan,
    small_task,
)
from tests.client.serving import answering, dead_port, listening, serving, wired
from tests.server.one_run import SIGNER


def test_visit_over_grpc_counts_once_and_the_next_finds_the_run_ended(tmp_path: Path) -> None:
    engine = open_small_run(small_task(steps=1), now=time.monotonic())
    path = tmp_path / "device.sqlite"

    async def visits() -> list[Result]:
        async with serving(engine) as address, wired(address) as wire:
            device = networked(wire, path, gives(one_hot(5)))
            first = await device.take_part()
            while not engine.finished:
                await asyncio.sleep(0.01)
            return [first.result, (await device.take_part()).result]

    assert asyncio.run(visits()) == [Result.COUNTED, Result.FINISHED]
    assert contributions(path) == [(engine.run, 1)]
    assert np.abs(engine.progress.weights - one_hot(5)).max() < 1e-5


def test_every_call_gives_what_the_engine_says(tmp_path: Path) -> None:
    engine = open_small_run(small_task(), now=time.monotonic())

    async def calls() -> None:
        async with serving(engine) as address, wired(address) as wire:
            assert (await wire.population(PopulationRequest())).public_key == SIGNER.public
            answer = await wire.check_in(CheckIn(bytes(16), (Willing(engine.run),)))
            assert isinstance(answer, Assignment)
            data = await wire.artifact(answer.plan.checkpoint_sha256, 4 * answer.plan.size)
            assert data == engine.progress.weights.astype("<f4").tobytes()
            vector = np.zeros(answer.plan.size, dtype=np.int32)
            refused = Receipt(SessionStatus.LOST, Refusal.UNKNOWN_SESSION)
            assert await wire.upload(Upload(answer.session, vector), answer.plan) == refused
            await wire.abort(Abort(answer.session, AbortReason.SHUTDOWN, answer.ticket))
            assert (await wire.status(StatusRequest(answer.session))).status is SessionStatus.EXPIRED
            assert (await wire.status(StatusRequest(bytes(16)))).status is SessionStatus.LOST

    asyncio.run(calls())


@pytest.mark.parametrize("chunk_bytes", [1, 7, 100, 2599, 2600, 2601])
def test_upload_is_header_chunks_of_the_announced_size_and_trailer(chunk_bytes: int) -> None:
    arrived: list[Any] = []

    async def upload(requests: AsyncIterator[bytes], context: Any) -> bytes:
        arrived.extend([codec.decode_part(request) async for request in requests])
        return codec.encode(Receipt(SessionStatus.COUNTED))

    handlers = {"UploadUpdate": grpc.stream_unary_rpc_method_handler(upload)}
    vector = np.arange(-325, 325, dtype=np.int32)

    async def send() -> Receipt:
        async with listening(grpc.method_handlers_generic_handler(codec.SERVICE, handlers)) as address, wired(address) as wire:
            return await wire.upload(Upload(bytes(16), vector), plan(chunk_bytes=chunk_bytes))

    assert asyncio.run(send()).status is SessionStatus.COUNTED
    header, *chunks, trailer = arrived
    assert (header.session, header.total_bytes) == (bytes(16), 2600)
    assert b"".join(chunks) == vector.astype("<i4").tobytes()
    assert {len(chunk) for chunk in chunks[:-1]} <= {chunk_bytes}
    assert 0 < len(chunks[-1]) <= chunk_bytes
    assert trailer.crc32 == 0xA4617B2F  # by a bitwise CRC-32, apart from zlib


def test_upload_that_cannot_be_cut_into_chunks_is_an_error_and_no_cancellation() -> None:
    """gRPC turns what its request iterator raises into CancelledError, and a cancelled task ends without a word."""

    async def send() -> None:
        async with serving(open_small_run(small_task(), now=time.monotonic())) as address, wired(address) as wire:
            await wire.upload(Upload(bytes(16), np.zeros(650, dtype=np.int32)), plan(chunk_bytes=0))

    with pytest.raises(ValueError, match=r"zero|chunk"):
        asyncio.run(send())


@pytest.mark.parametrize("stopped", [False, True])
def test_upload_that_breaks_in_the_middle_is_a_lost_wire(stopped: bool) -> None:
    async def send() -> None:
        async def upload(requests: AsyncIterator[bytes], context: Any) -> bytes:
            await anext(requests)
            if stopped:
                going = asyncio.create_task(server.stop(grace=None))
                await asyncio.sleep(10)
                await going
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            return b""

        server = grpc.aio.server()
        port = server.add_insecure_port("127.0.0.1:0")
        methods = {"UploadUpdate": grpc.stream_unary_rpc_method_handler(upload)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(codec.SERVICE, methods),))
        await server.start()
        async with wired(f"127.0.0.1:{port}") as wire:
            big = Upload(bytes(16), np.zeros(1_000_000, dtype=np.int32))
            with pytest.raises(WireLost):
                await wire.upload(big, plan(chunk_bytes=100_000))
        await server.stop(grace=None)

    asyncio.run(send())


def test_calls_that_may_be_repeated_survive_two_failures_and_not_three() -> None:
    said = open_small_run(small_task()).spec(PopulationRequest(), 1.0)

    async def population(failures: int) -> bool:
        calls: list[bytes] = []

        async def flaky(request: bytes, context: Any) -> bytes:
            calls.append(request)
            if len(calls) <= failures:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
            return codec.encode(said)

        async with listening(answering(GetPopulation=flaky)) as address, wired(address) as wire:
            return await wire.population(PopulationRequest()) == said

    assert asyncio.run(population(2))
    with pytest.raises(WireLost):
        asyncio.run(population(3))


def test_answer_that_is_malformed_is_not_believed() -> None:
    async def nonsense(request: bytes, context: Any) -> bytes:
        return b"\xff"

    async def ask() -> None:
        async with listening(answering(GetPopulation=nonsense)) as address, wired(address) as wire:
            await wire.population(PopulationRequest())

    with pytest.raises(codec.MalformedMessage):
        asyncio.run(ask())


def test_port_where_nobody_listens_is_a_lost_wire() -> None:
    async def ask() -> None:
        with dead_port() as address:
            async with wired(address) as wire:
                await wire.population(PopulationRequest())

    before = time.monotonic()
    with pytest.raises(WireLost):
        asyncio.run(ask())
    assert time.monotonic() - before < 10


def test_device_whose_round_ended_before_its_download_comes_back_later(tmp_path: Path) -> None:
    """An overselected seat and a slow device: others fill the step, and its weights are no longer served."""
    engine = open_small_run(small_task(), now=time.monotonic())

    class Overtaken(GrpcWire):
        async def artifact(self, sha256: bytes, size: int) -> bytes:
            await device(LocalWire(engine, time.monotonic()), "faster.sqlite").take_part()
            while engine.progress.step == 0:
                await asyncio.sleep(0.01)
            return await super().artifact(sha256, size)

    def device(wire: Wire, name: str) -> Participant:
        return networked(wire, tmp_path / name, gives(one_hot(0)))

    async def visits() -> Result:
        async with serving(engine) as address:
            slow = Overtaken(address)
            try:
                return (await device(slow, "slower.sqlite").take_part()).result
            finally:
                await slow.close()

    assert asyncio.run(visits()) in (Result.LATER, Result.NOT_COUNTED)
    assert contributions(tmp_path / "slower.sqlite") == []
