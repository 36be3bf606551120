"""Attacks in bulk on a server in a process of its own: its memory and descriptors stay bounded, and honest devices are served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from fedrho.key_making import make_keys
from fedrho.protos import codec
from fedrho.protos import messages as m
from fedrho.server.ports import MIB, STREAM_BYTES
from tests.server import bombs
from tests.server.attacker import (
    RADIUS,
    SIZE,
    Stranger,
    check_in,
    one_hot,
    parts,
    path,
    receipt,
    running,
)
from tests.server.http2 import GOAWAY, RawHttp2, connected, frame, message, request, reset
from tests.server.victim import Victim, victim

pytestmark = pytest.mark.slow

HELD = (STREAM_BYTES + 2 * SIZE) / MIB
"""Megabytes of an open upload, by which a port reckons how many fit."""
SECRETS = ("127.0.0.1", "ipv4:", "Traceback", "internal error")
"""Nothing of this may be in a log."""
SLOWEST_CHECK_IN = 2.0
"""Seconds; on an idle machine it takes a few thousandths."""


async def besieged(found: Victim, attack: Callable[[], None]) -> None:
    """Runs `attack` in a thread, while an honest device checks in again and again, and takes part afterwards."""
    siege = asyncio.create_task(asyncio.to_thread(attack))
    async with Stranger(found.address) as honest:
        while not siege.done():
            began = time.monotonic()
            assert isinstance(await honest.call("CheckIn", check_in(bytes(16))), bytes)
            assert time.monotonic() - began < SLOWEST_CHECK_IN
            await asyncio.sleep(0.02)
        await siege
        await honest.take_part(found.run, one_hot(1))


def holds(found: Victim, attack: Callable[[Victim], None], megabytes: float, rests: Callable[[], bool] = lambda: True) -> None:
    """Lays siege. The peak of memory may rise by `megabytes`, no descriptor stays behind, and `rests` holds before long."""

    async def test() -> None:
        async with Stranger(found.address) as honest:
            for _ in range(3):
                await honest.take_part(found.run, one_hot(0))
        peak, descriptors = found.peak_megabytes(), found.descriptors()
        await besieged(found, lambda: attack(found))
        assert found.peak_megabytes() - peak < megabytes
        await settled(lambda: found.descriptors() <= descriptors)
        await settled(rests)

    running(test(), 120.0)
    total, log = found.end()
    assert total == {0: 3 * RADIUS, 1: RADIUS}
    assert not [secret for secret in SECRETS if secret in log], log


async def settled(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("megabytes", [64])
def test_huge_message_costs_no_memory(megabytes: int) -> None:
    def attack(found: Victim) -> None:
        with grpc.insecure_channel(found.address) as channel:
            for method in ("UploadUpdate", "CheckIn"):
                with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
                    channel.stream_unary(path(method))(iter([bytes(megabytes * MIB)]), timeout=20)

    with victim() as found:
        holds(found, attack, megabytes=16)


@pytest.mark.parametrize("megabytes", [256])
def test_four_gzip_bombs_at_once_are_refused_unread(megabytes: int) -> None:
    with victim() as found:
        holds(found, lambda found: bombs.throw(found.address, megabytes), megabytes=16)


def test_mute_and_idle_connections_are_gone_after_their_time() -> None:
    def attack(found: Victim) -> None:
        mute = [connected(found.address) for _ in range(200)]
        idle = [RawHttp2(found.address) for _ in range(50)]
        for client in idle:
            client.frames(0.01)
        for client in idle:
            assert client.frames(5.0)[1]
            client.socket.close()
        for one in mute:
            one.settimeout(5.0)
            while one.recv(4096):
                pass
            one.close()

    with victim(handshake_seconds=1.0, idle_seconds=1.0) as found:
        holds(found, attack, megabytes=40)


@pytest.mark.parametrize("number", [20_000])
def test_thousands_of_reset_calls_delay_nobody(number: int) -> None:
    def attack(found: Victim) -> None:
        with RawHttp2(found.address) as client:
            client.frames(0.2)
            for start in range(0, number, 100):
                streams = range(2 * start + 1, 2 * start + 201, 2)
                client.send(*[request(stream, path("UploadUpdate")) + reset(stream) for stream in streams])
            frames, closed = client.frames(0.5)
            assert closed or not [seen for seen in frames if seen.kind == GOAWAY]

    with victim() as found:
        holds(found, attack, megabytes=40)


def test_metadata_before_the_settings_are_acknowledged_is_let_go() -> None:
    """What is on its way is up to three times the headers. Kept, it would be 260 MiB; a third of that stays in the allocator."""
    connections, size = 24, 8

    def attack(found: Victim) -> None:
        for _ in range(connections):
            with RawHttp2(found.address, polite=False) as client, suppress(ConnectionError):
                client.send(request(1, path("CheckIn"), [("x", "y" * (size * MIB))]) + message(1, check_in(found.run), end=True))
                client.frames(0.1)

    with victim(settings_seconds=1.0) as found:
        before = found.megabytes()
        holds(found, attack, megabytes=3 * connections * size, rests=lambda: found.megabytes() < before + 160)


def test_headers_that_never_end_are_gone_with_their_connection() -> None:
    def attack(found: Victim) -> None:
        clients = [RawHttp2(found.address) for _ in range(20)]
        for client in clients:
            client.send(frame(1, 0, 1, b""))
        for client in clients:
            assert client.frames(8.0)[1]
            client.socket.close()

    with victim(age_seconds=1.0, grace_seconds=0.5, idle_seconds=1.0) as found:
        holds(found, attack, megabytes=16)


@pytest.mark.parametrize("number", [150])
def test_stalled_uploads_are_ended_while_others_are_served(number: int) -> None:
    """Each with a session and a reservation of its own, and half of its update sent: as much as a stranger can hold."""

    async def hold(found: Victim) -> None:
        async with Stranger(found.address) as stranger:

            async def stalled() -> AsyncIterator[bytes]:
                for part in parts(session, one_hot(9))[:2]:
                    yield codec.encode_part(part)
                await asyncio.sleep(60)

            session = await stranger.reserve(found.run)
            assert (await stranger.send(stalled(), 40.0))[0] == "DEADLINE_EXCEEDED"

    async def hold_all(found: Victim) -> None:
        await asyncio.gather(*(hold(found) for _ in range(number)))

    with victim(stall=1.5) as found:
        holds(found, lambda found: asyncio.run(hold_all(found)), megabytes=HELD * number + 16)


def test_hundred_thousand_empty_messages_are_refused_at_the_first() -> None:
    async def flood(found: Victim) -> None:
        async with Stranger(found.address) as stranger:
            for session in (bytes(16), await stranger.reserve(found.run)):
                before = found.cpu_seconds()
                answer = await stranger.send(empty_messages(session), 30.0)
                assert receipt(answer).refusal in (m.Refusal.UNKNOWN_SESSION, m.Refusal.WRONG_FRAMING)
                assert found.cpu_seconds() - before < 1.0

    with victim() as found:
        holds(found, lambda found: asyncio.run(flood(found)), megabytes=16)


async def empty_messages(session: bytes) -> AsyncIterator[bytes]:
    yield codec.encode_part(m.UploadHeader(session, 2 * SIZE))
    for _ in range(100_000):
        yield b""


def test_tls_client_at_a_plain_port_gets_nothing() -> None:
    def attack(found: Victim) -> None:
        with grpc.secure_channel(found.address, grpc.ssl_channel_credentials()) as channel:
            call = channel.unary_unary(path("CheckIn")).future(check_in(found.run), timeout=3)
            assert call.code() is grpc.StatusCode.UNAVAILABLE

    with victim() as found:
        holds(found, attack, megabytes=16)


def test_plain_and_mute_clients_at_a_tls_port_get_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    make_keys(folder, ["127.0.0.1"], 30)
    root = grpc.ssl_channel_credentials((folder / "device" / "ca.crt").read_bytes())

    async def test(found: Victim) -> None:
        async with Stranger(found.address) as plain:
            assert (await plain.call("CheckIn", check_in(found.run), 3.0))[0] == "UNAVAILABLE"
        for sent in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05"):
            await asyncio.to_thread(closed_after, found.address, sent)
        async with Stranger(found.address, root) as honest:
            await honest.take_part(found.run, one_hot(0))

    with victim(tls=folder, handshake_seconds=1.0) as found:
        running(test(found))
        total, log = found.end()
    assert total == {0: RADIUS}
    assert not [secret for secret in SECRETS if secret in log], log


def closed_after(address: str, sent: bytes) -> None:
    """Returns when the server has closed the connection."""
    with connected(address) as client:
        client.sendall(sent)
        client.settimeout(8)
        with suppress(ConnectionError):
            while client.recv(4096):
                pass
