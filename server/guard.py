"""What stands around every handler: errors as fixed texts, so that nothing of a request goes back or into a log."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import structlog

from fedrho.protos import codec

Handler = Callable[[Any, Any], Awaitable[bytes]]

log = structlog.get_logger("fedrho.server")


def guarded(handle: Handler) -> Handler:
    """`handle`, with its errors as gRPC statuses; the text of an exception is never sent and never logged."""

    async def guard(request: Any, context: Any) -> bytes:
        try:
            return await handle(request, context)
        except codec.MalformedMessage:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "malformed message")
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.error("internal error", kind=type(error).__name__)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")
        raise AssertionError("abort raises")

    return guard


def device_handlers(*methods: Mapping[str, grpc.RpcMethodHandler]) -> grpc.GenericRpcHandler:
    """One handler of the device service that answers all of `methods`."""
    merged = {name: handler for group in methods for name, handler in group.items()}
    return grpc.method_handlers_generic_handler(codec.SERVICE, merged)
