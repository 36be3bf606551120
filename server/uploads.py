"""gRPC in front of a shard: reservations, uploads, and what became of them. The same in one process and in many.

Nothing here looks at a clock for how long a stream takes: that is `CapInterceptor`'s, in front of it (`ports.device_server`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc

from fedrho.privacy.vectors import Gathered
from fedrho.protos import codec
from fedrho.protos.messages import (
    CHUNK_BYTES,
    Abort,
    Aborted,
    BeginUpload,
    Receipt,
    Refusal,
    SessionStatus,
    StatusRequest,
    UploadHeader,
    UploadTrailer,
)
from fedrho.server.guard import guarded
from fedrho.server.intake import Order
from fedrho.server.operations.observer import Observer
from fedrho.server.receiving import Receiver
from fedrho.server.shard import Shard


class UploadService:
    """The calls of a device that has a session."""

    def __init__(self, shard: Shard, clock: Callable[[], float], observer: Observer | None = None) -> None:
        self._shard = shard
        self._clock = clock
        self._observer = observer or Observer()
        self._uploading: set[bytes] = set()

    def methods(self) -> Mapping[str, grpc.RpcMethodHandler]:
        """Handlers over raw bytes, so that parsing happens under our own error handling."""
        unary = grpc.unary_unary_rpc_method_handler
        return {
            "BeginUpload": unary(guarded(self._begin_upload)),
            "UploadUpdate": grpc.stream_unary_rpc_method_handler(guarded(self._upload)),
            "GetUploadStatus": unary(guarded(self._upload_status)),
            "AbortSession": unary(guarded(self._abort)),
        }

    async def _begin_upload(self, request: bytes, context: Any) -> bytes:
        return codec.encode(self._shard.begin_upload(codec.decode(BeginUpload, request), self._clock()))

    async def _upload_status(self, request: bytes, context: Any) -> bytes:
        return codec.encode(self._shard.upload_status(codec.decode(StatusRequest, request), self._clock()))

    async def _abort(self, request: bytes, context: Any) -> bytes:
        self._shard.abort(codec.decode(Abort, request), self._clock())
        return codec.encode(Aborted())

    async def _upload(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        receipt = await self._answer(requests)
        self._observer.uploaded(receipt)
        return codec.encode(receipt)

    async def _answer(self, requests: AsyncIterator[bytes]) -> Receipt:
        try:
            header = codec.decode_part(await anext(requests))
        except (StopAsyncIteration, codec.MalformedMessage):
            header = memoryview(b"")
        if not isinstance(header, UploadHeader):
            return Receipt(SessionStatus.LOST, Refusal.WRONG_FRAMING)
        return await self._receive(header, requests)

    async def _receive(self, header: UploadHeader, requests: AsyncIterator[bytes]) -> Receipt:
        """Reads nothing that cannot be counted; one open stream a session."""
        settled = self._shard.may_upload(header.session, self._clock())
        if settled is not None:
            return settled
        if header.session in self._uploading:
            return Receipt(SessionStatus.RESERVED, Refusal.ALREADY_OPEN)
        order = self._shard.order_of(header.session)
        if header.total_bytes != order.update_bytes:
            return Receipt(SessionStatus.RESERVED, Refusal.WRONG_LENGTH)
        self._uploading.add(header.session)
        try:
            return await self._fill(header.session, order, requests)
        finally:
            self._uploading.discard(header.session)

    async def _fill(self, session: bytes, order: Order, requests: AsyncIterator[bytes]) -> Receipt:
        with Receiver(CHUNK_BYTES, order.encoding, order.size, order.grid) as receiver:
            try:
                received = await _received(receiver, requests)
            except codec.MalformedMessage:
                received = Refusal.WRONG_FRAMING
            # From here on nothing waits, so checking, adding and counting are one step of the event loop.
            if isinstance(received, Gathered):
                return self._shard.count(session, received, self._clock())
            if received is Refusal.NORM_TOO_LARGE:
                return self._shard.refuse(session, received, self._clock())
            return Receipt(SessionStatus.RESERVED, received)


async def _received(receiver: Receiver, requests: AsyncIterator[bytes]) -> Gathered | Refusal:
    """Chunks, then the trailer."""
    async for request in requests:
        part = codec.decode_part(request)
        if isinstance(part, UploadTrailer):
            return receiver.finish(part.crc32)
        refusal = receiver.take(part) if isinstance(part, memoryview) else Refusal.WRONG_FRAMING
        if refusal is not None:
            return refusal
    return Refusal.WRONG_FRAMING
