"""The bytes of every message, written down: whoever changes one of these breaks every device in the field.

The literals were made by an encoder written from the protobuf documentation, and are read back here by a decoder as plain, so
neither the product's codec nor protobuf itself vouches for them.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from fedrho.protos import codec
from fedrho.protos import messages as m
from tests.protos.samples import (
    ASSIGNMENT,
    KEY,
    LABELS,
    PLAN,
    REQUEST,
    RETRY,
    RUN,
    SAMPLES,
    SESSION,
    SHA,
    SIGNATURE,
    TAG,
    TERMS,
    TICKET,
)

GOLDEN: dict[type[Any], str] = {
    m.PopulationRequest: "0a20404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f",
    m.PopulationAnswer: (
        "0a0206071240808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaab"
        "acadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf1a20606162636465666768696a6b6c6d6e6f707172737475767778797a7b"
        "7c7d7e7f221209000000000000d03f110000000000c08240"
    ),
    m.PopulationSpec: (
        "08091100000060b813da41190000000000003e40210000000000002940280132630a10000102030405060708090a0b0c0d0e"
        "0f1201741a016d208a05281e30063a350a0b62696e6172792d7472656511000000000000e03f19000000000000f43f210000"
        "0000000024402803300239000000000018f5404001480151000000c00b5ad64132630a10101112131415161718191a1b1c1d"
        "1e1f1201751a016d208a05281e30063a350a0b62696e6172792d7472656511000000000000e03f19000000000000f43f2100"
        "000000000024402803300239000000000018f5404001480151000000c00b5ad641"
    ),
    m.TaskSpec: (
        "0a10000102030405060708090a0b0c0d0e0f1201741a016d208a05281e30063a350a0b62696e6172792d7472656511000000"
        "000000e03f19000000000000f43f2100000000000024402803300239000000000018f5404001480151000000c00b5ad641"
    ),
    m.PrivacyTerms: (
        "0a0b62696e6172792d7472656511000000000000e03f19000000000000f43f2100000000000024402803300239000000000018f540"
    ),
    m.LabelTerms: "0a0d72722d776974682d7072696f721100000000000000401a10000000000000d03f000000000000e83f22046e6f6e65",
    m.CheckIn: (
        "0a10202122232425262728292a2b2c2d2e2f12240a10000102030405060708090a0b0c0d0e0f121030313233343536373839"
        "3a3b3c3d3e3f12240a10101112131415161718191a1b1c1d1e1f1210606162636465666768696a6b6c6d6e6f1a680a020405"
        "1220404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f1a40808182838485868788898a8b8c8d"
        "8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babbbcbdbebf"
    ),
    m.Willing: "0a10000102030405060708090a0b0c0d0e0f1210303132333435363738393a3b3c3d3e3f",
    m.DeviceProof: (
        "0a0204051220404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f1a4080818283848586878889"
        "8a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7b8b9babb"
        "bcbdbebf"
    ),
    m.RetryWindow: "09000000000000d03f110000000000c08240",
    m.RoundPlan: (
        "0a10000102030405060708090a0b0c0d0e0f1007180222016d2a20404142434445464748494a4b4c4d4e4f50515253545556"
        "5758595a5b5c5d5e5f308a0539000000000000e03f401448025001581061000000000000c03f6880802070ac02"
        "7a07726d7370726f708101000000000000e83f880128"
    ),
    m.Assignment: (
        "0a10101112131415161718191a1b1c1d1e1f12750a10000102030405060708090a0b0c0d0e0f1007180222016d2a20404142"
        "434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f308a0539000000000000e03f401448025001581061"
        "000000000000c03f6880802070ac027a07726d7370726f708101000000000000e83f880128"
        "1900000000000034402210c0c1c2c3c4c5c6c7c8c9cacbcccdcecf2a03613a31"
    ),
    m.TryLater: "0805121209000000000000d03f110000000000c08240",
    m.ArtifactRequest: "0a20404142434445464748494a4b4c4d4e4f505152535455565758595a5b5c5d5e5f10e807",
    m.ArtifactChunk: "0a03010203",
    m.BeginUpload: "0a10101112131415161718191a1b1c1d1e1f1210c0c1c2c3c4c5c6c7c8c9cacbcccdcecf",
    m.Reservation: "080211000000000000f83f",
    m.UploadHeader: "0a10101112131415161718191a1b1c1d1e1f10a814",
    m.UploadTrailer: "08a6f2d0df0c",
    m.Receipt: "08041006",
    m.StatusRequest: "0a10101112131415161718191a1b1c1d1e1f",
    m.StatusAnswer: "0806",
    m.Abort: "0a10101112131415161718191a1b1c1d1e1f10041a10c0c1c2c3c4c5c6c7c8c9cacbcccdcecf",
    m.Aborted: "",
}

Plain = dict[int, "bytes | int | float | Plain | list[Plain]"]

TERMS_PLAIN: Plain = {1: b"binary-tree", 2: 0.5, 3: 1.25, 4: 10.0, 5: 3, 6: 2, 7: 86400.0}
RETRY_PLAIN: Plain = {1: 0.25, 2: 600.0}
MODEL_PLAIN: Plain = {1: RUN, 2: 7, 3: 2, 4: b"m", 5: SHA, 6: 650}
LOCAL_PLAIN: Plain = {15: b"rmsprop", 16: 0.75, 17: 40}
PLAN_PLAIN: Plain = {
    **MODEL_PLAIN,
    7: 0.5,
    8: 20,
    9: 2,
    10: 1,
    11: 16,
    12: 0.125,
    13: 524288,
    14: 300,
    15: b"rmsprop",
    16: 0.75,
    17: 40,
}
TASK_PLAIN: Plain = {1: RUN, 2: b"t", 3: b"m", 4: 650, 5: 30, 6: 6, 7: TERMS_PLAIN, 8: 1, 9: 1, 10: 1.5e9}
WILLING_PLAIN: Plain = {1: RUN, 2: TAG}
PROOF_PLAIN: Plain = {1: b"\x04\x05", 2: SHA, 3: SIGNATURE}
FIELDS: dict[type[Any], Plain] = {
    m.PopulationRequest: {1: SHA},
    m.PopulationAnswer: {1: b"\x06\x07", 2: SIGNATURE, 3: KEY, 4: RETRY_PLAIN},
    m.PopulationSpec: {1: 9, 2: 1.75e9, 3: 30.0, 4: 12.5, 5: 1, 6: [TASK_PLAIN, {**TASK_PLAIN, 1: SESSION, 2: b"u"}]},
    m.TaskSpec: TASK_PLAIN,
    m.PrivacyTerms: TERMS_PLAIN,
    m.LabelTerms: {1: b"rr-with-prior", 2: 2.0, 3: struct.pack("<2d", 0.25, 0.75), 4: b"none"},
    m.CheckIn: {1: REQUEST, 2: [WILLING_PLAIN, {1: SESSION, 2: KEY[:16]}], 3: PROOF_PLAIN},
    m.Willing: WILLING_PLAIN,
    m.DeviceProof: PROOF_PLAIN,
    m.RetryWindow: RETRY_PLAIN,
    m.RoundPlan: PLAN_PLAIN,
    m.Assignment: {1: SESSION, 2: PLAN_PLAIN, 3: 20.0, 4: TICKET, 5: b"a:1"},
    m.TryLater: {1: 5, 2: RETRY_PLAIN},
    m.ArtifactRequest: {1: SHA, 2: 1000},
    m.ArtifactChunk: {1: b"\x01\x02\x03"},
    m.BeginUpload: {1: SESSION, 2: TICKET},
    m.Reservation: {1: 2, 2: 1.5},
    m.UploadHeader: {1: SESSION, 2: 2600},
    m.UploadTrailer: {1: 0xCBF43926},
    m.Receipt: {1: 4, 2: 6},
    m.StatusRequest: {1: SESSION},
    m.StatusAnswer: {1: 6},
    m.Abort: {1: SESSION, 2: 4, 3: TICKET},
    m.Aborted: {},
}

UNIONS: list[tuple[Any, int, str]] = [
    (ASSIGNMENT, 1, "0aa901" + GOLDEN[m.Assignment]),
    (m.TryLater(m.LaterReason.NOT_ALLOWED, RETRY), 2, "1216" + GOLDEN[m.TryLater]),
    (b"\x01\x02\x03", 1, "0a03010203"),
    (b"", 1, "0a00"),
    (m.UploadHeader(SESSION, 2600), 2, "1215" + GOLDEN[m.UploadHeader]),
    (m.UploadTrailer(0xCBF43926), 3, "1a06" + GOLDEN[m.UploadTrailer]),
]


def read(data: bytes, like: Plain) -> Plain:
    """The protobuf wire format in a few lines; `like` says which fields are submessages, in a list where they repeat."""
    fields: Plain = {}
    while data:
        tag, data = varint(data)
        if tag & 7 == 0:
            fields[tag >> 3], data = varint(data)
        elif tag & 7 == 1:
            fields[tag >> 3], data = struct.unpack("<d", data[:8])[0], data[8:]
        else:
            length, data = varint(data)
            known = like.get(tag >> 3)
            value, data = data[:length], data[length:]
            if isinstance(known, list):
                there = fields.setdefault(tag >> 3, [])
                assert isinstance(there, list)
                there.append(read(value, known[0]))
            else:
                fields[tag >> 3] = read(value, known) if isinstance(known, dict) else value
    return fields


def varint(data: bytes) -> tuple[int, bytes]:
    end = next(place for place, byte in enumerate(data) if byte < 128)
    return sum((byte & 127) << 7 * place for place, byte in enumerate(data[: end + 1])), data[end + 1 :]


def name(message: object) -> str:
    return type(message).__name__


def test_every_message_has_golden_bytes() -> None:
    assert set(GOLDEN) == set(FIELDS) == set(codec.PROTOBUF) == {type(sample) for sample in SAMPLES}


@pytest.mark.parametrize("kind", GOLDEN, ids=lambda kind: kind.__name__)
def test_golden_bytes_hold_the_numbered_fields_and_no_others(kind: type[Any]) -> None:
    assert read(bytes.fromhex(GOLDEN[kind]), FIELDS[kind]) == FIELDS[kind]


@pytest.mark.parametrize("sample", SAMPLES, ids=name)
def test_message_is_its_golden_bytes(sample: Any) -> None:
    assert codec.encode(sample).hex() == GOLDEN[type(sample)]


@pytest.mark.parametrize("sample", SAMPLES, ids=name)
def test_golden_bytes_are_the_message(sample: Any) -> None:
    assert codec.decode(type(sample), bytes.fromhex(GOLDEN[type(sample)])) == sample


@pytest.mark.parametrize(("value", "number", "golden"), UNIONS, ids=lambda value: name(value))
def test_union_wraps_its_member_in_one_numbered_field(value: Any, number: int, golden: str) -> None:
    answer = isinstance(value, m.Assignment | m.TryLater)
    assert (codec.encode_answer(value) if answer else codec.encode_part(value)).hex() == golden
    assert (codec.decode_answer if answer else codec.decode_part)(bytes.fromhex(golden)) == value
    assert list(read(bytes.fromhex(golden), {})) == [number]


def test_optional_refusal_tag_and_proof_take_no_bytes() -> None:
    assert codec.encode(m.Receipt(m.SessionStatus.COUNTED)).hex() == "0803"
    assert codec.decode(m.Receipt, bytes.fromhex("0803")) == m.Receipt(m.SessionStatus.COUNTED, None)
    bare = "0a10" + REQUEST.hex() + "1212" + "0a10" + RUN.hex()
    assert codec.encode(m.CheckIn(REQUEST, (m.Willing(RUN),))).hex() == bare
    assert codec.decode(m.CheckIn, bytes.fromhex(bare)) == m.CheckIn(REQUEST, (m.Willing(RUN),), None)


def test_label_terms_stand_behind_all_that_older_versions_know() -> None:
    """So terms and plans without them are the bytes that they always were, and those with them begin so."""
    for message, place in ((TERMS, "42"), (PLAN, "9201")):
        said = replace(message, labels=LABELS)
        golden = GOLDEN[type(message)] + place + f"{len(GOLDEN[m.LabelTerms]) // 2:02x}" + GOLDEN[m.LabelTerms]
        assert codec.encode(said).hex() == golden
        assert codec.decode(type(message), bytes.fromhex(golden)) == said
