"""Grid vectors as bytes: exact where they fit, refused where they do not."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedrho.privacy.vectors import MAX_GRID_BITS
from fedrho.protos.codec import MalformedMessage, decode_vector, encode_vector
from fedrho.protos.messages import Encoding

LETTER = {Encoding.INT32_LE: "i", Encoding.INT16_LE: "h"}
BITS = {Encoding.INT32_LE: 31, Encoding.INT16_LE: 15}

encodings = pytest.mark.parametrize("encoding", Encoding, ids=lambda encoding: encoding.name)


def vector(values: list[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


@encodings
@settings(deadline=None)
@given(data=st.data())
def test_vector_comes_back_as_it_was(encoding: Encoding, data: st.DataObject) -> None:
    limit = 2 ** BITS[encoding]
    values = data.draw(st.lists(st.integers(-limit, limit - 1), max_size=50))
    wire = encode_vector(vector(values), encoding)
    assert wire == struct.pack(f"<{len(values)}{LETTER[encoding]}", *values)
    decoded = decode_vector(wire, encoding)
    assert decoded.dtype == np.int32
    assert decoded.tolist() == values


@pytest.mark.parametrize("value", [2**15, -(2**15) - 1, 2**16, 2**31 - 1, -(2**31)])
def test_coordinate_that_does_not_fit_is_refused_not_wrapped(value: int) -> None:
    with pytest.raises(ValueError, match="does not fit into INT16_LE"):
        encode_vector(vector([0, value]), Encoding.INT16_LE)


@encodings
def test_half_a_coordinate_is_malformed(encoding: Encoding) -> None:
    for extra in range(1, encoding.width):
        with pytest.raises(MalformedMessage, match="whole number of coordinates"):
            decode_vector(bytes(3 * encoding.width + extra), encoding)


@encodings
def test_bytearray_and_bytes_decode_alike_and_share_no_memory(encoding: Encoding) -> None:
    payload = bytearray(encode_vector(vector([1, -2, 3]), encoding))
    decoded = decode_vector(payload, encoding)
    payload[:] = bytes(len(payload))
    assert decoded.tolist() == [1, -2, 3]


@pytest.mark.parametrize("bits", range(1, MAX_GRID_BITS + 1))
def test_encoding_chosen_for_a_grid_holds_its_extremes(bits: int) -> None:
    extremes = [2**bits, -(2**bits), 0]
    encoding = Encoding.for_grid(bits)
    assert decode_vector(encode_vector(vector(extremes), encoding), encoding).tolist() == extremes


def test_encoding_chosen_for_a_grid_is_the_shortest_that_does() -> None:
    assert [bits for bits in range(1, MAX_GRID_BITS + 1) if Encoding.for_grid(bits) is Encoding.INT16_LE] == list(range(1, 15))
