"""Messages <-> bytes of the wire; the only file that knows the generated classes.

A dataclass and its protobuf class have the same field names, so one function serves them all; the two `oneof`s have their own.
Decoding trusts nothing: identifiers have their length, numbers are finite, enums are known, or `MalformedMessage` is raised.
"""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache, lru_cache
from typing import Any, Final, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from numpy.typing import NDArray

from fedrho.protos import fedrho_pb2 as pb
from fedrho.protos import messages as m

T = TypeVar("T")

PROTOBUF: Final[dict[type[Any], type[Message]]] = {
    m.PopulationRequest: pb.GetPopulationRequest,
    m.PopulationAnswer: pb.GetPopulationResponse,
    m.PopulationSpec: pb.PopulationSpec,
    m.TaskSpec: pb.TaskSpec,
    m.Willing: pb.Willing,
    m.DeviceProof: pb.DeviceProof,
    m.PrivacyTerms: pb.PrivacyTerms,
    m.LabelTerms: pb.LabelTerms,
    m.CheckIn: pb.CheckInRequest,
    m.RetryWindow: pb.RetryWindow,
    m.RoundPlan: pb.RoundPlan,
    m.Assignment: pb.Assignment,
    m.TryLater: pb.TryLater,
    m.ArtifactRequest: pb.GetArtifactRequest,
    m.ArtifactChunk: pb.ArtifactChunk,
    m.BeginUpload: pb.BeginUploadRequest,
    m.Reservation: pb.BeginUploadResponse,
    m.UploadHeader: pb.UploadHeader,
    m.UploadTrailer: pb.UploadTrailer,
    m.Receipt: pb.UploadUpdateResponse,
    m.StatusRequest: pb.GetUploadStatusRequest,
    m.StatusAnswer: pb.GetUploadStatusResponse,
    m.Abort: pb.AbortSessionRequest,
    m.Aborted: pb.AbortSessionResponse,
}

LENGTHS: Final = {
    "run": {m.ID_BYTES},
    "session": {m.ID_BYTES},
    "request_id": {m.ID_BYTES},
    "device_tag": {0, m.ID_BYTES},
    "checkpoint_sha256": {32},
    "sha256": {32},
    "etag": {0, 32},
    "public_key": {32},
    "signature": {0, 64},
    "ticket": {m.ID_BYTES},
}

MOST_REPEATED: Final = 256
"""Entries of a repeated field: more tasks than any population has."""
MOST_NUMBERS: Final = 10_000
"""Of a repeated number: more classes than any prior is written down for."""

SERVICE: Final = "fedrho.v1.DeviceService"
"""The full name of the service, as gRPC paths carry it."""


CHUNK_TAG: Final = b"\x0a"
"""Field 1 of UploadUpdateRequest, length-delimited."""
LONGEST_VARINT: Final = 5


class MalformedMessage(ValueError):
    """Bytes that are not the message they should be."""


def encode(message: Any) -> bytes:
    """The bytes of any message but the two unions below."""
    return _to_protobuf(message).SerializeToString()


def decode(kind: type[T], data: bytes) -> T:
    """A `kind` from its bytes; raises MalformedMessage."""
    return _from_protobuf(kind, _parse(PROTOBUF[kind], data))


def unknown_terms(spec: bytes) -> frozenset[bytes]:
    """The runs of a serialized PopulationSpec whose PrivacyTerms have a field that this version does not know."""
    tasks = _parse(pb.PopulationSpec, spec).tasks
    return frozenset(task.run for task in tasks if len(UnknownFieldSet(task.terms)) or len(UnknownFieldSet(task.terms.labels)))


def encode_answer(answer: m.Assignment | m.TryLater) -> bytes:
    """The response to a check-in."""
    name = "assignment" if isinstance(answer, m.Assignment) else "try_later"
    return _union(pb.CheckInResponse, name, _to_protobuf(answer))


def decode_answer(data: bytes) -> m.Assignment | m.TryLater:
    parsed = _parse(pb.CheckInResponse, data)
    match parsed.WhichOneof("answer"):
        case "assignment":
            return _from_protobuf(m.Assignment, parsed.assignment)
        case "try_later":
            return _from_protobuf(m.TryLater, parsed.try_later)
    raise MalformedMessage("CheckInResponse holds no answer")


def encode_part(part: bytes | memoryview | m.UploadHeader | m.UploadTrailer) -> bytes:
    """One message of an upload stream; of a chunk's bytes, one copy is made."""
    if isinstance(part, bytes | memoryview):
        return b"".join((CHUNK_TAG, _varint(len(part)), part))
    name = "header" if isinstance(part, m.UploadHeader) else "trailer"
    return _union(pb.UploadUpdateRequest, name, _to_protobuf(part))


def decode_part(data: bytes) -> memoryview | m.UploadHeader | m.UploadTrailer:
    """A chunk is a view of `data`, not a copy; raises MalformedMessage."""
    before = _before_chunk(len(data))
    if before and data.startswith(before):
        return memoryview(data)[len(before) :]
    parsed = _parse(pb.UploadUpdateRequest, data)
    match parsed.WhichOneof("part"):
        case "chunk":
            return memoryview(parsed.chunk)
        case "header":
            return _from_protobuf(m.UploadHeader, parsed.header)
        case "trailer":
            return _from_protobuf(m.UploadTrailer, parsed.trailer)
    raise MalformedMessage("UploadUpdateRequest holds no part")


@lru_cache(maxsize=64)
def _before_chunk(length: int) -> bytes:
    """What stands before the chunk in a message of `length` bytes that is a chunk and nothing else, written as it usually is.

    Empty where no chunk makes that length. Everything written otherwise is protobuf's to read.
    """
    for width in range(1, 1 + LONGEST_VARINT):
        chunk = length - 1 - width
        if chunk >= 0 and len(_varint(chunk)) == width:
            return CHUNK_TAG + _varint(chunk)
    return b""


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def encode_vector(vector: NDArray[np.int32], encoding: m.Encoding) -> bytes:
    """A grid vector as the wire carries it; raises ValueError where a coordinate does not fit."""
    narrow = vector.astype(encoding.dtype)
    if not np.array_equal(narrow, vector):
        raise ValueError(f"a coordinate does not fit into {encoding.name}")
    return narrow.tobytes()


def decode_vector(data: bytes | bytearray, encoding: m.Encoding) -> NDArray[np.int32]:
    """Raises MalformedMessage when the bytes are not a whole number of coordinates."""
    if len(data) % encoding.width:
        raise MalformedMessage(f"{len(data)} bytes are not a whole number of coordinates of {encoding.width}")
    return np.frombuffer(data, dtype=encoding.dtype).astype(np.int32)


def _union(kind: type[Any], name: str, value: Any) -> bytes:
    return bytes(kind(**{name: value}).SerializeToString())


def _parse(kind: type[Any], data: bytes) -> Any:
    parsed = kind()
    try:
        parsed.ParseFromString(data)
    except DecodeError as error:
        raise MalformedMessage(f"not a {kind.__name__}") from error
    return parsed


def _to_protobuf(message: Any) -> Message:
    values = {field.name: _plain(getattr(message, field.name)) for field in fields(message)}
    return PROTOBUF[type(message)](**{name: value for name, value in values.items() if value is not None})


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return _to_protobuf(value) if is_dataclass(value) else value


def _from_protobuf(kind: type[T], parsed: Any) -> T:
    hints: dict[str, Any] = _hints(kind)  # type: ignore[arg-type]
    return kind(**{name: _typed(name, hint, parsed) for name, hint in hints.items()})


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _typed(name: str, hint: Any, parsed: Any) -> Any:
    value = getattr(parsed, name)
    if hint == m.Refusal | None:
        return None if value == 0 else _enum(m.Refusal, name, value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(hint, name, value)
    if get_origin(hint) is tuple:
        return _several(name, get_args(hint)[0], value)
    if hint in (m.DeviceProof | None, m.LabelTerms | None):
        return _from_protobuf(get_args(hint)[0], value) if parsed.HasField(name) else None
    if is_dataclass(hint):
        if not parsed.HasField(name):
            raise MalformedMessage(f"{name} is missing")
        return _from_protobuf(hint, value)  # type: ignore[arg-type]
    if isinstance(value, float) and not math.isfinite(value):
        raise MalformedMessage(f"{name} is not a finite number")
    if name in LENGTHS and len(value) not in LENGTHS[name]:
        raise MalformedMessage(f"{name} has {len(value)} bytes")
    return value


def _several(name: str, kind: type[T], values: Any) -> tuple[T, ...]:
    if len(values) > (MOST_NUMBERS if kind is float else MOST_REPEATED):
        raise MalformedMessage(f"{name} has {len(values)} entries")
    if kind is float:
        if not all(map(math.isfinite, values)):
            raise MalformedMessage(f"{name} holds a number that is not finite")
        return tuple(values)
    return tuple(_from_protobuf(kind, one) for one in values)


def _enum(kind: type[Enum], name: str, value: int) -> Enum:
    try:
        return kind(value)
    except ValueError as error:
        raise MalformedMessage(f"{name} has the unknown value {value}") from error
