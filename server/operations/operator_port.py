"""The operator port: its address and token in a file, health, reflection, and the operator service.

`operator.json`, in the store's folder, holds the address, that of the dashboard, and a token that every start draws anew: an old
file, left by a process that was killed, opens nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fedrho.protos import codec
from fedrho.server.interceptors import SMALL_SECONDS, Cap, CapInterceptor
from fedrho.server.listen import ExposedAddress, ServerTls, bind, check_exposure
from fedrho.server.operations import operator_wire as wire
from fedrho.server.operations.operator import HEALTH, LinkOf, Operable, OperatorService, TokenInterceptor
from fedrho.server.operations.watching import RunWatch
from fedrho.server.ports import OperatorPort

OPERATOR_FILE: Final = "operator.json"
TOKEN_BYTES: Final = 32
SERVICES: Final = ("", codec.SERVICE, wire.SERVICE)
"""Whose health is told; the empty name is all of it."""

log = structlog.get_logger("fedrho.operator")


@dataclass(frozen=True)
class OperatorAccess:
    """What an operator needs to get in."""

    address: str
    token: str = field(repr=False)
    tls: bool = False
    dashboard: str | None = None
    """Where a browser is let in with the same token; None where it is not."""


@dataclass(frozen=True)
class OperatorPlace:
    """Where operators are let in. `file` is told the address and the token; without TLS only this machine is let in."""

    file: Path
    host: str = "127.0.0.1"
    port: int = 0
    tls: ServerTls | None = None


class OperatorServer:
    """Bound when it is made, so that a busy port is known before anything else happens."""

    def __init__(
        self, place: OperatorPlace, interceptors: Sequence[grpc.aio.ServerInterceptor] = (), dashboard: str | None = None
    ) -> None:
        """Needs a running event loop. `interceptors` come first; `dashboard` is announced. Raises PortBusy, or ExposedAddress."""
        if place.tls is None:
            _check_loopback(place.host)
        self.token = os.urandom(TOKEN_BYTES).hex()
        self._place, self._dashboard = place, dashboard
        self._server = OperatorPort().server([*interceptors, TokenInterceptor(self.token), _caps()])
        self.address = bind(self._server, place.host, place.port, place.tls)

    @asynccontextmanager
    async def serving(self, runs: Operable, watch: RunWatch, stop: asyncio.Event, link_of: LinkOf) -> AsyncIterator[None]:
        """Healthy until `stop` is set, and served until the end of the block."""
        health_service = health.aio.HealthServicer()
        self._add(health_service, OperatorService(runs, watch, link_of, stop))
        for service in SERVICES:
            await health_service.set(service, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        unhealthy = asyncio.create_task(_until(stop, health_service))
        try:
            access = OperatorAccess(self.address, self.token, self._place.tls is not None, self._dashboard)
            _announce(self._place.file, access)
            log.info("listening", port="operator", listening=self.address)
            yield
        finally:
            unhealthy.cancel()
            await health_service.enter_graceful_shutdown()
            self._place.file.unlink(missing_ok=True)
            await self._server.stop(grace=0.5)

    def _add(self, health_service: Any, service: OperatorService) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(health_service, self._server)
        self._server.add_generic_rpc_handlers((service.handlers(),))
        reflection.enable_server_reflection((wire.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)


async def _until(stop: asyncio.Event, health_service: Any) -> None:
    await stop.wait()
    await health_service.enter_graceful_shutdown()


def _caps() -> CapInterceptor:
    day = OperatorPort().age_seconds
    caps = {
        wire.path("WatchRuns"): Cap(day, 16),
        wire.path("ExportModel"): Cap(600.0, 4),
        f"{HEALTH}Watch": Cap(day, 16),
    }
    return CapInterceptor(caps, Cap(SMALL_SECONDS, 16))


def _check_loopback(host: str) -> None:
    try:
        check_exposure(host, insecure=False)
    except ExposedAddress:
        raise ExposedAddress(
            f"{host} can be reached from other machines; an operator port there needs certificates, which `fedrho keys` makes"
        ) from None


# -- operator.json ---------------------------------------------------------------------------------------------------------------


def _announce(file: Path, access: OperatorAccess) -> None:
    """Never readable by others, not even for an instant, and never half-written."""
    path = file.with_name(f".{file.name}.{os.urandom(4).hex()}")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        json.dump({**asdict(access), "pid": os.getpid()}, opened)
    path.replace(file)


def read_access(file: Path) -> OperatorAccess | None:
    """What a server has announced in its `operator.json`; None where there is none, or nothing that can be read."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        known = json.loads(file.read_text(encoding="utf-8"))
        dashboard = known.get("dashboard")
        return OperatorAccess(
            str(known["address"]), str(known["token"]), bool(known["tls"]), None if dashboard is None else str(dashboard)
        )
    return None
