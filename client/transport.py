"""The wire: the device service over grpc.aio, with retries and deadlines."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from fedrho.client.participant import Overtaken, TlsFailed, WireLost
from fedrho.protos import codec
from fedrho.protos.messages import (
    Abort,
    ArtifactChunk,
    ArtifactRequest,
    Assignment,
    BeginUpload,
    CheckIn,
    PopulationAnswer,
    PopulationRequest,
    Receipt,
    Reservation,
    RoundPlan,
    StatusAnswer,
    StatusRequest,
    TryLater,
    Upload,
    UploadHeader,
    UploadTrailer,
)

T = TypeVar("T")

Pace = Callable[[int], Awaitable[None]]
"""Awaited with the number of bytes that are about to be sent."""

CALL_SECONDS: Final = 20.0
ABORT_SECONDS: Final = 0.4
STREAM_SECONDS: Final = 600.0
LOST: Final = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
LOST_SENDING: Final = LOST | {grpc.StatusCode.INTERNAL}
"""INTERNAL is, among others, what the core makes of a stream that the server ended while we were sending."""
NOT_BELIEVED: Final = {
    "Hostname Verification": "its certificate is not for this name; `fedrho keys --host NAME` makes one that is",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not of the authority in the folder of --tls, or is too old",
}
"""What gRPC says of a certificate, and what it means."""
OPTIONS: Final = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 4 * 1024 * 1024)]


class ServerRefused(RuntimeError):
    """The server answered with an error that trying again will not change."""


@dataclass(frozen=True)
class ClientTls:
    """The authority that the server's certificate must come from, and the device's own certificate if it has one; in PEM."""

    root: bytes
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.root, self.key, self.certificate)


class GrpcWire:
    """`Wire` for one device: a channel of its own to every address. Calls that may be repeated are, three times, with jitter."""

    def __init__(self, address: str, tls: ClientTls | None = None) -> None:
        self._address = address
        self._tls = tls
        self._elsewhere: dict[str, GrpcWire] = {}
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(address, tls.credentials(), options=OPTIONS)

    async def close(self) -> None:
        for wire in self._elsewhere.values():
            await wire.close()
        await self._channel.close()

    def to(self, address: str) -> GrpcWire:
        """A wire to a shard, closed with this one; this one, for an empty address. `:PORT` is a port on the same host."""
        if not address:
            return self
        if address.startswith(":"):
            address = self._address.rpartition(":")[0] + address
        if address not in self._elsewhere:
            self._elsewhere[address] = GrpcWire(address, self._tls)
        return self._elsewhere[address]

    async def population(self, request: PopulationRequest) -> PopulationAnswer:
        return codec.decode(PopulationAnswer, await self._unary("GetPopulation", codec.encode(request)))

    async def check_in(self, message: CheckIn) -> Assignment | TryLater:
        return codec.decode_answer(await self._unary("CheckIn", codec.encode(message)))

    async def begin_upload(self, message: BeginUpload) -> Reservation:
        return codec.decode(Reservation, await self._unary("BeginUpload", codec.encode(message)))

    async def status(self, message: StatusRequest) -> StatusAnswer:
        return codec.decode(StatusAnswer, await self._unary("GetUploadStatus", codec.encode(message)))

    async def abort(self, message: Abort) -> None:
        """One try: whoever gives up a seat may have no time left, and a seat that is not given back lapses."""
        call: Any = self._channel.unary_unary(_path("AbortSession"))
        with suppress(grpc.aio.AioRpcError):
            await call(codec.encode(message), timeout=ABORT_SECONDS)

    async def artifact(self, sha256: bytes, size: int) -> bytes:
        """Resumes where a broken stream stopped; never holds more than `size` bytes."""
        held = bytearray()

        async def fetch() -> bytes:
            call = self._channel.unary_stream(_path("GetArtifact"))
            async for data in call(codec.encode(ArtifactRequest(sha256, len(held))), timeout=STREAM_SECONDS):
                held.extend(codec.decode(ArtifactChunk, data).data)
                if len(held) > size:
                    raise ServerRefused("the server sent more than the plan announces")
            return bytes(held)

        return await _retried(fetch)

    async def upload(self, message: Upload, plan: RoundPlan, pace: Pace | None = None) -> Receipt:
        """Not repeated here: the participant asks for the session's status first. `pace` is awaited before each part is sent."""
        payload = codec.encode_vector(message.vector, plan.encoding)
        starts = range(0, len(payload), plan.chunk_bytes)

        async def parts() -> AsyncIterator[bytes]:
            yield codec.encode_part(UploadHeader(message.session, len(payload)))
            for start in starts:
                if pace is not None:
                    await pace(min(plan.chunk_bytes, len(payload) - start))
                yield codec.encode_part(payload[start : start + plan.chunk_bytes])
            yield codec.encode_part(UploadTrailer(zlib.crc32(payload)))

        call: Any = self._channel.stream_unary(_path("UploadUpdate"))
        return codec.decode(Receipt, await _translated(call(parts(), timeout=STREAM_SECONDS), LOST_SENDING))

    async def _unary(self, method: str, request: bytes) -> bytes:
        call: Any = self._channel.unary_unary(_path(method))
        return await _retried(lambda: call(request, timeout=CALL_SECONDS))


def _path(method: str) -> str:
    return f"/{codec.SERVICE}/{method}"


async def _retried(attempt: Callable[[], Awaitable[T]]) -> T:
    policy = AsyncRetrying(
        retry=retry_if_exception_type(WireLost),
        stop=stop_after_attempt(3),
        wait=wait_random_exponential(multiplier=0.1, max=1.0),
        reraise=True,
    )

    async def once() -> T:
        return await _translated(attempt())

    return await policy(once)


async def _translated(call: Awaitable[T], lost: Collection[grpc.StatusCode] = LOST) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        details = error.details() or error.code().name
        if error.code() in lost:
            raise next((TlsFailed(why) for said, why in NOT_BELIEVED.items() if said in details), WireLost(details)) from error
        if error.code() is grpc.StatusCode.NOT_FOUND:
            raise Overtaken(error.details()) from error
        raise ServerRefused(f"{error.code().name}: {error.details()}") from error
