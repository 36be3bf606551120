"""What operators may ask: list, watch, pause, resume, cancel, export. gRPC in front of the runs, with fixed texts for errors."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol

import grpc
import structlog

from fedrho.privacy.statement import PrivacyStatement
from fedrho.privacy.vectors import FloatVector
from fedrho.protos.codec import MalformedMessage
from fedrho.server.guard import guarded
from fedrho.server.interceptors import MALFORMED
from fedrho.server.operations import operator_wire as wire
from fedrho.server.operations.exported import statement_json
from fedrho.server.operations.watching import RunWatch
from fedrho.server.population import RunView
from fedrho.server.release import RunState, StoreConflict

NO_SUCH_RUN: Final = "no such run is served here"
NO_TOKEN: Final = "operator token missing or wrong"
NOT_NOW: Final = "a step is being released at this moment; try again"
NOTHING_YET: Final = "no step has been released yet"
STOPPING: Final = "the server is stopping"
NEEDS: Final = {"PauseRun": (RunState.ACTIVE,), "ResumeRun": (RunState.PAUSED,), "CancelRun": (RunState.ACTIVE, RunState.PAUSED)}
"""The states from which a call leads anywhere."""

HEALTH: Final = "/grpc.health.v1.Health/"


class Operable(Protocol):
    """The runs as an operator sees them. A `Population` is one."""

    def views(self) -> tuple[RunView, ...]: ...
    def pause(self, run: bytes) -> None:
        """This and the next two raise KeyError for an unknown run, ValueError where the state forbids it."""
        ...

    def resume(self, run: bytes) -> None: ...
    def cancel(self, run: bytes) -> None: ...
    def model(self, run: bytes) -> tuple[int, FloatVector, PrivacyStatement]:
        """Step, weights and statement of the latest release."""
        ...

    def combined(self) -> PrivacyStatement: ...


log = structlog.get_logger("fedrho.operator")

Stream = Callable[[bytes, Any], AsyncIterator[bytes]]
LinkOf = Callable[[bytes, int], bytes]
"""The link of a run's chain at a step, which ties an export to its history; may read a database."""


class OperatorService:
    """Calls must not overlap those of the engine, so all of this runs on its event loop."""

    def __init__(self, runs: Operable, watch: RunWatch, link_of: LinkOf, stopping: asyncio.Event) -> None:
        self._runs = runs
        self._watch = watch
        self._link_of = link_of
        self._stopping = stopping

    def handlers(self) -> grpc.GenericRpcHandler:
        """Over raw bytes, so that parsing happens under our own error handling."""
        moves: dict[str, Callable[[bytes], None]] = {
            "PauseRun": self._runs.pause,
            "ResumeRun": self._runs.resume,
            "CancelRun": self._runs.cancel,
        }
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        methods = {
            "ListRuns": unary(guarded(self._list)),
            "WatchRuns": stream(_guarded_stream(self._follow)),
            "ExportModel": stream(_guarded_stream(self._export)),
            **{method: unary(guarded(self._mover(method, move))) for method, move in moves.items()},
        }
        return grpc.method_handlers_generic_handler(wire.SERVICE, methods)

    async def _list(self, request: bytes, context: Any) -> bytes:
        wire.decode_nothing(request)
        return wire.encode_listing(self._listing(self._runs.views()))

    def _mover(self, method: str, move: Callable[[bytes], None]) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def handle(request: bytes, context: Any) -> bytes:
            run = wire.decode_run(method, request)
            if self._stopping.is_set():
                await context.abort(grpc.StatusCode.UNAVAILABLE, STOPPING)
            view = await self._found(run, context)
            try:
                move(run)
            except ValueError:
                text = NOT_NOW if view.state in NEEDS[method] else f"the run is {view.state.value}"
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, text)
            except StoreConflict:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, NOT_NOW)
            await self._watch.look()
            return wire.DONE

        return handle

    async def _follow(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        wire.decode_nothing(request)
        async for views in self._watch.follow():
            yield wire.encode_watched(self._listing(views))
        await context.abort(grpc.StatusCode.UNAVAILABLE, STOPPING)

    async def _export(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        view = await self._found(wire.decode_run("ExportModel", request), context)
        step, weights, statement = self._runs.model(view.run)
        if step == 0:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, NOTHING_YET)
        data, digest = await asyncio.to_thread(_packed, weights)
        link = await asyncio.to_thread(self._link_of, view.run, step)
        text = await asyncio.to_thread(statement_json, view, step, statement, digest, link)  # seconds, if SciPy is not there yet
        yield wire.encode_part(wire.Header(int(weights.size), digest, text))
        for start in range(0, len(data), wire.CHUNK_BYTES):
            yield wire.encode_part(data[start : start + wire.CHUNK_BYTES])

    def _listing(self, views: tuple[RunView, ...]) -> wire.Listing:
        return wire.Listing(views, self._runs.combined() if views else None)

    async def _found(self, run: bytes, context: Any) -> RunView:
        for view in self._runs.views():
            if view.run == run:
                return view
        await context.abort(grpc.StatusCode.NOT_FOUND, NO_SUCH_RUN)
        raise AssertionError("abort raises")


def _packed(weights: FloatVector) -> tuple[bytes, bytes]:
    """The bytes of the wire, and their SHA-256."""
    data = weights.astype("<f4").tobytes()
    return data, hashlib.sha256(data).digest()


def _guarded_stream(handle: Stream) -> Stream:
    """`guarded`, for a handler that answers with a stream."""

    async def guard(request: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            async for part in handle(request, context):
                yield part
        except MalformedMessage:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, MALFORMED)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            log.error("internal error", kind=type(error).__name__)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")

    return guard


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc is not typed
    """Lets nobody in without the token, but whoever asks for health."""

    def __init__(self, token: str) -> None:
        self._wanted = wire.bearer(token)[0][1].encode()

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        if details.method.startswith(HEALTH) or self._shown(details.invocation_metadata):
            return await continuation(details)
        return grpc.stream_stream_rpc_method_handler(_refuse)

    def _shown(self, metadata: Any) -> bool:
        values = [value for name, value in metadata or () if name == wire.AUTHORIZATION]
        return len(values) == 1 and hmac.compare_digest(_bytes(values[0]), self._wanted)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


async def _refuse(requests: AsyncIterator[Any], context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, NO_TOKEN)
