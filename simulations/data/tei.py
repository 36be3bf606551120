"""The Spanish texts from the archives of their editors, which are TEI, a kind of XML: a record a speech, JSON lines in a .gz.

Plays: those whose header says CC0; a speech is an `sp` of one speaker, its verses and paragraphs line by line, without stage
directions. Sittings: those from January to July 2022; a speech is a `u` whose speaker is known, its paragraphs line by line,
without notes.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from fedrho.client.stores.checked import MOST_BYTES

TEI = "{http://www.tei-c.org/ns/1.0}"
LEFT_OUT = {f"{TEI}{tag}" for tag in ("stage", "speaker", "note", "desc", "incident", "kinesic", "vocal", "gap", "head")}
SITTINGS = re.compile(r"ParlaMint-ES_(2022-0[1-7]-\d\d)-.*(?<!\.ana)\.xml")

Record = dict[str, str]


def plays(archive: Path, target: Path) -> None:
    """Raises ValueError for what is no such archive."""
    _written(target, _records(archive, lambda path: path.parent.name == "tei" and path.suffix == ".xml", _play))


def sittings(archive: Path, target: Path) -> None:
    """Raises ValueError for what is no such archive."""
    _written(target, _records(archive, lambda path: bool(SITTINGS.fullmatch(path.name)), _sitting))


def _records(archive: Path, wanted: Callable[[Path], bool], read: Callable[[str, bytes], Iterator[Record]]) -> Iterator[Record]:
    try:
        with tarfile.open(archive) as members:
            chosen = {Path(member.name).name: member for member in members if member.isfile() and wanted(Path(member.name))}
            for name in sorted(chosen):
                file: IO[bytes] | None = members.extractfile(chosen[name])
                if file is not None and chosen[name].size <= MOST_BYTES:
                    yield from read(name, file.read())
    except (tarfile.TarError, ElementTree.ParseError, KeyError) as error:
        raise ValueError(f"not the archive that was expected ({error})") from error


def _written(target: Path, records: Iterator[Record]) -> None:
    with target.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")


def _play(name: str, xml: bytes) -> Iterator[Record]:
    tree = ElementTree.fromstring(xml)
    licence = " ".join(text for part in tree.iter(f"{TEI}licence") for text in part.itertext())
    if "CC0" not in licence:
        return
    for speech in tree.iter(f"{TEI}sp"):
        who = speech.get("who", "").split()
        text = _lines(speech, ("l", "p", "ab"))
        if len(who) == 1 and text:
            yield {"play": name.removesuffix(".xml"), "speaker": who[0].removeprefix("#"), "text": text}


def _sitting(name: str, xml: bytes) -> Iterator[Record]:
    match = SITTINGS.fullmatch(name)
    for speech in ElementTree.fromstring(xml).iter(f"{TEI}u"):
        who, text = speech.get("who", "").removeprefix("#"), _lines(speech, ("seg",))
        if who and text and match:
            yield {"date": match[1], "speaker": who, "text": text}


def _lines(speech: ElementTree.Element, tags: tuple[str, ...]) -> str:
    wanted = {f"{TEI}{tag}" for tag in tags}
    found = (" ".join("".join(_spoken(part)).split()) for part in speech.iter() if part.tag in wanted)
    return "\n".join(line for line in found if line)


def _spoken(part: ElementTree.Element) -> Iterator[str]:
    """The text of an element, without what is nobody's speech; a page that ends is a space."""
    yield part.text or ""
    for child in part:
        if child.tag not in LEFT_OUT:
            yield from _spoken(child)
        yield f" {child.tail}" if child.tag == f"{TEI}pb" and child.tail else child.tail or ""
