"""What one call may take, whatever its caller intends: time in all, time for each message, calls at once, size of metadata.

gRPC's own limits end connections; these end calls, with a fixed text, and let go of what the call held before they answer.
gRPC reads the one request of a unary call before it calls a handler, without a limit of time: a stranger who sends only headers
would hold a call for as long as the connection lives. So every method is served as a stream of requests, which looks the same
on the wire, and its one request is read here.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc

from fedrho.protos import codec

TOO_LONG: Final = "the call took too long"
STOOD_STILL: Final = "the stream stood still"
TOO_MANY: Final = "too many calls of this kind are open; try again later"
TOO_MUCH_METADATA: Final = "too much metadata"
MALFORMED: Final = "malformed message"

SMALL_SECONDS: Final = 10.0
DOWNLOAD_SECONDS: Final = 600.0
METADATA_BYTES: Final = 16 * 1024
"""The port's own limit binds only after a client has acknowledged the server's settings; before, it is 16 MiB."""

Work = Callable[["Patience", Any], Awaitable[Any]]
"""All of a call, given its messages and its context; None for a call that wrote its answers itself."""


@dataclass(frozen=True)
class Cap:
    """Of one method: seconds for all of a call, seconds until each message arrives, and calls open at once.

    The first message says whose call it is; until it came, the call holds one of `calls` for nothing, so it has a time of its
    own.
    """

    seconds: float
    calls: int
    read_seconds: float = 30.0
    first_read_seconds: float = 5.0


class CapInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc is not typed
    """Keeps a cap for each full method name, and `other` for each method without one."""

    def __init__(self, caps: Mapping[str, Cap], other: Cap) -> None:
        self._caps = dict(caps)
        self._other = other
        self._open: Counter[str] = Counter()
        self._made: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        if metadata_bytes(details.invocation_metadata) > METADATA_BYTES:
            return REFUSES_METADATA
        made = self._made.get(details.method)
        if made is None or made[0] is not handler:
            made = handler, self._capped(handler, details.method, self._caps.get(details.method, self._other))
            self._made[details.method] = made
        return made[1]

    def _capped(self, handler: Any, method: str, cap: Cap) -> Any:
        make = grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
        work = _work(handler)

        async def behave(_: Any, context: Any) -> Any:
            return await self._within(work, context, method, cap)

        return make(behave, handler.request_deserializer, handler.response_serializer)

    async def _within(self, work: Work, context: Any, method: str, cap: Cap) -> Any:
        if self._open[method] >= cap.calls:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY)
        self._open[method] += 1
        patience = Patience(cap, context)
        try:
            async with patience.limit:
                return await work(patience, context)
        except TimeoutError:
            text = patience.why
        finally:
            patience.end()
            self._open[method] -= 1
        await _end(context, text)


class Patience:
    """The times of one call, from when this is made: all of it, and each message; and the messages, for an `async for`.

    A message that is written has the time that one has to arrive: it is over when the caller takes nothing any more.

    What is done within `limit` ends when a time is over. A message that comes moves a number and no timer: the one timer looks
    at that number when the first of the times that could be over is over, and sleeps on.
    """

    def __init__(self, cap: Cap, context: Any) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self.limit = asyncio.timeout_at(None)
        self.why = STOOD_STILL
        self._context = context
        self._read_seconds = cap.read_seconds
        self._seconds = cap.first_read_seconds
        now = loop.time()
        self._until = now + cap.seconds
        self._message_until = math.inf
        self._timer = loop.call_at(min(self._until, now + self._seconds), self._look)

    def __aiter__(self) -> Patience:
        return self

    async def __anext__(self) -> Any:
        """While a message is worked on, only the time for all of the call goes on."""
        self._message_until = self._loop.time() + self._seconds
        message = await self._context.read()
        self._message_until, self._seconds = math.inf, self._read_seconds
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message

    def begin_write(self) -> None:
        self._message_until = self._loop.time() + self._read_seconds

    def end_write(self) -> None:
        self._message_until = math.inf

    def end(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        if now >= min(self._until, self._message_until):
            self.why = TOO_LONG if now >= self._until else STOOD_STILL
            self.limit.reschedule(now)
            return
        soonest = min(self._message_until, now + self._seconds)  # of a message that is waited for from now on
        self._timer = self._loop.call_at(min(self._until, soonest), self._look)


def device_caps(upload_seconds: float, upload_slots: int, calls: int) -> dict[str, Cap]:
    """Of the device service. An upload may take as long as a lease, a download as long as its client waits."""
    methods = ("GetPopulation", "CheckIn", "BeginUpload", "GetUploadStatus", "AbortSession")
    return {
        **{f"/{codec.SERVICE}/{method}": Cap(SMALL_SECONDS, calls) for method in methods},
        f"/{codec.SERVICE}/GetArtifact": Cap(DOWNLOAD_SECONDS, calls),
        f"/{codec.SERVICE}/UploadUpdate": Cap(upload_seconds, upload_slots),
    }


def metadata_bytes(metadata: Any) -> int:
    """The size of names and values, and 32 bytes for each pair, as HTTP/2 counts."""
    return sum(len(name) + len(value) + 32 for name, value in metadata or ())


def _work(handler: Any) -> Work:
    """The handler of any of the four kinds as one coroutine, so that all of it happens inside the timeout.

    Answers of a stream are written here, because a caller that does not read makes the write wait.
    """
    handle = handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary

    async def work(requests: Patience, context: Any) -> Any:
        request = requests if handler.request_streaming else await _only(requests, context)
        if not handler.response_streaming:
            return await handle(request, context)
        async for answer in handle(request, context):
            requests.begin_write()
            await context.write(answer)
            requests.end_write()
        return None

    return work


async def _end(context: Any, text: str) -> None:
    try:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)
    except grpc.aio.InternalError:
        # The caller does not read, so an answer still waits in the way of the status: the call can only be dropped. Of the port's
        # calls it stays one until its connection ends, because grpc.aio has nothing that resets a call. Any other
        # error would be a line in the log, as often as a stranger likes.
        raise asyncio.CancelledError from None


async def _only(requests: AsyncIterator[Any], context: Any) -> Any:
    """The one request of a unary call."""
    async for request in requests:
        return request
    return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, MALFORMED)


async def _refuse_metadata(requests: AsyncIterator[Any], context: Any) -> None:
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MUCH_METADATA)


REFUSES_METADATA: Final = grpc.stream_stream_rpc_method_handler(_refuse_metadata)
