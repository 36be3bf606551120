"""Attacks on the real service: each gets a fixed answer, the log says nothing of it, and honest devices notice nothing.

An honest device takes part during each attack and another after it; the sum that is released afterwards is theirs alone.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedrho.protos import codec
from fedrho.protos import messages as m
from fedrho.protos.messages import CHUNK_BYTES
from fedrho.server.interceptors import MALFORMED, STOOD_STILL, TOO_LONG, TOO_MANY, Cap
from fedrho.server.ports import DevicePort
from tests.server.attacker import (
    METHODS,
    RADIUS,
    SIZE,
    Part,
    Stranger,
    abort,
    attacked_run,
    check_in,
    each,
    encoded,
    one_hot,
    outcome,
    parts,
    path,
    receipt,
    released_sum,
    running,
    served,
    sound_requests,
    until,
)
from tests.server.http2 import HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE, RawHttp2, frame, message, request
from tests.server.one_run import OneRun

SECRET = b"sEcReT of a device"
COUNTED = m.Receipt(m.SessionStatus.COUNTED)
Attack = Callable[[Stranger, OneRun], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def _nothing_is_logged(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Any:
    yield
    logged = "".join([*capfd.readouterr(), caplog.text])
    for word in ("sEcReT", SECRET.hex(), "internal error", "Traceback"):
        assert word not in logged


def attacked(
    attack: Attack, counted: dict[int, int] | None = None, port: DevicePort | None = None, caps: dict[str, Cap] | None = None
) -> None:
    """`counted` is what the attack itself may add to the sum, by its own sound uploads."""

    async def test() -> None:
        run = attacked_run()
        async with served(run, port, caps=caps) as address, Stranger(address) as stranger, Stranger(address) as honest:
            attacking = asyncio.create_task(attack(stranger, run))
            await honest.take_part(run.run, one_hot(0))
            await attacking
            await honest.take_part(run.run, one_hot(1))
        assert released_sum(run) == {0: RADIUS, 1: RADIUS, **(counted or {})}

    running(test())


# -- bytes that are no message ------------------------------------------------------------------------------------------------

GARBAGE = [
    b"\xff" * 40,
    b"\x0a\xff\xff\xff\xff\x0f",
    b"\x0a\x12" + SECRET,
    b"\x0a\x03" + SECRET,
    b"\xff" * 10_000,
    b"\x0b" * 5000,
]


def test_malformed_messages_get_a_fixed_text_at_every_method() -> None:
    async def attack(stranger: Stranger, run: OneRun) -> None:
        for garbage in GARBAGE:
            for method in METHODS:
                await expect_refusal(stranger, method, garbage)

    attacked(attack)


async def expect_refusal(stranger: Stranger, method: str, garbage: bytes) -> None:
    answer = await (stranger.send([garbage]) if method == "UploadUpdate" else stranger.call(method, garbage))
    if method == "UploadUpdate":
        assert receipt(answer) == m.Receipt(m.SessionStatus.LOST, m.Refusal.WRONG_FRAMING)
    elif method != "GetPopulation":  # any bytes of unknown fields are an empty request
        assert answer == ("INVALID_ARGUMENT", MALFORMED)
    assert b"sEcReT" not in str(answer).encode()


def test_unknown_methods_and_services_are_refused() -> None:
    async def attack(stranger: Stranger, run: OneRun) -> None:
        for name in ("Nope", "", "checkin", "CheckIn/", "x" * 1000):
            assert await stranger.call(name, SECRET) == ("UNIMPLEMENTED", "Method not found!")
        call = stranger.channel.unary_unary("/fedrho.v1.OperatorService/ExportModel")
        with pytest.raises(Exception, match="UNIMPLEMENTED"):
            await call(SECRET, timeout=10)

    attacked(attack)


def test_call_without_a_message_is_malformed_and_a_second_message_is_not_read() -> None:
    async def attack(stranger: Stranger, run: OneRun) -> None:
        call = stranger.channel.stream_unary(path("CheckIn"))
        assert await outcome(call(each([]), timeout=10)) == ("INVALID_ARGUMENT", MALFORMED)
        answer = codec.decode_answer(await call(each([check_in(run.run), SECRET]), timeout=10))
        assert isinstance(answer, m.Assignment)

    attacked(attack)


# -- vectors that must not count ----------------------------------------------------------------------------------------------


def two_hot(first: int, second: int) -> np.ndarray:
    vector = one_hot(5, first)
    vector[6] = second
    return vector


UNSOUND = {
    "just above": one_hot(5, RADIUS + 1),
    "just above below zero": one_hot(5, -RADIUS - 1),
    "above by the last square": two_hot(RADIUS, 1),
    "largest": np.full(SIZE, 2**15 - 1, dtype=np.int32),
    "smallest": np.full(SIZE, -(2**15), dtype=np.int32),
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_vector_beyond_the_norm_is_refused_for_good(kind: str) -> None:
    async def attack(stranger: Stranger, run: OneRun) -> None:
        session = await stranger.reserve(run.run)
        refused = await stranger.upload(parts(session, UNSOUND[kind]))
        assert refused == m.Receipt(m.SessionStatus.REFUSED, m.Refusal.NORM_TOO_LARGE)
        again = await stranger.upload(parts(session, one_hot(5)))
        assert (again.status, again.refusal) == (m.SessionStatus.REFUSED, m.Refusal.NO_RESERVATION)

    attacked(attack)


def test_vector_of_exactly_the_norm_counts() -> None:
    async def attack(stranger: Stranger, run: OneRun) -> None:
        assert await stranger.upload(parts(await stranger.reserve(run.run), two_hot(0, -RADIUS))) == COUNTED

    attacked(attack, counted={6: -RADIUS})


@pytest.mark.parametrize("value", [2**20 + 1, 2**31 - 1, -(2**31), 2**24])
def test_extreme_numbers_of_four_bytes_are_refused_without_overflow(value: int) -> None:
    async def test() -> None:
        run = attacked_run(bits=20)
        async with served(run) as address, Stranger(address) as stranger:
            for vector in (one_hot(5, value), np.full(SIZE, value, dtype=np.int32)):
                refused = await stranger.upload(parts(await stranger.reserve(run.run), vector, bits=20))
                assert refused.refusal is m.Refusal.NORM_TOO_LARGE
            assert await stranger.upload(parts(await stranger.reserve(run.run), one_hot(5, 2**20), bits=20)) == COUNTED
        assert released_sum(run) == {5: 2**20}

    running(test())


# -- streams that are no upload -----------------------------------------------------------------------------------------------


def lengthened(whole: list[Any], total: int) -> list[Part]:
    return [replace(whole[0], total_bytes=total), *whole[1:]]


FRAMINGS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "no header": lambda p: p[1:],
    "no trailer": lambda p: p[:-1],
    "header only": lambda p: p[:1],
    "two headers": lambda p: [p[0], *p],
    "header between": lambda p: [*p[:2], p[0], *p[2:]],
    "trailer first": lambda p: [p[-1], *p],
    "trailer early": lambda p: [*p[:2], p[-1], p[2]],
    "one chunk less": lambda p: [p[0], p[1], p[3]],
    "one chunk more": lambda p: [*p[:3], b"x", p[3]],
    "chunk twice": lambda p: [p[0], p[1], p[1], *p[2:]],
    "chunks swapped": lambda p: [p[0], p[2], p[1], p[3]],
    "odd chunk": lambda p: [p[0], p[1][:-1], *p[2:]],
    "cut chunk": lambda p: [*p[:2], p[2][:-1], p[3]],
    "grown chunk": lambda p: [*p[:2], p[2] + b"x", p[3]],
    "empty chunks": lambda p: [p[0], *([b""] * 100_000), *p[1:]],
    "tiny chunks": lambda p: [p[0], *([b"xy"] * 10_000), *p[1:]],
    "total of zero": lambda p: lengthened(p, 0),
    "total too small": lambda p: lengthened(p, 2 * SIZE - 2),
    "total too large": lambda p: lengthened(p, 2 * SIZE + 2),
    "total of all memory": lambda p: lengthened(p, 2**64 - 1),
    "wrong checksum": lambda p: [*p[:3], m.UploadTrailer(p[3].crc32 ^ 1)],
    "flipped bit": lambda p: [p[0], bytes([p[1][0] ^ 1]) + p[1][1:], *p[2:]],
}
REFUSALS = {m.Refusal.WRONG_FRAMING, m.Refusal.WRONG_LENGTH, m.Refusal.WRONG_CHECKSUM}


@pytest.mark.parametrize("kind", FRAMINGS)
def test_broken_stream_is_refused_and_its_session_can_be_sent_again(kind: str) -> None:
    async def attack(stranger: Stranger, run: OneRun) -> None:
        session = await stranger.reserve(run.run)
        whole = parts(session, one_hot(5))
        assert (await stranger.upload(FRAMINGS[kind](list(whole)))).refusal in REFUSALS
        assert await stranger.status(session) is m.SessionStatus.RESERVED
        assert await stranger.upload(whole) == COUNTED

    attacked(attack, counted={5: RADIUS})


def test_upload_without_a_reservation_or_of_no_session_is_refused() -> None:
    async def attack(stranger: Stranger, run: OneRun) -> None:
        unheard, gave_up = await stranger.check_in(run.run), await stranger.check_in(run.run)
        await stranger.begin(gave_up)
        await stranger.call("AbortSession", abort(gave_up))
        refusals = {
            unheard.session: m.Refusal.UNKNOWN_SESSION,
            gave_up.session: m.Refusal.NO_RESERVATION,
            SECRET[:16]: m.Refusal.UNKNOWN_SESSION,
        }
        for session, refusal in refusals.items():
            assert (await stranger.upload(parts(session, one_hot(5)))).refusal is refusal

    attacked(attack)


def test_ticket_of_another_session_opens_and_ends_nothing() -> None:
    async def attack(stranger: Stranger, run: OneRun) -> None:
        own, other = await stranger.check_in(run.run), await stranger.check_in(run.run)
        for ticket in (other.ticket, bytes(16), SECRET[:16]):
            forged = replace(own, ticket=ticket)
            assert (await stranger.begin(forged)).answer is m.Go.NOT_NEEDED
            await stranger.call("AbortSession", abort(forged))
            assert await stranger.status(own.session) is m.SessionStatus.LOST
        assert (await stranger.begin(own)).answer is m.Go.GO
        assert await stranger.upload(parts(own.session, one_hot(5))) == COUNTED

    attacked(attack, counted={5: RADIUS})


def test_second_stream_of_a_session_is_refused_and_the_first_counts() -> None:
    async def attack(stranger: Stranger, run: OneRun) -> None:
        session = await stranger.reserve(run.run)
        started, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            first, *rest = encoded(session, one_hot(5))
            yield first
            started.set()
            await go_on.wait()
            for part in rest:
                yield part

        slowly = asyncio.create_task(stranger.send(slow()))
        await started.wait()
        await asyncio.sleep(0.1)
        thieves = await asyncio.gather(*(stranger.upload(parts(session, one_hot(7))) for _ in range(4)))
        assert {thief.refusal for thief in thieves} == {m.Refusal.ALREADY_OPEN}
        go_on.set()
        assert receipt(await slowly) == COUNTED
        assert await stranger.upload(parts(session, one_hot(7))) == COUNTED

    attacked(attack, counted={5: RADIUS})


# -- streams that stand still, or end in the middle ---------------------------------------------------------------------------

SHORT = {"UploadUpdate": Cap(0.6, 64, read_seconds=0.25, first_read_seconds=0.25)}
DROP_SECONDS = 0.3
DROPS = {"UploadUpdate": Cap(1.2, 64, read_seconds=0.9, first_read_seconds=0.9)}
"""Each drop renews the time for a message, so that the time for all of the call is over first."""


def stalled(session: bytes, sent: int) -> AsyncIterator[bytes]:
    async def stream() -> AsyncIterator[bytes]:
        for part in encoded(session, one_hot(5))[:sent]:
            yield part
        await asyncio.sleep(30)

    return stream()


@pytest.mark.parametrize("sent", [0, 1, 2, 3])
def test_stalled_upload_is_ended_and_its_session_can_be_sent_again(sent: int) -> None:
    async def attack(stranger: Stranger, run: OneRun) -> None:
        session = await stranger.reserve(run.run)
        assert await stranger.send(stalled(session, sent)) == ("DEADLINE_EXCEEDED", STOOD_STILL)
        assert await stranger.upload(parts(session, one_hot(5))) == COUNTED

    attacked(attack, counted={5: RADIUS}, caps=SHORT)


def test_upload_in_drops_is_ended_when_its_budget_is_spent() -> None:
    async def test() -> None:
        run = attacked_run(size=10 * CHUNK_BYTES)
        async with served(run, caps=DROPS) as address, Stranger(address) as stranger:

            async def drops() -> AsyncIterator[bytes]:
                """None is on its way when the call is ended: gRPC's client would tell of that, and not of the answer."""
                for part in encoded(session, one_hot(5, size=run.progress.weights.size))[:3]:
                    yield part
                    await asyncio.sleep(DROP_SECONDS)
                await asyncio.sleep(30)

            session = await stranger.reserve(run.run)
            assert await stranger.send(drops()) == ("DEADLINE_EXCEEDED", TOO_LONG)
            assert await stranger.upload(parts(session, one_hot(5, size=run.progress.weights.size))) == COUNTED
        assert released_sum(run) == {5: RADIUS}

    running(test())


def test_connection_that_breaks_in_mid_upload_leaves_the_session_as_it_was() -> None:
    async def attack(stranger: Stranger, run: OneRun) -> None:
        session = await stranger.reserve(run.run)
        header, first, *_ = encoded(session, one_hot(5))

        def broken(*sent: bytes, end: bool = False) -> None:
            with RawHttp2(stranger.address) as client:
                client.send(request(1, path("UploadUpdate")), message(1, header, end=end), *sent)
                client.frames(0.15)

        await asyncio.to_thread(broken)
        await asyncio.to_thread(broken, message(1, first[:10_000])[:5000])
        await asyncio.to_thread(broken, end=True)
        await asyncio.sleep(0.1)
        assert await stranger.status(session) is m.SessionStatus.RESERVED
        assert await stranger.upload(parts(session, one_hot(5))) == COUNTED

    attacked(attack, counted={5: RADIUS})


def test_cancelled_calls_at_every_method_change_nothing() -> None:
    async def attack(stranger: Stranger, run: OneRun) -> None:
        assignment = await stranger.check_in(run.run)
        for method, sent in sound_requests(assignment).items():
            for pause in (0.0, 0.0005, 0.002):
                if method != "AbortSession":
                    await cancelled(stranger, method, sent, pause)
        assert (await stranger.begin(assignment)).answer is m.Go.GO
        assert await stranger.upload(parts(assignment.session, one_hot(5))) == COUNTED

    attacked(attack, counted={5: RADIUS})


async def cancelled(stranger: Stranger, method: str, sent: bytes, pause: float) -> None:
    calling = asyncio.create_task(stranger.send([sent]) if method == "UploadUpdate" else stranger.call(method, sent))
    await asyncio.sleep(pause)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)


# -- calls that hold what others need -----------------------------------------------------------------------------------------


def test_calls_that_send_only_headers_are_ended_at_every_method() -> None:
    """gRPC itself would wait for the request of a unary call for as long as the connection lives."""
    caps = {method: Cap(5.0, 64, first_read_seconds=0.3) for method in METHODS}

    async def attack(stranger: Stranger, run: OneRun) -> None:
        def mute() -> list[bytes]:
            with RawHttp2(stranger.address) as client:
                client.send(*[request(2 * number + 1, path(method)) for number, method in enumerate(METHODS)])
                return [frame.payload for frame in client.awaited(HEADERS, len(METHODS))]

        ends = await asyncio.to_thread(mute)
        assert sum(STOOD_STILL.encode() in payload for payload in ends) >= 1
        assert len(ends) == len(METHODS)

    attacked(attack, caps=caps)


def test_calls_beyond_a_cap_are_refused_and_other_methods_are_not() -> None:
    async def test() -> None:
        run, enough = attacked_run(), asyncio.Event()

        caps = {"UploadUpdate": Cap(30.0, 3, first_read_seconds=10.0)}
        async with served(run, caps=caps) as address, Stranger(address) as stranger, Stranger(address) as honest:
            holding = [asyncio.create_task(stranger.send(until(enough))) for _ in range(3)]
            await asyncio.sleep(0.3)
            assert await honest.send([]) == ("RESOURCE_EXHAUSTED", TOO_MANY)
            await honest.check_in(run.run)
            enough.set()
            await asyncio.gather(*holding)
            await honest.take_part(run.run, one_hot(0))

    running(test())


def test_download_that_is_not_read_is_ended() -> None:
    async def test() -> None:
        run = attacked_run(size=16 * CHUNK_BYTES)
        async with served(run, caps={"GetArtifact": Cap(0.5, 1)}) as address, Stranger(address) as stranger:
            wanted = codec.encode(m.ArtifactRequest((await stranger.check_in(run.run)).plan.checkpoint_sha256))
            unread = stranger.channel.unary_stream(path("GetArtifact"))(wanted, timeout=20)
            await asyncio.sleep(0.2)
            assert await stranger.call("GetArtifact", wanted) == ("RESOURCE_EXHAUSTED", TOO_MANY)
            await asyncio.sleep(0.6)
            assert isinstance(await stranger.call("GetArtifact", wanted), bytes)
            unread.cancel()

    running(test())


TAKES_NOTHING = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
"""A flow-control window of nothing for each call."""


def test_download_of_which_nothing_is_taken_is_ended_long_before_its_time() -> None:
    async def test() -> None:
        run = attacked_run(size=2 * CHUNK_BYTES)
        caps = {"GetArtifact": Cap(600.0, 1, read_seconds=0.3, first_read_seconds=0.3)}
        async with served(run, caps=caps) as address, Stranger(address) as honest:
            wanted = codec.encode(m.ArtifactRequest((await honest.check_in(run.run)).plan.checkpoint_sha256))
            with RawHttp2(address) as client:
                client.send(TAKES_NOTHING, request(1, path("GetArtifact")), message(1, wanted, end=True))
                await asyncio.sleep(0.15)
                assert await honest.call("GetArtifact", wanted) == ("RESOURCE_EXHAUSTED", TOO_MANY)
                await asyncio.sleep(0.6)
                assert isinstance(await honest.call("GetArtifact", wanted), bytes)

    running(test())


def test_download_that_is_taken_slowly_goes_on() -> None:
    """Longer in all than one message may take."""

    def taken(address: str, wanted: bytes) -> int:
        began, received = time.monotonic(), 0
        with RawHttp2(address) as client:
            client.send(TAKES_NOTHING, request(1, path("GetArtifact")), message(1, wanted, end=True))
            while time.monotonic() < began + 1.5:
                window = struct.pack(">I", CHUNK_BYTES // 2)
                client.send(frame(WINDOW_UPDATE, 0, 0, window), frame(WINDOW_UPDATE, 0, 1, window))
                frames, closed = client.frames(0.1)
                assert not closed
                assert not [seen for seen in frames if seen.kind == RST_STREAM]
                received += sum(len(seen.payload) for seen in frames if seen.kind == 0)
        return received

    async def test() -> None:
        run = attacked_run(size=8 * CHUNK_BYTES)
        caps = {"GetArtifact": Cap(600.0, 1, read_seconds=0.8, first_read_seconds=0.3)}
        async with served(run, caps=caps) as address, Stranger(address) as honest:
            wanted = codec.encode(m.ArtifactRequest((await honest.check_in(run.run)).plan.checkpoint_sha256))
            assert await asyncio.to_thread(taken, address, wanted) > 4 * CHUNK_BYTES

    running(test())


def test_calls_of_many_connections_beyond_the_port_are_refused_at_once() -> None:
    async def test() -> None:
        run = attacked_run()
        caps = {"UploadUpdate": Cap(60.0, 64)}
        async with served(run, DevicePort(calls=8, streams=64), caps=caps) as address, Stranger(address) as stranger:
            await stranger.check_in(run.run)
            answers = await asyncio.gather(*(stranger.send(stalled(SECRET[:16], 0), seconds=1.0) for _ in range(32)))
            assert answers.count(("RESOURCE_EXHAUSTED", "Concurrent RPC limit exceeded!")) == 24
            await stranger.take_part(run.run, one_hot(0))
        assert released_sum(run) == {0: RADIUS}

    running(test())
