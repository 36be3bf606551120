"""The private channel between a coordinator and a shard process, both ends of it; the only file that knows `shard_pb2`.

Neither end trusts the other's bytes: what a shard cannot use is refused with a fixed text, and a shard that answers nonsense
counts as lost. A shard that freezes is lost after about AWAY_SECONDS + CALL_SECONDS, and holds up no other shard until then.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError

from fedrho.privacy.vectors import Grid, pack, unpack
from fedrho.protos import shard_pb2 as pb
from fedrho.protos.codec import MalformedMessage
from fedrho.protos.messages import ID_BYTES, SessionStatus
from fedrho.server.guard import guarded
from fedrho.server.intake import AttemptId, Change, Order, Part
from fedrho.server.shard import Shard, ShardLost

SERVICE: Final = "fedrho.shard.v1.ShardService"
PIECE_BYTES: Final = 1024 * 1024
MAX_MESSAGE: Final = 64 * 1024 * 1024
OPTIONS: Final = [("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.max_send_message_length", MAX_MESSAGE)]
POLL_SECONDS: Final = 0.05
CALL_SECONDS: Final = 10.0
"""For an answer, and for each piece of a part."""

SEAL_SECONDS: Final = 120.0
"""After so long a part that broke off on its way is not asked for again."""

AWAY_SECONDS: Final = 5.0
"""A shard that gives no answer counts as lost, with all that it holds, at the first call that fails after so long a silence."""

ORPHANED_SECONDS: Final = 60.0
"""An attempt that no coordinator has asked about for so long is dropped by its shard."""

KEY_BYTES: Final = 2 * ID_BYTES
MOST_COORDINATES: Final = 2**31
MOST_UPLOADS: Final = 2**39
"""A sum of fewer uploads cannot overflow, see `RunningSum`."""

SUM_BYTES: Final = 8 + 4 + 8
"""Memory for a coordinate: the sum, the lane before it, and the copy that is sent."""

log = structlog.get_logger("fedrho.shard")


# -- the shard's end -------------------------------------------------------------------------------------------------------------


class ShardService:
    """What a coordinator may ask of a shard."""

    def __init__(self, shard: Shard, address: str, clock: Callable[[], float]) -> None:
        """`clock` is the one that the shard's devices are told by."""
        self._shard = shard
        self._clock = clock
        self._address = address
        self._incarnation = os.urandom(ID_BYTES)
        self._asked_at: dict[bytes, float] = {}

    def handlers(self) -> grpc.GenericRpcHandler:
        """Over raw bytes: gRPC would answer malformed ones with the text of an exception."""
        methods = {
            "Hello": self._unary(self._hello, pb.HelloRequest),
            "OpenRound": self._unary(self._open, pb.OpenRoundRequest),
            "GrantQuota": self._unary(self._grant, pb.GrantQuotaRequest),
            "GetProgress": self._unary(self._progress, pb.GetProgressRequest),
            "SealRound": grpc.unary_stream_rpc_method_handler(self._seal),
            "DropRound": self._unary(self._drop, pb.DropRoundRequest),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def watch(self, stop: asyncio.Event) -> None:
        """Drops the attempts that no coordinator asks about any more; returns when `stop` is set."""
        while not stop.is_set():
            now = time.monotonic()
            for run in [run for run, asked_at in self._asked_at.items() if now - asked_at > ORPHANED_SECONDS]:
                self._shard.orphan(run)
                del self._asked_at[run]
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1.0)

    def _unary(self, handle: Callable[[Any], Any], kind: Any) -> grpc.RpcMethodHandler:
        async def checked(data: bytes, context: Any) -> bytes:
            request = _parsed(kind, data)
            await self._check(request, context)
            try:
                return _serialize(handle(request))
            except ShardLost:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such attempt here")
            except MemoryError:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too little memory")
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(guarded(checked))

    async def _check(self, request: Any, context: Any) -> None:
        if not isinstance(request, pb.HelloRequest) and request.incarnation != self._incarnation:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another incarnation")

    def _hello(self, request: pb.HelloRequest) -> pb.HelloResponse:
        return pb.HelloResponse(incarnation=self._incarnation, address=self._address)

    def _open(self, request: pb.OpenRoundRequest) -> pb.OpenRoundResponse:
        order = _order(request)
        if order.size * SUM_BYTES > _memory_here():  # the system would grant it, and kill us once it is used
            raise MemoryError("the sum does not fit")
        self._shard.open(order)
        self._asked_at[order.attempt.run] = time.monotonic()
        return pb.OpenRoundResponse()

    def _grant(self, request: pb.GrantQuotaRequest) -> pb.GrantQuotaResponse:
        self._shard.intake(_attempt(request)).grant(_quota(request))
        return pb.GrantQuotaResponse()

    def _progress(self, request: pb.GetProgressRequest) -> pb.GetProgressResponse:
        attempt = _attempt(request)
        intake = self._shard.intake(attempt)
        self._asked_at[attempt.run] = time.monotonic()
        intake.lapse(self._clock())
        changes = intake.log[request.heard :]
        return pb.GetProgressResponse(
            sessions=b"".join(session for session, _ in changes), statuses=bytes(status.value for _, status in changes)
        )

    def _drop(self, request: pb.DropRoundRequest) -> pb.DropRoundResponse:
        self._shard.intake(_attempt(request)).drop()
        return pb.DropRoundResponse()

    async def _seal(self, data: bytes, context: Any) -> AsyncIterator[bytes]:
        part = await self._sealed(data, context)
        yield _serialize(pb.SealRoundPart(counted=b"".join(part.counted)))
        packed = pack(part.total)
        for start in range(0, len(packed), PIECE_BYTES):
            yield _serialize(pb.SealRoundPart(sum=packed[start : start + PIECE_BYTES]))

    async def _sealed(self, data: bytes, context: Any) -> Part:
        try:
            request = _parsed(pb.SealRoundRequest, data)
            await self._check(request, context)
            attempt = _attempt(request)
            self._asked_at[attempt.run] = time.monotonic()
            return self._shard.intake(attempt).seal()
        except MalformedMessage:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "malformed message")
        except (ShardLost, ValueError):  # or dropped
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such attempt here")
        raise AssertionError("abort raises")


def _serialize(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def _parsed(kind: Any, data: bytes) -> Any:
    """Raises MalformedMessage."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise MalformedMessage(f"not a {kind.__name__}") from error


def _attempt(request: Any) -> AttemptId:
    """Raises MalformedMessage where it is not whole."""
    attempt = request.attempt
    if len(attempt.run) != ID_BYTES or len(attempt.opened) != ID_BYTES:
        raise MalformedMessage("no attempt is named")
    return AttemptId(attempt.run, attempt.step, attempt.attempt, attempt.opened)


def _quota(request: Any) -> int:
    if request.quota >= MOST_UPLOADS:
        raise MalformedMessage("a sum of so many could overflow")
    return int(request.quota)


def _order(request: pb.OpenRoundRequest) -> Order:
    """Raises MalformedMessage for what cannot be collected."""
    if len(request.key) != KEY_BYTES or not 1 <= request.size <= MOST_COORDINATES:
        raise MalformedMessage("no such order")
    if not all(math.isfinite(seconds) and seconds > 0 for seconds in (request.lease_seconds, request.wait_seconds)):
        raise MalformedMessage("not a time")
    try:
        grid = Grid(request.clip_norm, request.grid_bits)
    except ValueError as error:
        raise MalformedMessage("no such grid") from error
    return Order(
        attempt=_attempt(request),
        key=request.key,
        size=request.size,
        grid=grid,
        quota=_quota(request),
        lease_seconds=request.lease_seconds,
        wait_seconds=request.wait_seconds,
    )


def _memory_here() -> int:
    """Bytes that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# -- the coordinator's end -------------------------------------------------------------------------------------------------------


@dataclass
class Remote:
    """An attempt on its way at a shard: what was asked for, and what has come back.

    `asked_at` is when its part was first asked for, `arrived_at` when a piece of it last came.
    """

    order: Order
    opened: bool = False
    quota: int = 0
    granted: int = 0
    heard: int = 0
    changes: list[Change] = field(default_factory=list)
    sealing: bool = False
    fetching: asyncio.Task[Part] | None = None
    asked_at: float = 0.0
    arrived_at: float = 0.0
    part: Part | None = None

    def stop_fetching(self) -> None:
        if self.fetching is not None:
            self.fetching.cancel()


class RemoteShard:
    """`ShardLink` to a shard process. `run` talks to it; the other methods ask for something, or tell what has come back."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None = None, name: str = "") -> None:
        """`target` is where the shard hears its coordinator: HOST:PORT, or unix:PATH; `name` is what its certificate must say."""
        self.address = ""
        self._target = target
        self._credentials = credentials
        self._options = [*OPTIONS, ("grpc.ssl_target_name_override", name)] if name else OPTIONS
        self._incarnation = b""
        self._before = b""
        self._answered_at = -AWAY_SECONDS
        self._shunned_until = -math.inf
        self._refused: set[bytes] = set()
        self._rounds: dict[AttemptId, Remote] = {}
        self._dropped: dict[AttemptId, None] = {}
        self._wake = asyncio.Event()

    @property
    def alive(self) -> bool:
        return bool(self._incarnation)

    def ready(self, attempt: AttemptId) -> bool:
        remote = self._rounds.get(attempt)
        return remote is not None and remote.opened

    def open(self, order: Order) -> None:
        self._dropped.pop(order.attempt, None)  # opened with another key, it is dropped anyway, and must not be after that
        self._rounds[order.attempt] = Remote(order, quota=order.quota, granted=order.quota)
        self._wake.set()

    def grant(self, attempt: AttemptId, quota: int) -> None:
        self._remote(attempt).quota = quota
        self._wake.set()

    def changes(self, attempt: AttemptId, now: float) -> Sequence[Change]:
        remote = self._remote(attempt)
        changes, remote.changes = remote.changes, []
        return changes

    def seal(self, attempt: AttemptId) -> Part | None:
        remote = self._remote(attempt)
        if not remote.sealing:
            remote.sealing = True
            self._wake.set()
        return remote.part

    def drop(self, attempt: AttemptId) -> None:
        remote = self._rounds.pop(attempt, None)
        if remote is not None:
            remote.stop_fetching()
            self._dropped[attempt] = None
            self._wake.set()

    def _remote(self, attempt: AttemptId) -> Remote:
        remote = self._rounds.get(attempt)
        if remote is None:
            raise ShardLost(f"the shard at {self._target} is gone, with its part of the attempt")
        return remote

    async def run(self, stop: asyncio.Event) -> None:
        """Talks to the shard until `stop` is set; nothing that the shard does ends it."""
        connect = grpc.aio.secure_channel if self._credentials else grpc.aio.insecure_channel
        arguments = [self._target, self._credentials] if self._credentials else [self._target]
        async with connect(*arguments, options=self._options) as channel:
            while not stop.is_set():
                await self._talk(channel)
                self._wake.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), POLL_SECONDS)
            for remote in self._rounds.values():
                remote.stop_fetching()

    async def _talk(self, channel: grpc.aio.Channel) -> None:
        if time.monotonic() < self._shunned_until:
            return
        try:
            await self._say_all(channel)
            self._answered_at = time.monotonic()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION or time.monotonic() - self._answered_at > AWAY_SECONDS:
                self._lose()
        except Exception as error:  # whatever it is: every run waits for this task
            log.error("a shard answers nonsense", shard=self._target, kind=type(error).__name__)
            self._shunned_until = time.monotonic() + AWAY_SECONDS
            self._lose()

    async def _say_all(self, channel: grpc.aio.Channel) -> None:
        if not self._incarnation:
            await self._greet(channel)
        for attempt in list(self._dropped):
            await self._forget(channel, attempt)
            self._dropped.pop(attempt, None)
        attending = (self._attend(channel, remote) for remote in list(self._rounds.values()))
        for outcome in await asyncio.gather(*attending, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    def _lose(self) -> None:
        """What it holds is given up, and dropped there should it come back."""
        if self._incarnation:
            log.warning("a shard is gone", shard=self._target)
        self._before, self._incarnation = self._incarnation or self._before, b""
        for attempt in list(self._rounds):
            self.drop(attempt)

    async def _greet(self, channel: grpc.aio.Channel) -> None:
        hello = await _call(channel, "Hello", pb.HelloRequest(), pb.HelloResponse)
        if len(hello.incarnation) != ID_BYTES:
            raise ValueError("no incarnation")
        if hello.incarnation != self._before:  # it has nothing left to drop
            self._dropped.clear()
        self._incarnation, self.address = hello.incarnation, hello.address
        self._answered_at = time.monotonic()
        log.info("a shard is there", shard=self._target)

    async def _forget(self, channel: grpc.aio.Channel, attempt: AttemptId) -> None:
        with suppress(ShardLost):
            await _about_one(_call(channel, "DropRound", self._about(pb.DropRoundRequest(), attempt), pb.DropRoundResponse))

    async def _attend(self, channel: grpc.aio.Channel, remote: Remote) -> None:
        """One attempt's share of a talk; gives the attempt up where the shard does not have it, or will not."""
        try:
            await _about_one(self._ask(channel, remote))
        except ShardLost:
            if self._is_current(remote):
                self.drop(remote.order.attempt)

    def _is_current(self, remote: Remote) -> bool:
        """Whether it has not been dropped, or opened anew, while the shard was asked."""
        return self._rounds.get(remote.order.attempt) is remote

    async def _ask(self, channel: grpc.aio.Channel, remote: Remote) -> None:
        if not remote.opened:
            await self._open_there(channel, remote)
        if remote.quota > remote.granted:
            quota = remote.quota
            request = self._about(pb.GrantQuotaRequest(quota=quota), remote.order.attempt)
            await _call(channel, "GrantQuota", request, pb.GrantQuotaResponse)
            remote.granted = quota
        if remote.part is None:  # while it seals too: silence is how a shard that froze is found out
            await self._listen(channel, remote)
        if remote.sealing and remote.part is None and self._is_current(remote):
            await self._collect(channel, remote)

    async def _open_there(self, channel: grpc.aio.Channel, remote: Remote) -> None:
        try:
            await _call(channel, "OpenRound", self._opening(remote.order), pb.OpenRoundResponse)
        except grpc.aio.AioRpcError as error:
            run = remote.order.attempt.run
            if error.code() in REFUSALS and run not in self._refused:  # once: it is asked for again and again
                self._refused.add(run)
                log.error("a shard refuses a run", shard=self._target, run=run.hex(), code=error.code().name)
            raise
        remote.opened = True

    async def _listen(self, channel: grpc.aio.Channel, remote: Remote) -> None:
        request = self._about(pb.GetProgressRequest(heard=remote.heard), remote.order.attempt)
        news = await _call(channel, "GetProgress", request, pb.GetProgressResponse)
        remote.changes += zip(_split(news.sessions), map(SessionStatus, news.statuses), strict=True)
        remote.heard += len(news.statuses)

    async def _collect(self, channel: grpc.aio.Channel, remote: Remote) -> None:
        """Starts to fetch the part, or takes it once it is here: a large one holds up no other attempt."""
        if remote.fetching is None:
            remote.arrived_at = time.monotonic()
            remote.asked_at = remote.asked_at or remote.arrived_at
            remote.fetching = asyncio.create_task(self._fetch(channel, remote))
            remote.fetching.add_done_callback(self._fetched)
        elif remote.fetching.done():
            fetched, remote.fetching = remote.fetching, None
            try:
                remote.part = fetched.result()
            except (TimeoutError, grpc.aio.AioRpcError) as error:
                if not _worth_another_try(remote, error):
                    raise ShardLost("the part does not arrive") from error

    def _fetched(self, task: asyncio.Task[Part]) -> None:
        if not task.cancelled():
            task.exception()  # looked at here too: of an attempt that was dropped meanwhile, nobody else would
        self._wake.set()

    async def _fetch(self, channel: grpc.aio.Channel, remote: Remote) -> Part:
        order = remote.order
        call = channel.unary_stream(f"/{SERVICE}/SealRound", request_serializer=_serialize)(
            self._about(pb.SealRoundRequest(), order.attempt)
        )
        counted, data = bytearray(), bytearray()
        try:
            while (piece := await _next_piece(call)) is not None:
                remote.arrived_at = time.monotonic()
                counted += piece.counted
                data += piece.sum
                if len(data) > order.size * 8 or len(counted) > remote.quota * ID_BYTES:
                    raise ValueError("more than was asked for")
            return Part(_unique(_split(bytes(counted))), unpack(data, order.size, order.grid))
        finally:
            call.cancel()
            data[:] = bytes(len(data))

    def _opening(self, order: Order) -> Any:
        return self._about(
            pb.OpenRoundRequest(
                key=order.key,
                size=order.size,
                clip_norm=order.grid.clip_norm,
                grid_bits=order.grid.bits,
                quota=order.quota,
                lease_seconds=order.lease_seconds,
                wait_seconds=order.wait_seconds,
            ),
            order.attempt,
        )

    def _about(self, request: Any, attempt: AttemptId) -> Any:
        request.incarnation = self._incarnation
        request.attempt.run, request.attempt.step = attempt.run, attempt.step
        request.attempt.attempt, request.attempt.opened = attempt.attempt, attempt.opened
        return request


REFUSALS: Final = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)


async def _call(channel: grpc.aio.Channel, method: str, request: Any, response: Any) -> Any:
    """Parses the answer itself: gRPC would log a traceback, and go on with None."""
    call = channel.unary_unary(f"/{SERVICE}/{method}", request_serializer=_serialize)
    return response.FromString(await call(request, timeout=CALL_SECONDS))


async def _about_one(call: Awaitable[None]) -> None:
    """Raises ShardLost where the shard does not have the attempt that the call is about, or refuses it."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND or error.code() in REFUSALS:
            raise ShardLost("the shard does not have the attempt") from error
        raise


async def _next_piece(call: Any) -> pb.SealRoundPart | None:
    """None at the end; raises TimeoutError when none comes."""
    async with asyncio.timeout(CALL_SECONDS):
        data = await call.read()
    return None if data is grpc.aio.EOF else pb.SealRoundPart.FromString(data)


def _worth_another_try(remote: Remote, error: Exception) -> bool:
    """Of a part that broke off: the shard may still have it."""
    gone = isinstance(error, grpc.aio.AioRpcError) and error.code() is not grpc.StatusCode.UNAVAILABLE
    now = time.monotonic()
    return not gone and now - remote.arrived_at <= AWAY_SECONDS and now - remote.asked_at <= SEAL_SECONDS


def _split(joined: bytes) -> list[bytes]:
    """Raises ValueError where the last one is not whole."""
    if len(joined) % ID_BYTES:
        raise ValueError("not whole identifiers")
    return [joined[start : start + ID_BYTES] for start in range(0, len(joined), ID_BYTES)]


def _unique(sessions: Sequence[bytes]) -> tuple[bytes, ...]:
    if len(set(sessions)) != len(sessions):
        raise ValueError("a session was counted twice")
    return tuple(sessions)
