"""A shard's process: devices upload at one port, the coordinator asks at another, and nothing is ever written down."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc

from fedrho.server.allocator import keep_freed_memory
from fedrho.server.guard import device_handlers
from fedrho.server.listen import PortBusy, ServerTls, bind, bind_target, steady_clock, stop_on_signals
from fedrho.server.operations.metrics import Metrics, device_metrics, metrics_port
from fedrho.server.operations.observer import Observer, Observers
from fedrho.server.ports import DEFAULT_CONNECTIONS, DevicePort, device_server
from fedrho.server.shard import DEFAULT_MEMORY, Shard
from fedrho.server.shard_wire import OPTIONS, ShardService
from fedrho.server.uploads import UploadService

UPLOAD_SECONDS: Final = 3600.0
"""An upload may take as long as a lease, but a shard does not know any before its first order. A lease that ends is heeded."""


@dataclass(frozen=True)
class ShardPlace:
    """Where a shard listens: for devices at `host` and `port`, for its coordinator at `control`, HOST:PORT or unix:PATH.

    `announce` is where devices reach it; without, it is the port on the host at which they checked in. `memory` is in bytes;
    `metrics` is where they are published, `observer` is told beside them.
    """

    host: str
    port: int
    control: str
    announce: str | None = None
    memory: int = DEFAULT_MEMORY
    tls: ServerTls | None = None
    control_tls: ServerTls | None = None
    connections: int = DEFAULT_CONNECTIONS
    metrics: tuple[str, int] | None = None
    observer: Observer = field(default_factory=Observer)


async def run_shard(
    place: ShardPlace, listening: Callable[[str], None], publishing: Callable[[str], None] = lambda address: None
) -> None:
    """Until SIGINT or SIGTERM; raises PortBusy. What it holds goes with it.

    Says where it listens, and where it publishes metrics if it does.
    """
    keep_freed_memory()
    stop, shard, metrics = stop_on_signals(), Shard(place.memory), Metrics()
    outer = device_metrics(metrics, place.observer)
    devices = device_server(UPLOAD_SECONDS, outer, port=DevicePort(connections=place.connections))
    control = grpc.aio.server(options=[("grpc.so_reuseport", 0), *OPTIONS])
    address = bind(devices, place.host, place.port, place.tls)
    socket_there = _bind_control(control, place)
    clock = steady_clock()
    service = ShardService(shard, place.announce or f":{address.rpartition(':')[2]}", clock)
    uploads = UploadService(shard, clock, Observers([metrics, place.observer]))
    devices.add_generic_rpc_handlers((device_handlers(uploads.methods()),))
    control.add_generic_rpc_handlers((service.handlers(),))
    published = metrics_port(metrics, *place.metrics) if place.metrics else nullcontext()
    try:
        await devices.start()
        await control.start()
        with published as metrics_at:
            listening(address)
            if metrics_at is not None:
                publishing(metrics_at)
            await service.watch(stop)
    finally:
        shard.drop_all()
        await asyncio.gather(devices.stop(grace=1.0), control.stop(grace=1.0))
        _remove_socket(place.control, socket_there)


def _bind_control(server: grpc.aio.Server, place: ShardPlace) -> tuple[int, int] | None:
    """Raises PortBusy; for a unix socket, which nobody but our user may open, returns which file it is."""
    path = _socket_path(place.control)
    if path is None:
        bind_target(server, place.control, place.control_tls)
        return None
    _clear(path)
    mask = os.umask(0o177)  # from its first moment on
    try:
        bind_target(server, place.control, place.control_tls)
    finally:
        os.umask(mask)
    return _file_at(path)


def _socket_path(control: str) -> Path | None:
    return Path(control.removeprefix("unix:")) if control.startswith("unix:") else None


def _clear(path: Path) -> None:
    """Removes the socket of a shard that was killed; raises PortBusy for anything else."""
    if not path.exists():
        return
    if not path.is_socket():
        raise PortBusy(f"cannot listen on unix:{path}: there is something else, and it is not removed")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return path.unlink(missing_ok=True)
        except OSError as error:
            raise PortBusy(f"cannot listen on unix:{path}: {error.strerror or 'it does not answer'}") from error
    raise PortBusy(f"cannot listen on unix:{path}: another process listens there")


def _file_at(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = path.lstat()
        return found.st_dev, found.st_ino
    return None


def _remove_socket(control: str, ours: tuple[int, int] | None) -> None:
    """Nothing but our own."""
    path = _socket_path(control)
    if path is not None and ours is not None and _file_at(path) == ours:
        path.unlink(missing_ok=True)
