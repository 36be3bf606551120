"""One upload's bytes: taken in the announced chunks, or refused with the reason; nothing stays behind."""

from __future__ import annotations

import gc
import weakref
import zlib

import numpy as np
import pytest

from fedrho.privacy.vectors import Gathered, Grid
from fedrho.protos import codec
from fedrho.protos.messages import Encoding, Refusal
from fedrho.server.receiving import Receiver

CHUNK = 64
SIZE = 75
GRID = Grid(1.0, 12)
encodings = pytest.mark.parametrize("encoding", Encoding, ids=lambda encoding: encoding.name)


def payload(encoding: Encoding, first: int = 5) -> bytes:
    vector = np.arange(first, first + SIZE, dtype=np.int32)
    return codec.encode_vector(vector, encoding)


def chunks(data: bytes) -> list[memoryview]:
    return [memoryview(data)[start : start + CHUNK] for start in range(0, len(data), CHUNK)]


@encodings
def test_a_sound_upload_is_the_vector_that_was_sent(encoding: Encoding) -> None:
    data = payload(encoding)
    with Receiver(CHUNK, encoding, SIZE, GRID) as receiver:
        assert [receiver.take(chunk) for chunk in chunks(data)] == [None] * len(chunks(data))
        assert receiver.bytes_left == 0
        clipped = receiver.finish(zlib.crc32(data))
        assert isinstance(clipped, Gathered)
        assert clipped.vector.tolist() == list(range(5, 5 + SIZE))


@encodings
@pytest.mark.parametrize("bit", [0, 77, 8 * 100])
def test_one_flipped_bit_is_a_wrong_checksum(encoding: Encoding, bit: int) -> None:
    data = bytearray(payload(encoding))
    right = zlib.crc32(data)
    data[bit // 8] ^= 1 << bit % 8
    with Receiver(CHUNK, encoding, SIZE, Grid(1.0, 24)) as receiver:
        for chunk in chunks(bytes(data)):
            assert receiver.take(chunk) in (None, Refusal.NORM_TOO_LARGE)
        assert receiver.finish(right) is Refusal.WRONG_CHECKSUM


@encodings
@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK + 1, CHUNK - 4, 2 * CHUNK])
def test_a_chunk_of_another_length_is_wrong_framing(encoding: Encoding, length: int) -> None:
    with Receiver(CHUNK, encoding, SIZE, GRID) as receiver:
        assert receiver.take(memoryview(bytes(length))) is Refusal.WRONG_FRAMING
        assert receiver.bytes_left == SIZE * encoding.width


def test_an_upload_that_ends_early_or_goes_on_is_wrong_framing() -> None:
    data = payload(Encoding.INT32_LE)
    with Receiver(CHUNK, Encoding.INT32_LE, SIZE, GRID) as receiver:
        assert receiver.finish(0) is Refusal.WRONG_FRAMING
        for chunk in chunks(data):
            receiver.take(chunk)
        assert receiver.take(memoryview(bytes(CHUNK))) is Refusal.WRONG_FRAMING
        assert isinstance(receiver.finish(zlib.crc32(data)), Gathered)


def test_a_norm_that_is_too_large_already_is_refused_before_the_last_chunk() -> None:
    data = payload(Encoding.INT32_LE, first=10_000)
    with Receiver(CHUNK, Encoding.INT32_LE, SIZE, GRID) as receiver:
        assert receiver.take(chunks(data)[0]) is Refusal.NORM_TOO_LARGE


@pytest.mark.parametrize("last", [0, 1])
def test_a_norm_is_refused_from_the_first_unit_that_is_too_much(last: int) -> None:
    vector = np.zeros(SIZE, dtype=np.int32)
    vector[0], vector[-1] = GRID.radius, last
    data = codec.encode_vector(vector, Encoding.INT32_LE)
    with Receiver(CHUNK, Encoding.INT32_LE, SIZE, GRID) as receiver:
        assert not any(receiver.take(chunk) for chunk in chunks(data))
        received = receiver.finish(zlib.crc32(data))
        assert received is Refusal.NORM_TOO_LARGE if last else isinstance(received, Gathered)


def test_damage_in_the_last_chunk_is_a_wrong_checksum_even_where_it_makes_the_norm_too_large() -> None:
    vector = np.zeros(SIZE, dtype=np.int32)
    vector[0] = GRID.radius
    data = bytearray(codec.encode_vector(vector, Encoding.INT32_LE))
    right = zlib.crc32(data)
    data[-4] ^= 1
    with Receiver(CHUNK, Encoding.INT32_LE, SIZE, GRID) as receiver:
        assert not any(receiver.take(chunk) for chunk in chunks(bytes(data)))
        assert receiver.finish(right) is Refusal.WRONG_CHECKSUM


def test_nothing_of_a_chunk_is_held_once_it_was_taken() -> None:
    data = np.arange(SIZE, dtype=np.int32)
    alive, receiver = weakref.ref(data), Receiver(4 * SIZE, Encoding.INT32_LE, SIZE, Grid(1.0, 20))
    with receiver:
        assert receiver.take(memoryview(data.data).cast("B")) is None
        del data
        gc.collect()
        assert alive() is None


def test_nothing_that_arrived_outlives_the_upload() -> None:
    data = payload(Encoding.INT32_LE)
    with Receiver(len(data), Encoding.INT32_LE, SIZE, GRID) as receiver:
        receiver.take(memoryview(data))
        held = weakref.ref(receiver._gathering._vector)
        assert held() is not None
    gc.collect()
    assert held() is None
