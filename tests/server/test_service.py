"""A real server on loopback against clients that do everything wrong: each refused, the sum untouched, the server alive."""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
import numpy as np
import pytest

from fedrho.protos import codec
from fedrho.protos.messages import (
    CHUNK_BYTES,
    Assignment,
    BeginUpload,
    CheckIn,
    Encoding,
    Go,
    PopulationAnswer,
    PopulationRequest,
    PopulationSpec,
    Receipt,
    Refusal,
    Reservation,
    SessionStatus,
    UploadHeader,
    UploadTrailer,
    Willing,
)
from fedrho.server.guard import device_handlers
from fedrho.server.service import OPTIONS, DeviceService
from fedrho.server.uploads import UploadService
from tests.server.conftest import MakeEngine
from tests.server.one_run import OneRun

SIZE = 300_000
Part = bytes | UploadHeader | UploadTrailer


class Client:
    """Raw bytes to and from the service, so that anything can be sent."""

    def __init__(self, channel: Any, engine: OneRun, uploads: UploadService) -> None:
        self.channel = channel
        self.engine = engine
        self.uploads = uploads

    async def call(self, method: str, request: bytes) -> bytes:
        return bytes(await self.channel.unary_unary(f"/{codec.SERVICE}/{method}")(request, timeout=10))

    async def reserve(self) -> bytes:
        message = CheckIn(os.urandom(16), (Willing(self.engine.run),))
        answer = codec.decode_answer(await self.call("CheckIn", codec.encode(message)))
        assert isinstance(answer, Assignment)
        begin = BeginUpload(answer.session, answer.ticket)
        reservation = codec.decode(Reservation, await self.call("BeginUpload", codec.encode(begin)))
        assert reservation.answer is Go.GO
        return answer.session

    async def upload(self, parts: Iterable[Part | bytes], raw: bool = False) -> Receipt:
        async def stream() -> AsyncIterator[bytes]:
            for part in parts:
                yield part if raw and isinstance(part, bytes) else codec.encode_part(part)

        call = self.channel.stream_unary(f"/{codec.SERVICE}/UploadUpdate")
        return codec.decode(Receipt, await call(stream(), timeout=10))


def against_server(engine: OneRun, test: Callable[[Client], Awaitable[None]]) -> None:
    """Runs `test` with a client of a served engine, whose clock stands still."""

    async def run() -> None:
        def time() -> float:
            return 0.0

        server = grpc.aio.server(options=OPTIONS)
        devices, uploads = DeviceService(engine.population, time, lambda _: None), UploadService(engine.shard, time)
        server.add_generic_rpc_handlers((device_handlers(devices.methods(), uploads.methods()),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await test(Client(channel, engine, uploads))
        finally:
            await server.stop(None)

    asyncio.run(run())


def parts(session: bytes, vector: np.ndarray, chunk: int = CHUNK_BYTES, crc: int | None = None) -> list[Part]:
    payload = codec.encode_vector(vector.astype(np.int32), Encoding.INT16_LE)
    chunks = [payload[start : start + chunk] for start in range(0, len(payload), chunk)]
    return [UploadHeader(session, len(payload)), *chunks, UploadTrailer(zlib.crc32(payload) if crc is None else crc)]


def good_vector(engine: OneRun) -> np.ndarray:
    vector = np.zeros(SIZE, dtype=np.int32)
    vector[7] = engine.task.mechanism.grid.radius
    return vector


def counted(engine: OneRun) -> tuple[int, int]:
    """Reports counted, and the largest entry of the sum, which is thereby sealed."""
    return engine.intake.counted, int(np.abs(engine.sealed()).max())


def too_long(session: bytes, vector: np.ndarray) -> list[Part]:
    return parts(session, np.concatenate([vector, vector[:1]]))


UNSOUND: dict[str, tuple[Callable[[bytes, np.ndarray], list[Part]], Refusal]] = {
    "norm": (lambda s, v: parts(s, v + 1), Refusal.NORM_TOO_LARGE),
    "largest values": (lambda s, v: parts(s, np.full(SIZE, -(2**15))), Refusal.NORM_TOO_LARGE),
    "too short": (lambda s, v: parts(s, v[:-1]), Refusal.WRONG_LENGTH),
    "too long": (too_long, Refusal.WRONG_LENGTH),
    "empty": (lambda s, v: parts(s, v[:0]), Refusal.WRONG_LENGTH),
    "checksum": (lambda s, v: parts(s, v, crc=1), Refusal.WRONG_CHECKSUM),
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_an_unsound_upload_is_refused_with_its_reason_and_leaves_no_trace(kind: str, make_engine: MakeEngine) -> None:
    engine = make_engine(size=SIZE)
    make_parts, refusal = UNSOUND[kind]

    async def test(client: Client) -> None:
        receipt = await client.upload(make_parts(await client.reserve(), good_vector(engine)))
        assert receipt.refusal is refusal
        assert counted(engine) == (0, 0)

    against_server(engine, test)


@pytest.mark.parametrize(
    "mangle",
    [
        lambda p: p[1:],
        lambda p: p[:-1],
        lambda p: p[:1],
        lambda p: [],
        lambda p: [p[0], p[1], p[1], *p[2:]],
        lambda p: [p[0], p[2], p[1], p[3]],
        lambda p: [p[0], p[1][:-2], *p[2:]],
        lambda p: [p[0], p[0], *p[1:]],
        lambda p: [p[0], *([b""] * 1000), *p[1:]],
        lambda p: [p[0], *[p[1][i : i + 64] for i in range(0, len(p[1]), 64)], *p[2:]],
    ],
    ids=["no header", "no trailer", "header only", "nothing", "twice", "swapped", "odd chunk", "two headers", "empty", "tiny"],
)
def test_broken_framing_is_refused_at_once_and_a_right_upload_still_counts(
    mangle: Callable[[list[Any]], list[Any]], make_engine: MakeEngine
) -> None:
    engine = make_engine(size=SIZE)

    async def test(client: Client) -> None:
        session = await client.reserve()
        whole = parts(session, good_vector(engine))
        assert (await client.upload(mangle(whole))).refusal is Refusal.WRONG_FRAMING
        assert engine.intake.counted == 0
        assert await client.upload(whole) == Receipt(SessionStatus.COUNTED)
        assert counted(engine) == (1, engine.task.mechanism.grid.radius)

    against_server(engine, test)


def test_repeated_and_parallel_uploads_count_once(make_engine: MakeEngine) -> None:
    engine = make_engine(size=SIZE)

    async def test(client: Client) -> None:
        session = await client.reserve()
        whole = parts(session, good_vector(engine))
        receipts = await asyncio.gather(*(client.upload(whole) for _ in range(6)))
        assert Receipt(SessionStatus.COUNTED) in receipts
        assert all(r.status is SessionStatus.COUNTED or r.refusal is Refusal.ALREADY_OPEN for r in receipts)
        assert await client.upload(whole[:1]) == Receipt(SessionStatus.COUNTED)
        assert counted(engine) == (1, engine.task.mechanism.grid.radius)

    against_server(engine, test)


@pytest.mark.parametrize("state", ["unknown", "without reservation"])
def test_an_upload_that_nobody_asked_for_is_refused_before_a_byte_is_read(state: str, make_engine: MakeEngine) -> None:
    engine = make_engine(size=SIZE)

    async def test(client: Client) -> None:
        known = engine.seat()
        for _ in range(3):
            engine.reserve(engine.seat())
        assert engine.begin_upload(BeginUpload(known.session, known.ticket), 0.0).answer is Go.WAIT
        session = os.urandom(16) if state == "unknown" else known.session
        receipt = await client.upload(parts(session, good_vector(engine))[:1])
        assert receipt.refusal is (Refusal.UNKNOWN_SESSION if state == "unknown" else Refusal.NO_RESERVATION)

    against_server(engine, test)


def test_an_upload_whose_attempt_is_long_over_when_its_last_byte_arrives_is_refused(make_engine: MakeEngine) -> None:
    engine = make_engine(size=SIZE)

    async def test(client: Client) -> None:
        session = await client.reserve()
        whole = parts(session, good_vector(engine))

        async def slowly() -> AsyncIterator[bytes]:
            yield codec.encode_part(whole[0])
            while session not in client.uploads._uploading:
                await asyncio.sleep(0.001)
            for now in (10.0, 100.0, 200.0):  # two attempts later nobody remembers the session
                engine.tick(now)
                engine.seat(now)
            for part in whole[1:]:
                yield codec.encode_part(part)

        call = client.channel.stream_unary(f"/{codec.SERVICE}/UploadUpdate")
        receipt = codec.decode(Receipt, await call(slowly(), timeout=10))
        assert receipt == Receipt(SessionStatus.LOST, Refusal.UNKNOWN_SESSION)
        assert counted(engine) == (0, 0)

    against_server(engine, test)


GARBAGE = [b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x01x"]


@pytest.mark.parametrize("method", ["CheckIn", "BeginUpload", "GetUploadStatus", "AbortSession"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_a_refused_call_with_a_fixed_text(method: str, garbage: bytes, make_engine: MakeEngine) -> None:
    engine = make_engine(size=12)

    async def test(client: Client) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.call(method, garbage)
        assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "malformed message")
        answer = codec.decode(PopulationAnswer, await client.call("GetPopulation", codec.encode(PopulationRequest())))
        assert [task.run for task in codec.decode(PopulationSpec, answer.spec).tasks] == [engine.run]

    against_server(engine, test)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_an_upload_is_broken_framing(garbage: bytes, make_engine: MakeEngine) -> None:
    engine = make_engine(size=SIZE)

    async def test(client: Client) -> None:
        session = await client.reserve()
        assert (await client.upload([garbage], raw=True)).refusal is Refusal.WRONG_FRAMING
        header = codec.encode_part(UploadHeader(session, 2 * SIZE))
        assert (await client.upload([header, garbage], raw=True)).refusal is Refusal.WRONG_FRAMING
        assert counted(engine) == (0, 0)

    against_server(engine, test)


def test_a_message_larger_than_a_chunk_is_refused(make_engine: MakeEngine) -> None:
    engine = make_engine(size=SIZE)

    async def test(client: Client) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.upload([UploadHeader(await client.reserve(), 2 * SIZE), bytes(CHUNK_BYTES + 100_000)])
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    against_server(engine, test)


def test_compressed_messages_are_refused(make_engine: MakeEngine) -> None:
    engine = make_engine(size=12)

    async def test(client: Client) -> None:
        call = client.channel.unary_unary(f"/{codec.SERVICE}/GetPopulation")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(bytes([122, 0]) + bytes(10_000), compression=grpc.Compression.Gzip, timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

    against_server(engine, test)


def test_a_second_server_cannot_bind_the_same_port() -> None:
    async def run() -> None:
        first, second = grpc.aio.server(options=OPTIONS), grpc.aio.server(options=OPTIONS)
        port = first.add_insecure_port("127.0.0.1:0")
        with pytest.raises(RuntimeError):
            second.add_insecure_port(f"127.0.0.1:{port}")
        await first.stop(None)
        await second.stop(None)

    asyncio.run(run())
