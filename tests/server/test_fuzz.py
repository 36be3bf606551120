"""Uploads that were sound once, broken in random ways, through real gRPC; and random protobuf into every decoder.

What must be counted is decided here by a plain reading of the same bytes. The sum is that of the uploads answered COUNTED, and
no answer is an accident.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrho.protos import codec
from fedrho.protos import fedrho_pb2 as pb
from fedrho.protos import messages as m
from fedrho.protos.messages import CHUNK_BYTES
from tests.server.attacker import (
    RADIUS,
    SIZE,
    Answer,
    Stranger,
    attacked_run,
    encoded,
    one_hot,
    path,
    receipt,
    released_sum,
    served,
)
from tests.server.http2 import HEADERS, RawHttp2, frame, message, request

Messages = list[bytes]
Change = Callable[[Messages], Messages]
RARELY = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
OFTEN = settings(deadline=None, max_examples=1000, suppress_health_check=list(HealthCheck))

# -- random protobuf ----------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low]) if not rest else bytes([low | 0x80]) + varint(rest)


def delimited(number: int, body: bytes, claimed: int | None = None) -> bytes:
    return varint(number << 3 | 2) + varint(len(body) if claimed is None else claimed) + body


numbers = st.integers(1, 20)
huge = st.sampled_from([2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 2**70])
fields = st.recursive(
    st.one_of(
        st.builds(lambda number, value: varint(number << 3) + varint(value), numbers, st.integers(0, 2**64 - 1) | huge),
        st.builds(lambda number, body: varint(number << 3 | 1) + body, numbers, st.binary(min_size=7, max_size=8)),
        st.builds(lambda number, body: varint(number << 3 | 5) + body, numbers, st.binary(min_size=3, max_size=4)),
        st.builds(delimited, numbers, st.binary(max_size=40)),
        st.builds(delimited, numbers, st.binary(min_size=16, max_size=16)),
        st.builds(delimited, numbers, st.binary(max_size=8), huge),
        st.builds(lambda number, kind: varint(number << 3 | kind), numbers, st.sampled_from([3, 4, 6, 7])),
        st.binary(max_size=12),
        st.just(b"\x80" * 11),
        st.just(b"\x00"),
    ),
    lambda inner: st.builds(lambda number, parts: delimited(number, b"".join(parts)), numbers, st.lists(inner, max_size=4)),
    max_leaves=8,
)
protobuf = st.lists(fields, max_size=5).map(b"".join)
DECODERS: dict[str, Callable[[bytes], Any]] = {
    **{kind.__name__: partial(codec.decode, kind) for kind in codec.PROTOBUF},
    "answer": codec.decode_answer,
    "part": codec.decode_part,
    "int16": lambda data: codec.decode_vector(data, m.Encoding.INT16_LE),
    "int32": lambda data: codec.decode_vector(data, m.Encoding.INT32_LE),
}


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(name=st.sampled_from(sorted(DECODERS)), data=protobuf)
def test_random_protobuf_is_a_message_or_malformed(name: str, data: bytes) -> None:
    decoded_or_malformed(name, data)


def decoded_or_malformed(name: str, data: bytes) -> None:
    """Any other exception fails the test."""
    with suppress(codec.MalformedMessage):
        assert DECODERS[name](data) is not None


@pytest.mark.parametrize("name", DECODERS)
def test_deeply_nested_protobuf_is_a_message_or_malformed(name: str) -> None:
    data = b""
    for _ in range(2000):
        data = delimited(2, data)
    for nested in (data, b"\x13" * 5000, b"\x13" * 5000 + b"\x14" * 5000):
        decoded_or_malformed(name, nested)


# -- broken uploads -----------------------------------------------------------------------------------------------------------


def flipped(place: float, spot: float, mask: int, messages: Messages) -> Messages:
    """Flips bits of one byte, more often of the first bytes than of a chunk's middle."""
    index = at(place, messages)
    data = bytearray(messages[index])
    if data:
        data[int(spot**8 * len(data))] ^= mask
    return [*messages[:index], bytes(data), *messages[index + 1 :]]


def cut(place: float, spot: float, messages: Messages) -> Messages:
    index = at(place, messages)
    data = messages[index]
    return [*messages[:index], data[: int(spot * len(data))], *messages[index + 1 :]]


def grown(place: float, more: bytes, messages: Messages) -> Messages:
    index = at(place, messages)
    return [*messages[:index], messages[index] + more, *messages[index + 1 :]]


def inserted(place: float, new: bytes, messages: Messages) -> Messages:
    index = at(place, messages)
    return [*messages[:index], new, *messages[index:]]


def dropped(place: float, messages: Messages) -> Messages:
    index = at(place, messages)
    return messages[:index] + messages[index + 1 :]


def doubled(place: float, messages: Messages) -> Messages:
    index = at(place, messages)
    return messages[: index + 1] + messages[index:]


def swapped(place: float, messages: Messages) -> Messages:
    index = at(place, messages[:-1])
    return [*messages[:index], *messages[index : index + 2][::-1], *messages[index + 2 :]]


def glued(place: float, messages: Messages) -> Messages:
    """Two messages in one, where protobuf lets the last field win."""
    index = at(place, messages[:-1])
    return [*messages[:index], b"".join(messages[index : index + 2]), *messages[index + 2 :]]


def resealed(messages: Messages) -> Messages:
    """A right checksum over whatever the chunks now are, so that breakage gets past it."""
    payload = b"".join(chunk for kind, chunk in map(read, messages) if kind == "chunk")
    return [data for data in messages if read(data)[0] != "trailer"] + [codec.encode_part(m.UploadTrailer(zlib.crc32(payload)))]


def at(place: float, messages: Messages) -> int:
    return min(int(place * len(messages)), max(len(messages) - 1, 0))


places = st.floats(0, 1, exclude_max=True)
changes: st.SearchStrategy[Change] = st.one_of(
    st.builds(partial, st.just(flipped), places, places, st.integers(1, 255)),
    st.builds(partial, st.just(cut), places, places),
    st.builds(partial, st.just(grown), places, protobuf),
    st.builds(partial, st.just(inserted), places, protobuf),
    st.builds(partial, st.just(dropped), places),
    st.builds(partial, st.just(doubled), places),
    st.builds(partial, st.just(swapped), places),
    st.builds(partial, st.just(glued), places),
    st.just(resealed),
)


def applied(change: Change, messages: Messages) -> Messages:
    return change(messages) if messages else messages


def read(data: bytes) -> tuple[str | None, Any]:
    """Which part a message is, by the generated classes alone."""
    try:
        parsed = pb.UploadUpdateRequest.FromString(data)
    except DecodeError:
        return None, None
    kind = parsed.WhichOneof("part")
    return kind, getattr(parsed, kind) if kind else None


def meant(messages: Messages) -> tuple[bytes, np.ndarray] | None:
    """Session and vector of a stream that must be counted, read slowly; None for any other."""
    kinds = [read(data) for data in messages[:4]]
    if [kind for kind, _ in kinds] != ["header", "chunk", "chunk", "trailer"]:
        return None
    header, first, second, trailer = (part for _, part in kinds)
    payload = first + second
    right = header.total_bytes == len(payload) == 2 * SIZE and len(first) == CHUNK_BYTES and trailer.crc32 == zlib.crc32(payload)
    if not right:
        return None
    whole = np.frombuffer(payload, dtype="<i2").astype(np.int64)
    return (header.session, whole) if int((whole**2).sum()) <= RADIUS**2 else None


class Siege:
    """A served run, what it was sent, and what it must therefore hold."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._stack = AsyncExitStack()
        self.run = attacked_run(goal=4096)
        self.expected: dict[int, int] = {}
        self.counted: set[bytes] = set()
        self.reserved: set[bytes] = set()
        self.stranger = self.wait(self._begin())

    def wait(self, awaited: Awaitable[Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(30):
                return await awaited

        return self._runner.run(bounded())

    async def _begin(self) -> Stranger:
        self.address = await self._stack.enter_async_context(served(self.run))
        return await self._stack.enter_async_context(Stranger(self.address))

    def reserve(self) -> bytes:
        session = bytes(self.wait(self.stranger.reserve(self.run.run)))
        self.reserved.add(session)
        return session

    def note(self, session: bytes, vector: np.ndarray) -> None:
        assert session in self.reserved - self.counted
        self.counted.add(session)
        for place in np.flatnonzero(vector):
            self.expected[int(place)] = self.expected.get(int(place), 0) + int(vector[place])

    def end(self) -> None:
        """An honest device is counted as ever, and the sum is what was answered."""
        session = self.reserve()
        assert receipt(self.wait(self.stranger.send(encoded(session, one_hot(3))))) == m.Receipt(m.SessionStatus.COUNTED)
        self.note(session, one_hot(3))
        self.wait(self._stack.aclose())
        assert self.run.intake.counted == len(self.counted)
        self.run.tick(0.0)
        assert self.run.round.counted() == len(self.counted)
        assert released_sum(self.run) == {place: value for place, value in self.expected.items() if value}


@contextmanager
def siege() -> Iterator[Siege]:
    with asyncio.Runner() as runner:
        laid = Siege(runner)
        yield laid
        laid.end()


def judged(laid: Siege, messages: Messages, answer: Answer) -> None:
    """Every answer is a receipt or a fixed refusal; COUNTED is answered where it must be, and nowhere else."""
    if isinstance(answer, tuple):
        assert answer[0] == "RESOURCE_EXHAUSTED", answer
        assert any(len(data) > CHUNK_BYTES for data in messages)
        return
    got, must = receipt(answer), meant(messages)
    kind, header = read(messages[0]) if messages else (None, None)
    if kind == "header" and header is not None and header.session in laid.counted:
        assert got == m.Receipt(m.SessionStatus.COUNTED)
    elif must is not None and must[0] in laid.reserved:
        assert got.status in (m.SessionStatus.COUNTED, m.SessionStatus.REFUSED)
        if got.status is m.SessionStatus.COUNTED:
            laid.note(*must)
    else:
        assert got.refusal is not None


def fuzz(laid: Siege, example: settings) -> None:
    @example
    @given(place=st.integers(0, SIZE - 1), length=st.integers(-2 * RADIUS, 2 * RADIUS), chosen=st.lists(changes, max_size=4))
    def one_upload(place: int, length: int, chosen: list[Change]) -> None:
        messages = encoded(laid.reserve(), one_hot(place, length))
        for change in chosen:
            messages = applied(change, messages)
        judged(laid, messages, laid.wait(laid.stranger.send(messages)))

    one_upload()


@pytest.mark.parametrize("example", [RARELY, pytest.param(OFTEN, marks=pytest.mark.slow)], ids=["rarely", "often"])
def test_broken_uploads_count_exactly_where_they_must(example: settings) -> None:
    with siege() as laid:
        fuzz(laid, example)


# -- broken frames ------------------------------------------------------------------------------------------------------------

prefixes = st.builds(
    lambda flag, length: bytes([flag]) + length.to_bytes(4, "big"), st.integers(0, 255), st.integers(0, 2**32 - 1)
)
frames = st.one_of(
    st.builds(
        frame, st.integers(0, 12), st.integers(0, 255), st.sampled_from([0, 1, 1, 1, 2, 3, 2**31 - 1]), st.binary(max_size=40)
    ),
    st.builds(lambda prefix, body: frame(0, 0, 1, prefix + body), prefixes, st.binary(max_size=20)),
    st.builds(lambda body, end: message(1, body, end), protobuf, st.booleans()),
    st.binary(max_size=20),
)


def last_headers(address: str, sent: bytes) -> bytes:
    with RawHttp2(address) as client:
        try:
            client.send(request(1, path("UploadUpdate")) + sent)
        except ConnectionError:
            return b""
        arrived, _ = client.frames(0.05)
        return b"".join(seen.payload for seen in arrived if seen.kind == HEADERS)


@pytest.mark.parametrize("example", [RARELY, pytest.param(OFTEN, marks=pytest.mark.slow)], ids=["rarely", "often"])
def test_broken_frames_count_nothing_and_harm_nobody(example: settings) -> None:
    with siege() as laid:

        @example
        @given(sent=st.lists(frames, max_size=6).map(b"".join))
        def one_connection(sent: bytes) -> None:
            header = message(1, encoded(laid.reserve(), one_hot(0))[0])
            seen = laid.wait(asyncio.to_thread(last_headers, laid.address, header + sent))
            assert b"internal error" not in seen

        one_connection()
