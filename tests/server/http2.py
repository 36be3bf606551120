"""HTTP/2 by hand over a socket: a client that answers nothing, keeps no rule and sees every frame."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM: Final = 1
END_HEADERS: Final = 4
ACK: Final = 1
LARGEST_FRAME: Final = 16384
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes = field(repr=False)


def connected(address: str) -> socket.socket:
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=10)


class RawHttp2:
    """One connection. With `polite`, pings and settings of the server are acknowledged while reading."""

    def __init__(self, address: str, polite: bool = True) -> None:
        self.socket = connected(address)
        self.polite = polite
        self.buffer = b""
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, b""))

    def __enter__(self) -> RawHttp2:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def awaited(self, kind: int, number: int = 1, seconds: float = 10.0) -> list[Frame]:
        """The frames of a kind; returns as soon as there are `number`, or the time is over, or the connection closed."""
        arrived: list[Frame] = []
        closed, ends = False, time.monotonic() + seconds
        while len(arrived) < number and not closed and time.monotonic() < ends:
            frames, closed = self.frames(0.05)
            arrived += [frame for frame in frames if frame.kind == kind]
        return arrived

    def frames(self, seconds: float) -> tuple[list[Frame], bool]:
        """What arrives in the next `seconds`, and whether the server closed the connection in that time."""
        arrived: list[Frame] = []
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                break
            except ConnectionError:
                return arrived, True
            if not data:
                return arrived, True
            arrived += self._parsed(data)
        return arrived, False

    def _parsed(self, data: bytes) -> list[Frame]:
        self.buffer += data
        arrived = []
        while len(self.buffer) >= 9 and len(self.buffer) >= (end := 9 + int.from_bytes(self.buffer[:3], "big")):
            head, body = self.buffer[:9], self.buffer[9:end]
            self.buffer = self.buffer[end:]
            arrived.append(Frame(head[3], head[4], int.from_bytes(head[5:9], "big") & 0x7FFFFFFF, body))
        for seen in arrived if self.polite else ():
            if seen.kind in (PING, SETTINGS) and not seen.flags & ACK:
                with suppress(ConnectionError):
                    self.send(frame(seen.kind, ACK, 0, seen.payload if seen.kind == PING else b""))
        return arrived


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def ping() -> bytes:
    return frame(PING, 0, 0, bytes(8))


def reset(stream: int) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def request(stream: int, path: str, extra: Iterable[tuple[str, str]] = (), end: bool = False) -> bytes:
    """The headers of a gRPC call: literal, uncompressed, never indexed."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("te", "trailers")]
    fields += [("content-type", "application/grpc"), *extra]
    block = b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields)
    first, *rest = [block[start : start + LARGEST_FRAME] for start in range(0, len(block), LARGEST_FRAME)]
    flags = (END_STREAM if end else 0) | (0 if rest else END_HEADERS)
    more = [frame(CONTINUATION, END_HEADERS * (number == len(rest)), stream, part) for number, part in enumerate(rest, 1)]
    return b"".join([frame(HEADERS, flags, stream, first), *more])


def message(stream: int, body: bytes, end: bool = False, compressed: bool = False) -> bytes:
    """One gRPC message in one DATA frame."""
    return frame(DATA, END_STREAM if end else 0, stream, bytes([compressed]) + struct.pack(">I", len(body)) + body)


def _string(text: str) -> bytes:
    data = text.encode()
    return _length(len(data)) + data


def _length(value: int) -> bytes:
    """HPACK's integer with a prefix of seven bits."""
    if value < 127:
        return bytes([value])
    rest, coded = value - 127, [127]
    while rest >= 128:
        coded.append(rest % 128 + 128)
        rest //= 128
    return bytes([*coded, rest])
