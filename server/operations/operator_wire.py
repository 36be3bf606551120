"""Bytes of the operator port, both ends of it; the only file that knows `operator_pb2`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message

from fedrho.privacy.labels.statement import LabelStatement
from fedrho.privacy.statement import Neighbours, PrivacyStatement, Unit
from fedrho.privacy.zcdp import Rho
from fedrho.protos import operator_pb2 as pb
from fedrho.protos.codec import MalformedMessage
from fedrho.protos.messages import ID_BYTES
from fedrho.server.population import RunView
from fedrho.server.release import RunState

SERVICE: Final = str(pb.DESCRIPTOR.services_by_name["OperatorService"].full_name)
AUTHORIZATION: Final = "authorization"
CHUNK_BYTES: Final = 1024 * 1024

STATES: Final[dict[RunState, Any]] = {state: pb.RunState.Value(f"RUN_STATE_{state.name}") for state in RunState}
AS_THEY_ARE: Final = [field.name for field in fields(RunView) if field.name not in ("state", "statement", "labels")]

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Listing:
    """All runs, and what may be claimed about them together."""

    runs: tuple[RunView, ...]
    combined: PrivacyStatement | None = None


@dataclass(frozen=True)
class Header:
    """What an export begins with: coordinates, SHA-256 of the bytes that follow, and the statement as JSON."""

    size: int
    sha256: bytes
    statement_json: str


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata that every call needs."""
    return ((AUTHORIZATION, f"Bearer {token}"),)


def path(method: str) -> str:
    return f"/{SERVICE}/{method}"


# -- requests and answers --------------------------------------------------------------------------------------------------------

RUN_REQUESTS: Final[dict[str, type[Any]]] = {
    "PauseRun": pb.PauseRunRequest,
    "ResumeRun": pb.ResumeRunRequest,
    "CancelRun": pb.CancelRunRequest,
    "ExportModel": pb.ExportModelRequest,
}
DONE: Final = b""
"""The answer of a call that only does something."""


def encode_run(method: str, run: bytes) -> bytes:
    """The request of a method that is about one run."""
    return bytes(RUN_REQUESTS[method](run=run).SerializeToString())


def decode_run(method: str, data: bytes) -> bytes:
    """Raises MalformedMessage."""
    run: bytes = _parse(RUN_REQUESTS[method], data).run
    if len(run) != ID_BYTES:
        raise MalformedMessage(f"run has {len(run)} bytes")
    return run


def encode_nothing() -> bytes:
    """The request of ListRuns or WatchRuns."""
    return b""


def decode_nothing(data: bytes) -> None:
    """Raises MalformedMessage for what is no message at all."""
    _parse(pb.ListRunsRequest, data)


def encode_listing(listing: Listing) -> bytes:
    """The answer of ListRuns."""
    return bytes(_listing(listing).SerializeToString())


def decode_listing(data: bytes) -> Listing:
    """Raises MalformedMessage."""
    return _read_listing(_parse(pb.ListRunsResponse, data))


def encode_watched(listing: Listing) -> bytes:
    """One message of WatchRuns."""
    return bytes(pb.WatchRunsResponse(runs=_listing(listing)).SerializeToString())


def decode_watched(data: bytes) -> Listing:
    return _read_listing(_parse(pb.WatchRunsResponse, data).runs)


def encode_part(part: Header | bytes) -> bytes:
    """One message of ExportModel."""
    if isinstance(part, bytes):
        return bytes(pb.ExportModelResponse(chunk=part).SerializeToString())
    header = pb.ExportHeader(size=part.size, sha256=part.sha256, statement_json=part.statement_json)
    return bytes(pb.ExportModelResponse(header=header).SerializeToString())


def decode_part(data: bytes) -> Header | bytes:
    """Raises MalformedMessage."""
    part = _parse(pb.ExportModelResponse, data)
    match part.WhichOneof("part"):
        case "header":
            return Header(part.header.size, part.header.sha256, part.header.statement_json)
        case "chunk":
            return part.chunk
    raise MalformedMessage("ExportModelResponse holds no part")


# -- helpers ---------------------------------------------------------------------------------------------------------------------


def _parse(kind: type[M], data: bytes) -> M:
    parsed = kind()
    try:
        parsed.ParseFromString(data)
    except DecodeError as error:
        raise MalformedMessage(f"not a {kind.__name__}") from error
    return parsed


def _listing(listing: Listing) -> pb.ListRunsResponse:
    combined = None if listing.combined is None else _statement(listing.combined)
    return pb.ListRunsResponse(runs=[_run(view) for view in listing.runs], combined=combined)


def _run(view: RunView) -> pb.Run:
    plain = {name: getattr(view, name) for name in AS_THEY_ARE}
    labels = None if view.labels is None else _label_statement(view.labels)
    return pb.Run(**plain, state=STATES[view.state], statement=_statement(view.statement), labels=labels)


def _label_statement(labels: LabelStatement) -> pb.LabelStatement:
    return pb.LabelStatement(
        epsilon=labels.epsilon, delta=labels.delta, mechanisms=labels.mechanisms, assumptions=labels.assumptions
    )


def _statement(statement: PrivacyStatement) -> pb.Statement:
    return pb.Statement(
        unit=statement.unit.value,
        neighbours=statement.neighbours.value,
        rho=statement.rho,
        assumptions=statement.assumptions,
        exact=statement.exact,
    )


def _read_listing(parsed: pb.ListRunsResponse) -> Listing:
    combined = _read_statement(parsed.combined) if parsed.HasField("combined") else None
    return Listing(tuple(_read_run(run) for run in parsed.runs), combined)


def _read_run(parsed: pb.Run) -> RunView:
    plain = {name: getattr(parsed, name) for name in AS_THEY_ARE}
    wrong = [name for name, value in plain.items() if isinstance(value, float) and not math.isfinite(value)]
    states = [state for state, number in STATES.items() if number == parsed.state]
    if wrong or not states or len(parsed.run) != ID_BYTES:
        raise MalformedMessage(f"a run has a bad {(wrong or ['state or name'])[0]}")
    labels = _read_label_statement(parsed.labels) if parsed.HasField("labels") else None
    return RunView(**plain, state=states[0], statement=_read_statement(parsed.statement), labels=labels)


def _read_label_statement(parsed: pb.LabelStatement) -> LabelStatement:
    try:
        return LabelStatement(parsed.epsilon, parsed.delta, tuple(parsed.mechanisms), tuple(parsed.assumptions))
    except ValueError as error:
        raise MalformedMessage("a statement about labels makes no sense") from error


def _read_statement(parsed: pb.Statement) -> PrivacyStatement:
    try:
        unit, neighbours = Unit(parsed.unit), Neighbours(parsed.neighbours)
        return PrivacyStatement(unit, neighbours, Rho(parsed.rho), tuple(parsed.assumptions), parsed.exact)
    except ValueError as error:
        raise MalformedMessage("a statement makes no sense") from error
