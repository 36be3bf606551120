"""The process: bind, serve until the run has ended or someone says stop, and leave the store whole."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.vectors import FloatVector
from fedrho.protos.messages import ID_BYTES
from fedrho.server.chain import check
from fedrho.server.coordinator import Coordinator, Surroundings, open_run
from fedrho.server.service import OPTIONS, DeviceService
from fedrho.server.store import SqliteStore, read_history
from fedrho.server.tasks import Task

ADDRESS = "server.json"


class PortBusy(OSError):
    """The address cannot be bound."""


class ExposedAddress(ValueError):
    """An address other machines can reach, without encryption."""


@dataclass(frozen=True)
class ServerTls:
    """What the server shows to devices, in PEM; with `root`, only devices with a certificate from that authority are let in."""

    certificate: bytes
    key: bytes = field(repr=False)
    root: bytes | None = None

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)], root_certificates=self.root, require_client_auth=self.root is not None
        )


Report = Callable[[Coordinator], None]


@dataclass(frozen=True)
class Listener:
    """What the process tells its surroundings as it goes."""

    listening: Callable[[str, Coordinator], None]
    released: Report


async def serve(task: Task, folder: Path, host: str, port: int, listener: Listener, tls: ServerTls | None = None) -> Coordinator:
    """Runs until every step is released, or until SIGINT or SIGTERM; either way the folder can be continued.

    Raises PortBusy before anything is written, what `SqliteStore` and `open_run` raise, and HistoryBroken. An error in a release
    stops the server: it never goes on from a state that it is not sure of.
    """
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=4096)
    address = _bind(server, host, port, tls)
    stop = _stop_on_signals()
    try:
        with SqliteStore(folder) as store, _announced(folder, address):
            return await _run(
                task, store, server, stop, lambda coordinator: listener.listening(address, coordinator), listener.released
            )
    finally:
        await server.stop(grace=1.0)


async def _run(
    task: Task, store: SqliteStore, server: grpc.aio.Server, stop: asyncio.Event, listening: Report, released: Report
) -> Coordinator:
    clock = steady_clock()
    around = Surroundings(SystemNoise(), store, lambda: os.urandom(ID_BYTES))
    coordinator = open_run(task, around, lambda: initial_weights(task), clock())
    check(read_history(store.folder), task)
    service = DeviceService(coordinator, clock, released)
    server.add_generic_rpc_handlers((service.handlers(),))
    await server.start()
    listening(coordinator)
    await service.run_rounds(stop)
    if coordinator.finished and not stop.is_set():
        await _say_goodbye(task, stop)
    return coordinator


@contextmanager
def _announced(folder: Path, address: str) -> Iterator[None]:
    """Says in the folder where the server listens, for as long as it does."""
    path = folder / ADDRESS
    path.write_text(json.dumps({"address": address, "pid": os.getpid()}))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def steady_clock() -> Callable[[], float]:
    """Seconds since 1970 as they were at the start, and from then on unmoved by whoever sets the system's clock."""
    started = time.time() - time.monotonic()
    return lambda: started + time.monotonic()


def read_address(folder: Path) -> tuple[str, int] | None:
    """Address and process of the server that uses `folder`, if it said so."""
    with suppress(OSError, ValueError, KeyError):
        known = json.loads((folder / ADDRESS).read_text())
        return str(known["address"]), int(known["pid"])
    return None


def initial_weights(task: Task) -> FloatVector:
    """The untrained weights of the task's model; builds it, which needs TensorFlow."""
    from fedrho.models.flat import FlatModel
    from fedrho.models.zoo import lookup

    return FlatModel(lookup(task.file.model)).weights()


def check_exposure(host: str, insecure: bool) -> None:
    """For a server without TLS: raises ExposedAddress for anything but loopback, unless its owner insists."""
    with suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host != "localhost" and not insecure:
        raise ExposedAddress(
            f"{host} can be reached from other machines and the connection is not encrypted; add --tls FOLDER, which "
            "`fedrho keys FOLDER` makes, or --insecure if you mean it"
        )


def _bind(server: grpc.aio.Server, host: str, port: int, tls: ServerTls | None) -> str:
    shown = f"[{host}]" if ":" in host else host
    asked = f"{shown}:{port}"
    try:
        bound = server.add_secure_port(asked, tls.credentials()) if tls else server.add_insecure_port(asked)
    except RuntimeError as error:
        raise PortBusy(
            f"cannot listen on {shown}:{port}: the port is in use (--port 0 takes a free one), or the address is not ours"
        ) from error
    return f"{shown}:{bound}"


def _stop_on_signals() -> asyncio.Event:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _say_goodbye(task: Task, stop: asyncio.Event) -> None:
    """Stays long enough for every waiting device to hear that the run has ended."""
    with suppress(TimeoutError):
        async with asyncio.timeout(min(2.0 * task.file.round.retry_seconds[1] + 1.0, 60.0)):
            await stop.wait()
