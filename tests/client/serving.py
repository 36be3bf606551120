"""A real gRPC server on a free port of this machine."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import grpc

from fedrho.client.transport import GrpcWire
from fedrho.protos import codec
from fedrho.server.engine import Engine
from fedrho.server.guard import device_handlers
from fedrho.server.service import OPTIONS, DeviceService
from fedrho.server.uploads import UploadService


@asynccontextmanager
async def listening(handlers: grpc.GenericRpcHandler) -> AsyncIterator[str]:
    """The address of a server with these handlers."""
    server = grpc.aio.server(options=OPTIONS)
    port = server.add_insecure_port("127.0.0.1:0")
    server.add_generic_rpc_handlers((handlers,))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(grace=None)


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[str]:
    """The address of the real device service, with its rounds running."""
    service = DeviceService(engine.population, time.monotonic, lambda _: None)
    uploads = UploadService(engine.shard, time.monotonic)
    async with listening(device_handlers(service.methods(), uploads.methods())) as address:
        rounds = asyncio.create_task(service.run_rounds(asyncio.Event()))
        try:
            yield address
        finally:
            rounds.cancel()
            with suppress(asyncio.CancelledError):
                await rounds


@asynccontextmanager
async def wired(address: str) -> AsyncIterator[GrpcWire]:
    wire = GrpcWire(address)
    try:
        yield wire
    finally:
        await wire.close()


@contextmanager
def dead_port(listen: bool = False) -> Iterator[str]:
    """An address where nobody listens; or where connections are taken and never answered."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if listen:
            taken.listen()
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def answering(**methods: Callable[[bytes, Any], Any]) -> grpc.GenericRpcHandler:
    """A service of a few methods: coroutines answer once, asynchronous generators with a stream."""
    made = {
        name: grpc.unary_stream_rpc_method_handler(method)
        if name == "GetArtifact"
        else grpc.unary_unary_rpc_method_handler(method)
        for name, method in methods.items()
    }
    return grpc.method_handlers_generic_handler(codec.SERVICE, made)
