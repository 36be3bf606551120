"""The page of the messages tells of each service, method, message, field and value what it is, and says it of the right one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from docs.hooks import proto_page


def declared(file: Any) -> Iterator[Any]:
    """Methods, fields and values: whatever has to be explained where it stands."""
    for service in file.services_by_name.values():
        yield from service.methods
    enums = list(file.enum_types_by_name.values())
    for message in file.message_types_by_name.values():
        yield from message.fields
        enums.extend(message.enum_types)
    for enum in enums:
        yield from enum.values


def unexplained(name: str, text: str) -> list[str]:
    """What has no comment, and is not of a type that has a section of its own; 0 of an enum is never sent."""
    notes = proto_page.comments(text)
    missing = []
    for one in declared(import_module(f"fedrho.protos.{name}_pb2").DESCRIPTOR):
        of_a_type = getattr(one, "message_type", None) or getattr(one, "enum_type", None)
        if not of_a_type and getattr(one, "number", 1) != 0 and not notes.get(named(one)):
            missing.append(named(one))
    return missing


def named(one: Any) -> str:
    if hasattr(one, "containing_type"):
        return f"{proto_page.path(one.containing_type)}.{one.name}"
    return f"{proto_page.path(one.type)}.{one.name}" if hasattr(one, "type") else proto_page.path(one)


def text_of(name: str) -> str:
    return (proto_page.PROTOS / f"{name}.proto").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", proto_page.FILES)
def test_every_method_field_and_value_is_explained(name: str) -> None:
    assert unexplained(name, text_of(name)) == []


def test_a_comment_that_is_missing_is_missed() -> None:
    text = text_of("fedrho")
    assert unexplained("fedrho", re.sub(r"(uint64 total_bytes = 2;).*", r"\1", text)) == ["UploadHeader.total_bytes"]
    assert unexplained("fedrho", re.sub(r" *// What became of a session;.*\n", "", text)) == ["DeviceService.GetUploadStatus"]
    assert unexplained("fedrho", re.sub(r"(NO_SEATS = 1;).*", r"\1", text)) == ["TryLater.Reason.NO_SEATS"]


def test_a_comment_is_of_what_it_stands_at() -> None:
    notes = proto_page.comments(text_of("fedrho"))
    assert notes["DeviceService.CheckIn"].startswith('"I am willing to take part."')
    assert notes["PrivacyTerms.labels"].endswith("must not take part")
    assert notes["LabelTerms"].startswith("Local differential privacy of labels.")
    assert notes["TryLater.Reason.PAUSED"] == "its operator has paused the run"
    assert notes[""].startswith("The device service of fedrho")
    assert "device clocks are never trusted" in notes[""]


def test_every_proto_is_on_the_page_with_every_number() -> None:
    assert {path.stem for path in proto_page.PROTOS.glob("*.proto")} == set(proto_page.FILES)
    page = proto_page.page()
    for name in proto_page.FILES:
        for one in declared(import_module(f"fedrho.protos.{name}_pb2").DESCRIPTOR):
            row = f"| {one.number} | `{one.name}` |" if hasattr(one, "number") else f"| `{one.name}` |"
            assert row in page
    assert set(re.findall(r"\(#([\w.]+)\)", page)) <= set(re.findall(r"\{ #([\w.]+) \}", page))
