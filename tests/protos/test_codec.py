"""Any message survives the wire; any other bytes are MalformedMessage, and never another exception."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from functools import partial
from typing import Any, get_type_hints

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrho.protos import codec
from fedrho.protos import fedrho_pb2 as pb
from fedrho.protos import messages as m
from fedrho.protos.codec import MalformedMessage
from tests.protos.samples import PLAN, RUN, SAMPLES, SESSION

SAMPLE: dict[type[Any], Any] = {type(sample): sample for sample in SAMPLES}
VALUES: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
    FieldDescriptor.TYPE_STRING: st.text(max_size=20),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=40),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
}
LENGTHS = {"run": [16], "session": [16], "request_id": [16], "device_tag": [0, 16], "checkpoint_sha256": [32], "sha256": [32]}


def described(kind: type[Any]) -> list[Any]:
    return list(codec.PROTOBUF[kind].DESCRIPTOR.fields)


def messages(kind: type[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return st.builds(kind, **{field.name: values(field, hints[field.name]) for field in described(kind)})


def values(field: Any, hint: Any) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return messages(hint)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return st.sampled_from([None, *m.Refusal] if hint == m.Refusal | None else list(hint))
    if field.name in LENGTHS:
        return st.one_of([st.binary(min_size=length, max_size=length) for length in LENGTHS[field.name]])
    return VALUES[field.type]


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
    for length in {0, 1, 15, 16, 17, 31, 32, 33, 64} - set(LENGTHS[field]):
        with pytest.raises(MalformedMessage, match=f"{field} has {length} bytes"):
            codec.decode(kind, codec.encode(replace(SAMPLE[kind], **{field: bytes(length)})))


def test_every_bytes_field_but_the_payload_has_its_length() -> None:
    named = {field for _, field in fields_of(FieldDescriptor.TYPE_BYTES)}
    assert named - set(LENGTHS) == {"data"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("kind", "field"), fields_of(FieldDescriptor.TYPE_DOUBLE))
def test_number_that_is_not_finite_is_malformed(kind: type[Any], field: str, value: float) -> None:
    with pytest.raises(MalformedMessage, match=f"{field} is not a finite number"):
        codec.decode(kind, codec.encode(replace(SAMPLE[kind], **{field: value})))


@pytest.mark.parametrize("number", [0, 99, -1])
@pytest.mark.parametrize(("kind", "field"), fields_of(FieldDescriptor.TYPE_ENUM))
def test_enum_value_that_is_not_known_is_malformed(kind: type[Any], field: str, number: int) -> None:
    wire = edited(kind, lambda parsed: setattr(parsed, field, number))
    if (field, number) == ("refusal", 0):
        assert codec.decode(kind, wire).refusal is None
        return
    with pytest.raises(MalformedMessage, match=f"{field} has the unknown value {number}"):
        codec.decode(kind, wire)


@pytest.mark.parametrize(("kind", "field"), fields_of(FieldDescriptor.TYPE_MESSAGE))
def test_missing_submessage_is_malformed(kind: type[Any], field: str) -> None:
    with pytest.raises(MalformedMessage, match=f"{field} is missing"):
        codec.decode(kind, edited(kind, lambda parsed: parsed.ClearField(field)))


def test_what_is_wrong_inside_a_submessage_makes_the_whole_malformed() -> None:
    with pytest.raises(MalformedMessage, match="learning_rate"):
        codec.decode(m.Assignment, codec.encode(m.Assignment(SESSION, replace(PLAN, learning_rate=math.nan), 1.0)))
    with pytest.raises(MalformedMessage, match="run has 15 bytes"):
        codec.decode_answer(codec.encode_answer(m.Assignment(SESSION, replace(PLAN, run=RUN[:15]), 1.0)))


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
