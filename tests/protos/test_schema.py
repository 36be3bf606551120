"""Three tellings of one protocol agree: fedrho.proto, the committed generated code, and the dataclasses."""

from __future__ import annotations

import re
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto

from fedrho.protos import codec
from fedrho.protos import fedrho_pb2 as pb
from fedrho.protos import messages as m

PROTO = Path(codec.__file__).with_name("fedrho.proto")

ENUMS: dict[type[Enum], str] = {
    m.Encoding: "Encoding",
    m.LaterReason: "TryLater.Reason",
    m.Go: "BeginUploadResponse.Answer",
    m.Refusal: "Refusal",
    m.SessionStatus: "SessionStatus",
    m.AbortReason: "AbortSessionRequest.Reason",
}
UNIONS = {"CheckInResponse", "UploadUpdateRequest"}

Facts = set[tuple[str, ...]]


def written(text: str) -> Facts:
    """Every fact of a .proto: (message or enum, field or value, type, number, oneof) and (method, request, response)."""
    facts: Facts = set()
    scopes: list[tuple[str, str]] = []
    text = re.sub(r"//.*", "", text)
    opened = r"(?P<kind>message|enum|oneof|service)\s+(?P<name>\w+)\s*\{"
    method = r"rpc\s+(?P<rpc>\w+)\((?P<ask>[\w ]+)\)\s+returns\s+\((?P<say>[\w ]+)\);"
    field = r"(?:(?P<type>(?:repeated\s+)?[\w.]+)\s+)?(?P<field>\w+)\s*=\s*(?P<number>\d+);"
    for found in re.finditer(rf"{opened}|{method}|reserved\s+(?P<reserved>[\d, ]+);|{field}|\}}", text):
        part = found.groupdict()
        path = ".".join(name for kind, name in scopes if kind != "oneof")
        if part["kind"]:
            scopes.append((part["kind"], part["name"]))
        elif part["rpc"]:
            facts.add(("rpc", part["rpc"], part["ask"], part["say"]))
        elif part["reserved"]:
            facts |= {("reserved", path, number.strip()) for number in part["reserved"].split(",")}
        elif part["field"] and scopes:
            group = scopes[-1][1] if scopes[-1][0] == "oneof" else ""
            facts.add((path, part["field"], part["type"] or "", part["number"], group))
        elif not part["field"]:
            scopes.pop()
    return facts


def generated(file: FileDescriptorProto) -> Facts:
    """The same facts, out of the descriptor."""
    facts: Facts = set()
    for service in file.service:
        for method in service.method:
            ask = ("stream " if method.client_streaming else "") + method.input_type.removeprefix(".fedrho.v1.")
            say = ("stream " if method.server_streaming else "") + method.output_type.removeprefix(".fedrho.v1.")
            facts.add(("rpc", method.name, ask, say))
    for enum in file.enum_type:
        facts |= enum_facts("", enum)
    for message in file.message_type:
        facts |= message_facts(message)
    return facts


def enum_facts(scope: str, enum: EnumDescriptorProto) -> Facts:
    return {(scope + enum.name, value.name, "", str(value.number), "") for value in enum.value}


def message_facts(message: DescriptorProto) -> Facts:
    facts: Facts = {("reserved", message.name, str(span.start)) for span in message.reserved_range}
    for field in message.field:
        group = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        facts.add((message.name, field.name, type_name(message.name, field), str(field.number), group))
    for enum in message.enum_type:
        facts |= enum_facts(f"{message.name}.", enum)
    return facts


def type_name(scope: str, field: FieldDescriptorProto) -> str:
    repeated = "repeated " if field.label == FieldDescriptorProto.Label.LABEL_REPEATED else ""
    if field.type_name:
        return repeated + field.type_name.removeprefix(".fedrho.v1.").removeprefix(f"{scope}.")
    return repeated + FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def descriptor() -> FileDescriptorProto:
    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    return file


def test_generated_code_is_what_the_proto_says() -> None:
    assert generated(descriptor()) == written(PROTO.read_text(encoding="utf-8"))


def test_exactly_the_tuples_are_repeated_and_nothing_is_optional() -> None:
    """The codec would drop what it does not expect, and the parser above knows no `optional`."""
    several = FieldDescriptorProto.Label.LABEL_REPEATED
    found = {(kind.name, field.name) for kind in descriptor().message_type for field in kind.field if field.label == several}
    assert found == {
        (codec.PROTOBUF[kind].DESCRIPTOR.name, name)
        for kind in codec.PROTOBUF
        for name, hint in get_type_hints(kind).items()
        if get_origin(hint) is tuple
    }
    assert len(found) == 3
    assert not any(field.proto3_optional for kind in descriptor().message_type for field in kind.field)


def test_service_has_the_name_that_paths_carry() -> None:
    file = descriptor()
    assert [f"{file.package}.{service.name}" for service in file.service] == [codec.SERVICE]


@pytest.mark.parametrize("kind", codec.PROTOBUF, ids=lambda kind: kind.__name__)
def test_dataclass_and_message_have_the_same_fields(kind: type[Any]) -> None:
    assert {field.name for field in fields(kind)} == set(codec.PROTOBUF[kind].DESCRIPTOR.fields_by_name)


def test_every_message_of_the_proto_has_one_dataclass_or_is_a_union() -> None:
    names = [kind.DESCRIPTOR.name for kind in codec.PROTOBUF.values()]
    assert sorted([*names, *UNIONS]) == sorted(message.name for message in descriptor().message_type)


@pytest.mark.parametrize("kind", ENUMS, ids=lambda kind: kind.__name__)
def test_enum_has_the_names_and_numbers_of_the_wire(kind: type[Enum]) -> None:
    facts = written(PROTO.read_text(encoding="utf-8"))
    values = {
        name: int(number) for path, name, _, number, *_ in (fact for fact in facts if len(fact) == 5) if path == ENUMS[kind]
    }
    zero = [name for name, number in values.items() if number == 0]
    assert len(zero) == 1
    assert zero[0].endswith("_UNSPECIFIED")
    assert {member.name: member.value for member in kind} == {name: number for name, number in values.items() if number}


def test_every_enum_of_the_proto_is_an_enum_of_the_messages() -> None:
    facts = written(PROTO.read_text(encoding="utf-8"))
    assert {path for path, name, *_ in facts if name.endswith("_UNSPECIFIED")} == set(ENUMS.values())
