"""Where a process listens: addresses, names, certificates, and the two signals that end it; and a clock that nobody sets."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import grpc

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
"""What a browser on this machine, or at the other end of a tunnel, calls it."""


class PortBusy(OSError):
    """The address cannot be bound."""


class ExposedAddress(ValueError):
    """An address other machines can reach, without encryption."""


@dataclass(frozen=True)
class ServerTls:
    """What a port shows, in PEM; with `root`, only clients with a certificate from that authority are let in."""

    certificate: bytes
    key: bytes = field(repr=False)
    root: bytes | None = None

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)], root_certificates=self.root, require_client_auth=self.root is not None
        )


def bind(server: grpc.aio.Server, host: str, port: int, tls: ServerTls | None) -> str:
    """HOST:PORT as bound; port 0 takes a free one. Raises PortBusy."""
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{bind_target(server, f'{shown}:{port}', tls)}"


def bind_target(server: grpc.aio.Server, target: str, tls: ServerTls | None) -> int:
    """The port bound, for HOST:PORT or unix:PATH; raises PortBusy."""
    try:
        return int(server.add_secure_port(target, tls.credentials()) if tls else server.add_insecure_port(target))
    except RuntimeError as error:
        raise PortBusy(
            f"cannot listen on {target}: the port is in use (--port 0 takes a free one), or the address is not ours"
        ) from error


def check_exposure(host: str, insecure: bool) -> None:
    """For a port without TLS: raises ExposedAddress for anything but loopback, unless its owner insists."""
    if host != "localhost" and not is_loopback(host) and not insecure:
        raise ExposedAddress(
            f"{host} can be reached from other machines and the connection is not encrypted; add --tls FOLDER, which "
            "`fedrho keys FOLDER` makes, or --insecure if you mean it"
        )


def is_loopback(address: str) -> bool:
    """Of an address as numbers; no name is."""
    with suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return False


def asked_host(header: str) -> str:
    """The name in a request's Host header, in lower case and without the port; empty where it is malformed."""
    text = header.lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    name, _, port = text.partition(":")
    return name if not port or port.isdigit() else ""


def stop_on_signals() -> asyncio.Event:
    """Set by SIGINT or SIGTERM."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop


def steady_clock() -> Callable[[], float]:
    """Seconds since 1970 as they were at the start, and from then on unmoved by whoever sets the system's clock."""
    started = time.time() - time.monotonic()
    return lambda: started + time.monotonic()
