"""CSV as raw bytes: what is not changed stays as it is, with its quotes, its line ends and its byte order mark.

Fields are in quotes (with "" for a quote), or without; records end with LF or CRLF. Read as a stream, never as a whole.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from fedrho.console import BadInput

LONGEST: Final = 2**20
"""Bytes of a record; one that is longer has a quote that is never closed."""


@dataclass(frozen=True)
class Record:
    """Raw fields, with their quotes, and the line end. A blank line between records has no fields."""

    number: int
    """Of the row, as spreadsheets count: the header is 1."""
    fields: list[bytes]
    end: bytes


@dataclass(frozen=True)
class Header:
    """The first record of a file, and what stands before it."""

    mark: bytes
    record: Record
    names: list[str]

    def place(self, option: str, name: str) -> int:
        """Raises BadInput where there is no such column."""
        if name not in self.names:
            raise BadInput(f"{option} {name}: there is no such column; the header has: {', '.join(self.names)}")
        return self.names.index(name)

    def quoted(self, place: int) -> bool:
        return self.record.fields[place].startswith(b'"')


class CsvFile:
    """One pass over a file; `digest` at its end tells whether another pass read the same bytes."""

    def __init__(self, path: Path, delimiter: str) -> None:
        if len(delimiter) != 1 or delimiter in '"\r\n' or ord(delimiter) > 127:
            raise BadInput("--delimiter: allowed: one character, such as ',' or ';' or a tab")
        self._path = path
        self._delimiter = delimiter.encode()
        mark = re.escape(self._delimiter)
        field = rb'(?:"(?:[^"]|"")*"|(?!")[^' + mark + rb"\r\n]*)"
        self._one = re.compile(field)
        self._whole = re.compile(field + rb"(?:" + mark + field + rb")*")
        self._hash = hashlib.sha256()
        self.taken = 0
        """Bytes that were read so far."""

    def read(self) -> Iterator[Header | Record]:
        """The header, then every record. Raises BadInput for what is no CSV file, or has rows of another length."""
        with self._path.open("rb") as file:
            header = self._header(file)
            yield header
            number = 1
            while line := self._line(file):
                number += 1
                record = self._record(number, line, file)
                if record.fields and len(record.fields) != len(header.names):
                    fields = f"{len(record.fields)} fields, the header {len(header.names)}"
                    raise BadInput(f"{self._path}: row {number} has {fields}; nothing was done")
                if not record.fields and len(header.names) == 1:
                    record = Record(number, [b""], record.end)
                yield record

    @property
    def digest(self) -> bytes:
        """To compare in memory alone: kept anywhere, it would tell whoever guesses the labels whether the guess is right."""
        return self._hash.digest()

    def join(self, fields: list[bytes], end: bytes) -> bytes:
        return self._delimiter.join(fields) + end

    def written(self, value: str, quoted: bool) -> bytes:
        """A value as a field; in quotes where it needs them or `quoted`, which must not depend on what was there."""
        raw = value.encode()
        if quoted or self._delimiter in raw or any(byte in raw for byte in (b'"', b"\r", b"\n")) or raw != raw.strip():
            return b'"' + raw.replace(b'"', b'""') + b'"'
        return raw

    def _header(self, file: BinaryIO) -> Header:
        line = self._line(file)
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise BadInput(f"{self._path}: is UTF-16; save it as UTF-8")
        mark = codecs.BOM_UTF8 if line.startswith(codecs.BOM_UTF8) else b""
        record = self._record(1, line[len(mark) :], file) if line else None
        if record is None or not record.fields:
            raise BadInput(f"{self._path}: is empty, or begins with a blank line; the first row names the columns")
        try:
            names = [value(field) for field in record.fields]
        except UnicodeDecodeError as error:
            raise BadInput(f"{self._path}: the header is not UTF-8; save it as UTF-8") from error
        again = {name for name in names if names.count(name) > 1}
        if again:
            raise BadInput(f"{self._path}: the header has {', '.join(repr(one) for one in sorted(again))} twice; rename a column")
        return Header(mark, record, names)

    def _line(self, file: BinaryIO) -> bytes:
        line = file.readline(LONGEST)
        self._hash.update(line)
        self.taken += len(line)
        return line

    def _record(self, number: int, line: bytes, file: BinaryIO) -> Record:
        """Lines until every quote is closed."""
        while True:
            body, end = _ended(line)
            if not body:
                return Record(number, [], end)
            if b'"' not in body and b"\r" not in body and (end or len(line) < LONGEST):
                return Record(number, body.split(self._delimiter), end)
            if self._whole.fullmatch(body):
                return Record(number, self._split(body), end)
            more = self._closing(file) if b'"' in body and len(line) < LONGEST else b""
            if not more:
                raise BadInput(
                    f"{self._path}: row {number} is no CSV: a quote is not closed, or stands inside; or a line end is bare"
                )
            line += more

    def _closing(self, file: BinaryIO) -> bytes:
        """Lines up to one with a quote; nothing at the end of the file."""
        lines, length = [], 0
        while length < LONGEST and (line := self._line(file)):
            lines.append(line)
            length += len(line)
            if b'"' in line:
                return b"".join(lines)
        return b""

    def _split(self, body: bytes) -> list[bytes]:
        fields, at = [], 0
        while found := self._one.match(body, at):
            fields.append(found.group())
            at = found.end() + 1
            if found.end() == len(body):
                break
        return fields


def value(field: bytes) -> str:
    """What a field says; raises UnicodeDecodeError."""
    raw = field[1:-1].replace(b'""', b'"') if field.startswith(b'"') else field
    return raw.decode("utf-8")


def _ended(line: bytes) -> tuple[bytes, bytes]:
    for end in (b"\r\n", b"\n"):
        if line.endswith(end):
            return line[: -len(end)], end
    return line, b""
