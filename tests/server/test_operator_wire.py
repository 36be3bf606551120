"""Bytes of the operator port: what goes in comes out, and what is damaged is refused, by either end."""

from __future__ import annotations

import contextlib
import hashlib
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrho.operator_client import Exported, _assembled
from fedrho.privacy.labels.statement import LabelStatement
from fedrho.privacy.statement import Neighbours, PrivacyStatement, Unit
from fedrho.privacy.zcdp import Rho
from fedrho.protos import codec
from fedrho.protos import operator_pb2 as pb
from fedrho.protos.codec import MalformedMessage
from fedrho.server.operations import operator_wire as wire
from fedrho.server.population import RunView
from fedrho.server.release import RunState
from tests.protos.test_schema import generated, written

STATEMENT = PrivacyStatement(Unit.DEVICE, Neighbours.ZERO_OUT, Rho(0.5), ("one", "two"), exact=False)
VIEW = RunView(
    run=b"r" * 16,
    name="digits",
    algorithm="dp-ftrl",
    model="digits-mlp",
    state=RunState.PAUSED,
    step=3,
    steps=9,
    attempt=2,
    goal=10,
    seats=13,
    filled=0.4,
    drop_out=0.25,
    statement=STATEMENT,
    rho_budget=2.0,
    delta=1e-5,
    opened_at=1e9,
    committed_at=2e9,
    labels=LabelStatement(2.0, mechanisms=("one", "two")),
)
FLOATS = [field.name for field in fields(RunView) if field.type == "float"]


def test_the_committed_code_is_that_of_the_proto() -> None:
    described = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(described)
    text = Path(codec.__file__).with_name("operator.proto").read_text(encoding="utf-8")
    plain = {tuple(part.replace(".fedrho.operator.v1.", "") for part in fact) for fact in generated(described)}
    assert written(text) == plain


@pytest.mark.parametrize("state", RunState)
@pytest.mark.parametrize("combined", [None, STATEMENT])
def test_a_listing_comes_out_as_it_went_in(state: RunState, combined: PrivacyStatement | None) -> None:
    listing = wire.Listing((replace(VIEW, state=state), VIEW, replace(VIEW, labels=None)), combined)
    assert wire.decode_listing(wire.encode_listing(listing)) == listing
    assert wire.decode_watched(wire.encode_watched(listing)) == listing


def test_every_field_of_a_view_is_told() -> None:
    assert {field.name for field in fields(RunView)} == {field.name for field in pb.Run.DESCRIPTOR.fields}


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_refused(name: str, value: float) -> None:
    changes: Any = {name: value}
    with pytest.raises(MalformedMessage, match=name):
        wire.decode_listing(wire.encode_listing(wire.Listing((replace(VIEW, **changes),))))


@pytest.mark.parametrize(
    "damaged",
    [
        pb.Run(run=b"short", state="RUN_STATE_ACTIVE"),
        pb.Run(run=b"r" * 16),
        pb.Run(run=b"r" * 16, state="RUN_STATE_ACTIVE"),
        pb.Run(run=b"r" * 16, state="RUN_STATE_ACTIVE", statement=pb.Statement(unit="planet", neighbours="zero-out")),
        pb.Run(run=b"r" * 16, state="RUN_STATE_ACTIVE", statement=pb.Statement(unit="device", neighbours="zero-out", rho=-1.0)),
        pb.Run(
            run=b"r" * 16,
            state="RUN_STATE_ACTIVE",
            statement=pb.Statement(unit="device", neighbours="zero-out"),
            labels=pb.LabelStatement(epsilon=-1.0),
        ),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(damaged: pb.Run) -> None:
    with pytest.raises(MalformedMessage):
        wire.decode_listing(pb.ListRunsResponse(runs=[damaged]).SerializeToString())


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200), cut=st.integers(0, 300))
def test_any_bytes_are_understood_or_refused(data: bytes, cut: int) -> None:
    whole = wire.encode_listing(wire.Listing((VIEW,), STATEMENT))
    for some in (data, whole[:cut], whole[:cut] + data):
        for decode in (wire.decode_listing, wire.decode_watched, wire.decode_part, wire.decode_nothing):
            with contextlib.suppress(MalformedMessage):
                decode(some)


# -- exports ---------------------------------------------------------------------------------------------------------------------

DATA = bytes(range(12))
HEADER = wire.Header(3, hashlib.sha256(DATA).digest(), '{"model": "m", "step": 1, "rho": 0.5}')


def test_an_export_is_put_together_from_chunks_of_any_size() -> None:
    exported = _assembled(iter([HEADER, DATA[:5], b"", DATA[5:]]))
    assert isinstance(exported, Exported)
    assert exported.weights.tobytes() == DATA
    assert exported.statement["rho"] == 0.5


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [DATA],
        [HEADER],
        [HEADER, DATA[:-1]],
        [HEADER, DATA, b"more"],
        [HEADER, DATA[::-1]],
        [HEADER, HEADER, DATA],
        [replace(HEADER, size=0)],
        [replace(HEADER, size=2**40), DATA],
        [replace(HEADER, sha256=b""), DATA],
        [replace(HEADER, statement_json=""), DATA],
        [replace(HEADER, statement_json="[]"), DATA],
        [replace(HEADER, statement_json='{"model": "m"}'), DATA],
        [replace(HEADER, statement_json="[" * 100_000), DATA],
    ],
)
def test_a_damaged_export_is_refused(parts: list[wire.Header | bytes]) -> None:
    with pytest.raises(MalformedMessage, match="an export"):
        _assembled(iter(parts))
