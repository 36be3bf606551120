"""The page of the messages: what stands on the wire, from the descriptors, and what it means, from comments of the .proto files.

Structure is never read from the text: services, fields, numbers and types are those of the generated code that the program runs.
Of the text only comments are taken. Those of a declaration stand above it, or behind it and on lines below with nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.descriptor_pb2 import FieldDescriptorProto

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PROTOS: Final = Path(__file__).parents[2] / "protos"
FILES: Final = {
    "fedrho": "What devices ask of a server. [Protocol](protocol.md) tells the story of a visit.",
    "operator": "What operators ask of a server, on a port of its own. [Operating a server](operating.md) says who gets in.",
    "shard": "What a coordinator asks of its shards. [Architecture](architecture.md) says why there are any.",
}
"""The .proto files, each with what its service is for."""
PAGE: Final = "messages.md"
INTRODUCTION: Final = """---
description: Every service, message, field and value of the three protocols
---

# Messages

Every service, message and field of the three protocols, as the program has them, with the comments of their `.proto` files. A
client of your own is generated from the files themselves: they lie in `protos/` of the repository, and of every installation.
"""
DECLARED: Final = re.compile(r"\s*(?:(message|enum|oneof|service)\s+(\w+)\s*\{|rpc\s+(\w+)\(|(?:[\w.]+\s+)*?(\w+)\s*=\s*\d+;)")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """MkDocs asks which pages there are: this one, too."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, PAGE, content=page()))


def page() -> str:
    """All three files as one page of Markdown."""
    return INTRODUCTION + "".join(part for name in FILES for part in sections(name))


def sections(name: str) -> Iterator[str]:
    """The services, then the messages and enums, of `name`.proto."""
    file = import_module(f"fedrho.protos.{name}_pb2").DESCRIPTOR
    notes = comments((PROTOS / f"{name}.proto").read_text(encoding="utf-8"))
    yield f"\n## {file.package}\n\n{FILES[name]}\n\n{as_paragraphs(notes[''])}\n"
    for service in file.services_by_name.values():
        yield from service_section(service, notes)
    for message in file.message_types_by_name.values():
        yield from message_section(message, notes)
    for enum in file.enum_types_by_name.values():
        yield from enum_section(enum, notes)


def service_section(service: Any, notes: Mapping[str, str]) -> Iterator[str]:
    yield heading(service, notes)
    yield "\n| method | meaning | asks | answers |\n|---|---|---|---|\n"
    for method in service.methods:
        asks = streamed(method.input_type, method.client_streaming)
        says = streamed(method.output_type, method.server_streaming)
        yield f"| `{method.name}` | {cell(notes.get(path(method), ''))} | {asks} | {says} |\n"


def message_section(message: Any, notes: Mapping[str, str]) -> Iterator[str]:
    yield heading(message, notes)
    if message.fields:
        yield "\n| number | field | type | meaning |\n|--:|---|---|---|\n"
    for field in message.fields:
        note = notes.get(f"{path(message)}.{field.name}", "")
        yield f"| {field.number} | `{field.name}` | {type_of(field)} | {cell(note)} |\n"
    for enum in message.enum_types:
        yield from enum_section(enum, notes)


def enum_section(enum: Any, notes: Mapping[str, str]) -> Iterator[str]:
    yield heading(enum, notes)
    yield "\n| number | value | meaning |\n|--:|---|---|\n"
    for value in enum.values:
        note = notes.get(f"{path(enum)}.{value.name}", "")
        yield f"| {value.number} | `{value.name}` | {cell(note or unspecified(value))} |\n"


def heading(declared: Any, notes: Mapping[str, str]) -> str:
    return f"\n### {path(declared)} {{ #{declared.full_name} }}\n\n{as_paragraphs(notes.get(path(declared), ''))}"


def path(declared: Any) -> str:
    """The name within its file."""
    file = declared.file if hasattr(declared, "file") else declared.containing_service.file
    name: str = declared.full_name
    return name.removeprefix(f"{file.package}.")


def streamed(message: Any, stream: bool) -> str:
    return f"{'stream of ' if stream else ''}{link(message)}"


def link(declared: Any) -> str:
    return f"[{path(declared)}](#{declared.full_name})"


def type_of(field: Any) -> str:
    declared = field.message_type or field.enum_type
    name = link(declared) if declared else FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    one_of = f", one of `{field.containing_oneof.name}`" if field.containing_oneof else ""
    return f"{'list of ' if field.is_repeated else ''}{name}{one_of}"


def unspecified(value: Any) -> str:
    return "never sent: what a reader sees where there is nothing" if value.number == 0 else ""


def cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def as_paragraphs(text: str) -> str:
    """Comments as Markdown: an indented line that does not go on with a sentence begins an item of a list."""
    lines = (f"\n- {line.strip()}" if re.match(r"  [A-Z`]", line) else line for line in text.splitlines())
    return "\n".join(lines) + "\n" if text else ""


def comments(text: str) -> dict[str, str]:
    """The comment of every declaration by its path in the file; of the file itself by the empty path."""
    notes: dict[str, str] = {}
    scopes: list[tuple[str, str]] = []
    above: list[str] = []
    last = None
    for line in text.splitlines():
        code, slashes, comment = line.partition("//")
        found = DECLARED.match(code)
        if code.strip().startswith("syntax"):
            notes[""], above = "\n".join(above), []
        elif found:
            kind, opened, method, field = found.groups()
            named = ".".join([name for scope, name in scopes if scope != "oneof"] + [opened or method or field])
            last = named if slashes else None
            notes[named] = "\n".join([*above, comment.removeprefix(" ")] if slashes else above)
            above = []
            if kind:
                scopes.append((kind, opened))
        elif not code.strip() and slashes and last and len(code) > 8:
            notes[last] += f"\n{comment.strip()}"
        elif not code.strip() and slashes:
            above.append(comment.removeprefix(" "))
        if not slashes and not found:
            above, last = [], None
        for _ in range(code.count("}")):
            scopes.pop()
    return {name: note for name, note in notes.items() if note}
