"""What a listening port allows before any of our code runs: sizes, connections, streams, and how long each may stay.

gRPC ignores a channel argument that it does not know, so every setting here has a test in `tests/server/test_ports.py` that sees
its effect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

import grpc

from fedrho.protos.messages import CHUNK_BYTES
from fedrho.server.interceptors import SMALL_SECONDS, Cap, CapInterceptor, device_caps

KIB: Final = 1024
MIB: Final = 1024 * KIB
STREAM_BYTES: Final = 2 * MIB
"""What one open call holds besides its update: flow-control window, task, buffers. Measured: 1.4 MB while it stalls."""
OTHER_CALLS: Final = 64
"""Open at once, of each method that is not the device service's."""
DEFAULT_CONNECTIONS: Final = 2048
IDENTITY_ONLY: Final = 1
"""Bit 0 of the set of compression algorithms: a compressed message is refused, so none can be a bomb."""


@dataclass(frozen=True)
class Port:
    """Durations in seconds, sizes in bytes; raises ValueError for what no port can keep.

    `calls` are open calls of all connections together; one more is refused at once. `connections` is the same for connections,
    and `streams` for the calls of one connection, where an honest client lets one more wait and any other has it reset. The size
    of metadata binds only a client that has acknowledged the server's settings, for which it has `settings_seconds`; for all
    others it is 16 MiB, so `CapInterceptor` looks again. No argument of gRPC bounds what such a client makes the server hold: it
    is `connections` times 16 MiB, or what the network brings within `settings_seconds`, whichever is less; three times that for a
    moment.
    """

    message_bytes: int = CHUNK_BYTES + 64 * KIB
    metadata_bytes: int = 8 * KIB
    metadata_hard_bytes: int = 16 * KIB
    calls: int = 1024
    connections: int = DEFAULT_CONNECTIONS
    streams: int = 8
    handshake_seconds: float = 10.0
    settings_seconds: float = 3.0
    idle_seconds: float = 60.0
    age_seconds: float = 900.0
    grace_seconds: float = 120.0
    keepalive_seconds: float = 60.0
    keepalive_timeout_seconds: float = 20.0
    ping_seconds: float = 30.0
    ping_strikes: int = 2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or not 0 < value * (1000 if "seconds" in field.name else 1) < 2**31:
                raise ValueError(f"{field.name} of a port must be a positive number that gRPC can hold, not {value}")
        if self.metadata_bytes > self.metadata_hard_bytes:
            raise ValueError("metadata_bytes of a port must not exceed metadata_hard_bytes")

    def options(self) -> list[tuple[str, int]]:
        """Channel arguments for `grpc.aio.server`. A second server on the same port fails to bind: so_reuseport is off."""
        return [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", self.message_bytes),
            ("grpc.max_send_message_length", self.message_bytes),
            ("grpc.compression_enabled_algorithms_bitset", IDENTITY_ONLY),
            ("grpc.max_metadata_size", self.metadata_bytes),
            ("grpc.absolute_max_metadata_size", self.metadata_hard_bytes),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.max_concurrent_streams", self.streams),
            ("grpc.server_handshake_timeout_ms", _milliseconds(self.handshake_seconds)),
            ("grpc.http2.settings_timeout", _milliseconds(self.settings_seconds)),
            ("grpc.max_connection_idle_ms", _milliseconds(self.idle_seconds)),
            ("grpc.max_connection_age_ms", _milliseconds(self.age_seconds)),
            ("grpc.max_connection_age_grace_ms", _milliseconds(self.grace_seconds)),
            ("grpc.keepalive_time_ms", _milliseconds(self.keepalive_seconds)),
            ("grpc.http2.ping_timeout_ms", _milliseconds(self.keepalive_timeout_seconds)),
            ("grpc.keepalive_permit_without_calls", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(self.ping_seconds)),
            ("grpc.http2.max_ping_strikes", self.ping_strikes),
        ]

    def server(self, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> grpc.aio.Server:
        """A server that keeps these limits, bound to nothing yet; needs a running event loop."""
        return grpc.aio.server(interceptors=interceptors, options=self.options(), maximum_concurrent_rpcs=self.calls)


@dataclass(frozen=True)
class DevicePort(Port):
    """The port that strangers reach."""

    @staticmethod
    def for_memory(memory_bytes: int, update_bytes: int, small_calls: int = 256) -> DevicePort:
        """As many calls as `memory_bytes` hold if each beyond `small_calls` holds a whole update of `update_bytes`.

        Raises ValueError when not a single upload fits.
        """
        return DevicePort(calls=small_calls + upload_slots(memory_bytes, update_bytes, small_calls))


@dataclass(frozen=True)
class OperatorPort(Port):
    """The port of those who run the server: fewer calls, larger messages, and a watcher may be quiet for long."""

    message_bytes: int = 4 * MIB
    calls: int = 64
    connections: int = 256
    streams: int = 32
    idle_seconds: float = 900.0
    age_seconds: float = 86_400.0


def device_server(
    upload_seconds: float,
    *outer: grpc.aio.ServerInterceptor,
    port: DevicePort | None = None,
    caps: Mapping[str, Cap] | None = None,
) -> grpc.aio.Server:
    """A server for devices, bound to nothing yet: the port's limits, and a cap for each call.

    An upload may take `upload_seconds`; `outer` interceptors see calls first; `caps` are instead of the usual ones.
    """
    port = port or DevicePort()
    usual = device_caps(upload_seconds, port.calls // 2, port.calls // 2)
    return port.server([*outer, CapInterceptor({**usual, **(caps or {})}, Cap(SMALL_SECONDS, OTHER_CALLS))])


def upload_slots(memory_bytes: int, update_bytes: int, small_calls: int = 256) -> int:
    """How many uploads may be open at once: each holds its update, and one at a time is unpacked to twice its size more."""
    free = memory_bytes - small_calls * STREAM_BYTES - 2 * update_bytes
    slots = free // (update_bytes + STREAM_BYTES)
    if slots < 1:
        least = math.ceil((small_calls * STREAM_BYTES + 3 * update_bytes + STREAM_BYTES) / MIB)
        raise ValueError(f"{memory_bytes // MIB} MiB hold no upload of {update_bytes} bytes; allow at least {least} MiB")
    return int(slots)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
