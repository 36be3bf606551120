"""Any message survives the wire; any other bytes are MalformedMessage, and never another exception."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrho.protos import codec
from fedrho.protos import fedrho_pb2 as pb
from fedrho.protos import messages as m
from fedrho.protos.codec import MalformedMessage
from tests.protos.samples import ASSIGNMENT, PLAN, PROOF, RUN, SAMPLES

SAMPLE: dict[type[Any], Any] = {type(sample): sample for sample in SAMPLES}
VALUES: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
    FieldDescriptor.TYPE_STRING: st.text(max_size=20),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=40),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
}
LENGTHS = {
    "run": [16],
    "session": [16],
    "request_id": [16],
    "device_tag": [0, 16],
    "ticket": [16],
    "checkpoint_sha256": [32],
    "sha256": [32],
    "etag": [0, 32],
    "public_key": [32],
    "signature": [0, 64],
}
FREE = {"data", "spec", "credential"}
"""Bytes of any length: what they hold is looked at by somebody else."""

OPTIONAL = {(m.CheckIn, "proof"), (m.PrivacyTerms, "labels"), (m.RoundPlan, "labels")}


def described(kind: type[Any]) -> list[Any]:
    return list(codec.PROTOBUF[kind].DESCRIPTOR.fields)


def messages(kind: type[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return st.builds(kind, **{field.name: values(field, hints[field.name]) for field in described(kind)})


def values(field: Any, hint: Any) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return submessages(hint)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return st.sampled_from([None, *m.Refusal] if hint == m.Refusal | None else list(hint))
    if get_origin(hint) is tuple:
        return st.lists(VALUES[field.type], max_size=3).map(tuple)
    if field.name in LENGTHS:
        return st.one_of([st.binary(min_size=length, max_size=length) for length in LENGTHS[field.name]])
    return VALUES[field.type]


def submessages(hint: Any) -> st.SearchStrategy[Any]:
    if get_origin(hint) is tuple:
        return st.lists(messages(get_args(hint)[0]), max_size=3).map(tuple)
    chosen = [one for one in get_args(hint) if one is not type(None)]
    return st.none() | messages(chosen[0]) if chosen else messages(hint)


answers = messages(m.Assignment) | messages(m.TryLater)
parts = st.binary(max_size=40) | messages(m.UploadHeader) | messages(m.UploadTrailer)

DECODERS: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes], st.SearchStrategy[Any]]] = {
    **{kind.__name__: (partial(codec.decode, kind), codec.encode, messages(kind)) for kind in codec.PROTOBUF},
    "answer": (codec.decode_answer, codec.encode_answer, answers),
    "part": (codec.decode_part, codec.encode_part, parts),
}
every_decoder = pytest.mark.parametrize("name", DECODERS)


def fields_of(*types: int) -> list[tuple[type[Any], str]]:
    return [(kind, field.name) for kind in codec.PROTOBUF for field in described(kind) if field.type in types]


def edited(kind: type[Any], edit: Callable[[Any], None]) -> bytes:
    """The bytes of a sample, changed below the codec."""
    parsed = codec.PROTOBUF[kind].FromString(codec.encode(SAMPLE[kind]))
    edit(parsed)
    return parsed.SerializeToString()


@every_decoder
@settings(deadline=None)
@given(data=st.data())
def test_message_comes_back_as_it_was(name: str, data: st.DataObject) -> None:
    decode, encode, strategy = DECODERS[name]
    message = data.draw(strategy)
    assert decode(encode(message)) == message


@every_decoder
@settings(deadline=None)
@given(data=st.data())
def test_any_bytes_are_a_message_or_malformed(name: str, data: st.DataObject) -> None:
    decode, encode, strategy = DECODERS[name]
    whole = bytearray(encode(data.draw(strategy)))
    for place in data.draw(st.lists(st.integers(0, max(len(whole) - 1, 0)), max_size=3)):
        whole[place : place + 1] = data.draw(st.binary(max_size=2))
    for wire in (data.draw(st.binary(max_size=60)), bytes(whole)):
        try:
            message = decode(wire)
        except MalformedMessage:
            continue
        assert decode(encode(message)) == message


@every_decoder
@settings(deadline=None)
@given(data=st.data())
def test_message_cut_inside_its_last_field_is_malformed(name: str, data: st.DataObject) -> None:
    decode, encode, strategy = DECODERS[name]
    wire = encode(data.draw(strategy))
    if wire:
        with pytest.raises(MalformedMessage):
            decode(wire[:-1])


@pytest.mark.parametrize(("kind", "field"), [pair for pair in fields_of(FieldDescriptor.TYPE_BYTES) if pair[1] in LENGTHS])
def test_identifier_of_another_length_is_malformed(kind: type[Any], field: str) -> None:
    for length in {0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65} - set(LENGTHS[field]):
        with pytest.raises(MalformedMessage, match=f"{field} has {length} bytes"):
            codec.decode(kind, codec.encode(replace(SAMPLE[kind], **{field: bytes(length)})))


def test_every_bytes_field_but_what_somebody_else_reads_has_its_length() -> None:
    named = {field for _, field in fields_of(FieldDescriptor.TYPE_BYTES)}
    assert named - set(LENGTHS) == FREE


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("kind", "field"), fields_of(FieldDescriptor.TYPE_DOUBLE))
def test_number_that_is_not_finite_is_malformed(kind: type[Any], field: str, value: float) -> None:
    several = isinstance(getattr(SAMPLE[kind], field), tuple)
    with pytest.raises(MalformedMessage, match=f"{field} (is not a finite number|holds a number that is not finite)"):
        codec.decode(kind, codec.encode(replace(SAMPLE[kind], **{field: (0.5, value) if several else value})))


@pytest.mark.parametrize("number", [0, 99, -1])
@pytest.mark.parametrize(("kind", "field"), fields_of(FieldDescriptor.TYPE_ENUM))
def test_enum_value_that_is_not_known_is_malformed(kind: type[Any], field: str, number: int) -> None:
    wire = edited(kind, lambda parsed: setattr(parsed, field, number))
    if (field, number) == ("refusal", 0):
        assert codec.decode(kind, wire).refusal is None
        return
    with pytest.raises(MalformedMessage, match=f"{field} has the unknown value {number}"):
        codec.decode(kind, wire)


def needed() -> list[tuple[type[Any], str]]:
    """Submessages that may not be missing."""
    pairs = set(fields_of(FieldDescriptor.TYPE_MESSAGE)) - OPTIONAL
    several = {(kind, field.name) for kind in codec.PROTOBUF for field in described(kind) if field.is_repeated}
    return sorted(pairs - several, key=str)


@pytest.mark.parametrize(("kind", "field"), needed())
def test_missing_submessage_is_malformed(kind: type[Any], field: str) -> None:
    with pytest.raises(MalformedMessage, match=f"{field} is missing"):
        codec.decode(kind, edited(kind, lambda parsed: parsed.ClearField(field)))


def test_what_is_wrong_inside_a_submessage_makes_the_whole_malformed() -> None:
    with pytest.raises(MalformedMessage, match="learning_rate"):
        codec.decode(m.Assignment, codec.encode(replace(ASSIGNMENT, plan=replace(PLAN, learning_rate=math.nan))))
    with pytest.raises(MalformedMessage, match="run has 15 bytes"):
        codec.decode_answer(codec.encode_answer(replace(ASSIGNMENT, plan=replace(PLAN, run=RUN[:15]))))
    with pytest.raises(MalformedMessage, match="signature has 63 bytes"):
        codec.decode(m.CheckIn, codec.encode(m.CheckIn(RUN, (), replace(PROOF, signature=bytes(63)))))


def test_what_is_wrong_inside_any_entry_of_a_repeated_field_makes_the_whole_malformed() -> None:
    with pytest.raises(MalformedMessage, match="device_tag has 3 bytes"):
        codec.decode(m.CheckIn, codec.encode(m.CheckIn(RUN, (m.Willing(RUN), m.Willing(RUN, bytes(3))))))


@pytest.mark.parametrize(("count", "allowed"), [(0, True), (codec.MOST_REPEATED, True), (codec.MOST_REPEATED + 1, False)])
def test_repeated_field_has_a_most_of_entries(count: int, allowed: bool) -> None:
    message = m.CheckIn(RUN, (m.Willing(RUN),) * count)
    if allowed:
        assert codec.decode(m.CheckIn, codec.encode(message)) == message
    else:
        with pytest.raises(MalformedMessage, match=f"willing has {count} entries"):
            codec.decode(m.CheckIn, codec.encode(message))


def test_empty_union_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="no answer"):
        codec.decode_answer(pb.CheckInResponse().SerializeToString())
    with pytest.raises(MalformedMessage, match="no part"):
        codec.decode_part(pb.UploadUpdateRequest().SerializeToString())


def test_text_that_is_not_utf8_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        codec.decode(m.PrivacyTerms, b"\x0a\x02\xff\xfe")


def test_enum_members_are_never_plain_numbers() -> None:
    for kind, field in fields_of(FieldDescriptor.TYPE_ENUM):
        assert isinstance(getattr(codec.decode(kind, codec.encode(SAMPLE[kind])), field), Enum)


def chunk_of(wire: bytes) -> bytes:
    part = codec.decode_part(wire)
    assert isinstance(part, memoryview)
    return bytes(part)


@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 130, 16_383, 16_384, 16_385, 524_288])
def test_a_chunk_is_written_and_read_as_protobuf_does(length: int) -> None:
    chunk = bytes(range(256)) * (length // 256) + bytes(length % 256)
    wire = pb.UploadUpdateRequest(chunk=chunk).SerializeToString()
    assert codec.encode_part(chunk) == codec.encode_part(memoryview(chunk)) == wire
    assert chunk_of(wire) == chunk


def test_a_chunk_written_in_an_unusual_way_is_read_as_protobuf_reads_it() -> None:
    trailer = pb.UploadUpdateRequest(trailer=pb.UploadTrailer(crc32=5)).SerializeToString()
    assert chunk_of(b"\x0a\x83\x00abc") == b"abc"  # a length in more bytes than it needs
    assert chunk_of(b"\x0a\x01x\x0a\x02yz") == b"yz"  # the last one wins
    assert codec.decode_part(b"\x0a\x01x" + trailer) == m.UploadTrailer(5)
    assert chunk_of(trailer + b"\x0a\x01x") == b"x"
    for broken in (b"\x0a", b"\x0a\x02x", b"\x0a\x80", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"):
        with pytest.raises(MalformedMessage):
            codec.decode_part(broken)
