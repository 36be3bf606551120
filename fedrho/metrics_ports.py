"""Where a server and its shards publish metrics: itself at the port that was asked for, its shards at those that follow."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from fedrho.console import BadInput

LAST_PORT = 65535


@dataclass(frozen=True)
class MetricsPorts:
    """`shards` has a port for each shard."""

    host: str
    port: int
    shards: tuple[int, ...] = ()

    def options(self, number: int) -> list[str]:
        """What a shard is told."""
        return ["--metrics-host", self.host, "--metrics-port", str(self.shards[number])]

    def said(self, address: str) -> str:
        """For whoever sets up a scrape; `address` is where the server publishes."""
        shards = f"; its shards at ports {', '.join(map(str, self.shards))}" if self.shards else ""
        return f"metrics: http://{address}/metrics{shards}"


def metrics_ports(host: str, port: int | None, shards: int, taken: Sequence[int] = ()) -> MetricsPorts | None:
    """None where none are asked for; port 0 takes free ones. `taken` are ports that the server itself was told to use.

    Raises BadInput where a shard could not have its port: it would die of it again and again.
    """
    if port is None:
        return None
    if port == 0 or shards == 0:
        return MetricsPorts(host, port, _free(host, shards))
    wanted = tuple(range(port + 1, port + 1 + shards))
    asked = f"--metrics-port {port} with --shards {shards} needs ports {wanted[0]} to {wanted[-1]} for the shards"
    if wanted[-1] > LAST_PORT:
        raise BadInput(f"{asked}; the last port is {LAST_PORT}")
    for one in wanted:
        if one in taken:
            raise BadInput(f"{asked}, and {one} is named by another option")
        if not _can_bind(host, one):
            raise BadInput(f"{asked}, and {one} is in use, or {host} is not an address of this machine")
    return MetricsPorts(host, port, wanted)


def _free(host: str, count: int) -> tuple[int, ...]:
    """Ports that nobody has at this moment; all are held before one is let go, so that they differ."""
    with ExitStack() as held:
        try:
            return tuple(held.enter_context(_bound(host, 0)).getsockname()[1] for _ in range(count))
        except OSError as error:
            raise BadInput(f"--metrics-host {host}: not an address of this machine") from error


def _can_bind(host: str, port: int) -> bool:
    try:
        with _bound(host, port):
            return True
    except OSError:
        return False


def _bound(host: str, port: int) -> closing[socket.socket]:
    """As the metrics port itself is bound. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return closing(made)
