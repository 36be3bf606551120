"""What may have been seen outside: an object a run, beside the blobs, that names its newest published step and that step's link.

A database that is older, or has another history, would draw second noise for steps that were released; it is not continued.
The step is part of the object's name and the greatest one counts, so that a server that was overtaken can never take it back.
Folders of fedrho 0.1 have one file instead, published.json, which is read until the run's next step is published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fedrho.server.release import StoreConflict
from fedrho.server.storage.blobs import Objects

PREFIX = "published/"
OLD = "published.json"
NAME = re.compile(r"published/([0-9a-f]{2,64})\.(\d{1,9})")


@dataclass(frozen=True)
class Published:
    run: bytes
    step: int
    link: bytes


def publish(objects: Objects, note: Published) -> None:
    """Raises StoreConflict when that step was published with another link, or a greater one by another server.

    Read before the others are listed: who removed this note has put a greater one before.
    """
    key = _key(note.run, note.step)
    objects.put(key, _text(note).encode())
    held = objects.get(key)
    newest = max((step for run, step in _steps(objects) if run == note.run), default=note.step)
    if newest > note.step:
        objects.delete(key)
        raise StoreConflict(f"{objects.shown}: another server leads by now; it published step {newest}, after our {note.step}")
    if _parsed(objects, held) != note:
        raise _another_history(objects, note)
    if note.step > 0:
        objects.delete(_key(note.run, note.step - 1))
    if objects.get(OLD) is not None and _read(objects, OLD).run == note.run:
        objects.delete(OLD)


def read_all(objects: Objects) -> dict[bytes, Published]:
    """The newest note of every run; raises StoreConflict for one that is damaged."""
    notes = {note.run: note for note in [_read(objects, OLD)]} if objects.get(OLD) is not None else {}
    for run, step in sorted(_steps(objects)):
        found = _read(objects, _key(run, step))
        if (found.run, found.step) != (run, step):
            raise _damaged(objects)
        notes[run] = found
    return notes


def tidy(objects: Objects) -> None:
    """Removes notes that a newer one of the same run has overtaken, and what a crash left half-written."""
    newest = dict(sorted(_steps(objects)))  # the greatest step comes last
    for key in objects.keys(PREFIX):
        match = NAME.fullmatch(key)
        if match is None or int(match[2]) < newest[bytes.fromhex(match[1])]:
            objects.delete(key)


def check(objects: Objects, note: Published | None, links: Mapping[int, bytes]) -> None:
    """Raises StoreConflict unless a run with these links by step (none: no such run) may be continued."""
    if note is None:
        if max(links, default=0) > 0:
            raise _damaged(objects)
        return  # nothing was released, or the process ended between creating the run and saying so
    if note.step not in links:
        raise StoreConflict(
            f"{objects.shown}: the database is older than what was published (step {note.step} of run {note.run.hex()[:8]}); "
            "continuing would release steps twice. Put the newest database back, or start a new run in another store"
        )
    if links[note.step] != note.link:
        raise _another_history(objects, note)


def _steps(objects: Objects) -> set[tuple[bytes, int]]:
    found = (NAME.fullmatch(key) for key in objects.keys(PREFIX))
    return {(bytes.fromhex(match[1]), int(match[2])) for match in found if match and len(match[1]) % 2 == 0}


def _key(run: bytes, step: int) -> str:
    return f"{PREFIX}{run.hex()}.{step}"


def _text(note: Published) -> str:
    return json.dumps({"run": note.run.hex(), "step": note.step, "link": note.link.hex()})


def _read(objects: Objects, key: str) -> Published:
    return _parsed(objects, objects.get(key))


def _parsed(objects: Objects, data: bytes | None) -> Published:
    try:
        values = json.loads(data or b"")
        return Published(bytes.fromhex(values["run"]), int(values["step"]), bytes.fromhex(values["link"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise _damaged(objects) from error


def _damaged(objects: Objects) -> StoreConflict:
    return StoreConflict(f"{objects.shown}: the note of what was published is missing or damaged, so what was seen is unknown")


def _another_history(objects: Objects, note: Published) -> StoreConflict:
    return StoreConflict(f"{objects.shown}: step {note.step} was published with another history than the database holds")
