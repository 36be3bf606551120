"""gRPC in front of a coordinator: bytes in, bytes out, one event loop, and releases on a thread beside it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import structlog

from fedrho.protos import codec
from fedrho.protos.messages import (
    Abort,
    Aborted,
    ArtifactChunk,
    ArtifactRequest,
    BeginUpload,
    CheckIn,
    Encoding,
    PopulationRequest,
    Receipt,
    Refusal,
    SessionStatus,
    StatusRequest,
    Upload,
    UploadHeader,
    UploadTrailer,
)
from fedrho.server.coordinator import CHUNK_BYTES, Coordinator

TICK_SECONDS: Final = 0.02
READ_SECONDS: Final = 30.0
MAX_MESSAGE: Final = CHUNK_BYTES + 64 * 1024
OPTIONS: Final = [
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_concurrent_streams", 8),
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    ("grpc.server_handshake_timeout_ms", 10_000),
]
"""Of the device port. A second server on the same port must fail to bind, so so_reuseport is off."""

log = structlog.get_logger("fedrho.server")


class BrokenFraming(Exception):
    """An upload stream that is not header, chunks, trailer."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.name)
        self.refusal = refusal


class DeviceService:
    """The device service: every call of a device, and the passing of time, for one coordinator."""

    def __init__(self, coordinator: Coordinator, clock: Callable[[], float], on_release: Callable[[Coordinator], None]) -> None:
        self._coordinator = coordinator
        self._clock = clock
        self._on_release = on_release
        self._uploading: set[bytes] = set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Handlers over raw bytes, so that parsing happens under our own error handling."""
        unary = grpc.unary_unary_rpc_method_handler
        methods = {
            "GetPopulation": unary(_guarded(self._population)),
            "CheckIn": unary(_guarded(self._check_in)),
            "GetArtifact": grpc.unary_stream_rpc_method_handler(self._artifact),
            "BeginUpload": unary(_guarded(self._begin_upload)),
            "UploadUpdate": grpc.stream_unary_rpc_method_handler(_guarded(self._upload)),
            "GetUploadStatus": unary(_guarded(self._upload_status)),
            "AbortSession": unary(_guarded(self._abort)),
        }
        return grpc.method_handlers_generic_handler(codec.SERVICE, methods)

    async def run_rounds(self, stop: asyncio.Event) -> None:
        """Lets time pass, and releases every full round, until the run has ended or `stop` is set.

        A release that has begun is finished and installed first. An error here must stop the server.
        """
        while not self._coordinator.finished and not stop.is_set():
            self._coordinator.tick(self._clock())
            if self._coordinator.release_due:
                await self._release()
            await asyncio.sleep(TICK_SECONDS)

    async def _release(self) -> None:
        attempt = self._coordinator.take_full_round()
        progress = await asyncio.to_thread(self._coordinator.through_gate, attempt, self._clock())
        self._coordinator.install(progress, self._clock())
        self._on_release(self._coordinator)

    async def _population(self, request: bytes, context: Any) -> bytes:
        codec.decode(PopulationRequest, request)
        return codec.encode(self._coordinator.population())

    async def _check_in(self, request: bytes, context: Any) -> bytes:
        return codec.encode_answer(self._coordinator.check_in(codec.decode(CheckIn, request), self._clock()))

    async def _begin_upload(self, request: bytes, context: Any) -> bytes:
        return codec.encode(self._coordinator.begin_upload(codec.decode(BeginUpload, request), self._clock()))

    async def _upload_status(self, request: bytes, context: Any) -> bytes:
        return codec.encode(self._coordinator.upload_status(codec.decode(StatusRequest, request), self._clock()))

    async def _abort(self, request: bytes, context: Any) -> bytes:
        self._coordinator.abort(codec.decode(Abort, request), self._clock())
        return codec.encode(Aborted())

    async def _artifact(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            wanted = codec.decode(ArtifactRequest, request)
        except codec.MalformedMessage:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "malformed message")
        data = self._coordinator.artifact(wanted.sha256)
        if data is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such artifact; check in again")
            return
        for start in range(wanted.offset, len(data), CHUNK_BYTES):
            yield codec.encode(ArtifactChunk(data[start : start + CHUNK_BYTES]))

    async def _upload(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        try:
            header = await _next_part(requests)
        except BrokenFraming as error:
            return codec.encode(Receipt(SessionStatus.LOST, error.refusal))
        if not isinstance(header, UploadHeader):
            return codec.encode(Receipt(SessionStatus.LOST, Refusal.WRONG_FRAMING))
        return codec.encode(await self._receive(header, requests))

    async def _receive(self, header: UploadHeader, requests: AsyncIterator[bytes]) -> Receipt:
        """Reads nothing that cannot be counted; one open stream a session."""
        settled = self._coordinator.may_upload(header.session, self._clock())
        if settled is not None:
            return settled
        if header.session in self._uploading:
            return Receipt(SessionStatus.RESERVED, Refusal.ALREADY_OPEN)
        self._uploading.add(header.session)
        try:
            payload = await self._payload(header, requests)
        except BrokenFraming as error:
            return Receipt(SessionStatus.RESERVED, error.refusal)
        finally:
            self._uploading.discard(header.session)
        vector = codec.decode_vector(payload, self._encoding())
        return self._coordinator.upload(Upload(header.session, vector), self._clock())

    async def _payload(self, header: UploadHeader, requests: AsyncIterator[bytes]) -> bytearray:
        """The encoded vector: exactly the length that the plan implies, in chunks of exactly the announced size."""
        expected = self._coordinator.population().size * self._encoding().width
        if header.total_bytes != expected:
            raise BrokenFraming(Refusal.WRONG_LENGTH)
        payload = bytearray(expected)
        for start in range(0, expected, CHUNK_BYTES):
            chunk = await _next_part(requests)
            if not isinstance(chunk, bytes) or len(chunk) != min(CHUNK_BYTES, expected - start):
                raise BrokenFraming(Refusal.WRONG_FRAMING)
            payload[start : start + len(chunk)] = chunk
        trailer = await _next_part(requests)
        if not isinstance(trailer, UploadTrailer):
            raise BrokenFraming(Refusal.WRONG_FRAMING)
        if trailer.crc32 != zlib.crc32(payload):
            raise BrokenFraming(Refusal.WRONG_CHECKSUM)
        return payload

    def _encoding(self) -> Encoding:
        return Encoding.for_grid(self._coordinator.task.mechanism.grid.bits)


async def _next_part(requests: AsyncIterator[bytes]) -> bytes | UploadHeader | UploadTrailer:
    try:
        async with asyncio.timeout(READ_SECONDS):
            return codec.decode_part(await anext(requests))
    except (StopAsyncIteration, codec.MalformedMessage):
        raise BrokenFraming(Refusal.WRONG_FRAMING) from None


def _guarded(handle: Callable[[Any, Any], Awaitable[bytes]]) -> Callable[[Any, Any], Awaitable[bytes]]:
    """Errors as fixed texts: nothing of a request, and no exception text, goes back or into a log."""

    async def guarded(request: Any, context: Any) -> bytes:
        try:
            return await handle(request, context)
        except codec.MalformedMessage:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "malformed message")
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the stream stood still")
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.error("internal error", kind=type(error).__name__)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")
        raise AssertionError("abort raises")

    return guarded
