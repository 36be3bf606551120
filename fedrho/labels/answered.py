"""Which answers a file's labels were given: NAME.answers.json beside it, written before a label is answered.

A second answer costs its epsilon again, whoever asks for it and wherever it goes. Nothing in the note depends on a label:
above all it has no digest of the file, with which guesses of labels could be checked.
"""

from __future__ import annotations

import fcntl
import glob
import json
import math
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from fedrho.console import BadInput
from fedrho.privacy.labels.statement import LabelStatement

MOST_DELTA: Final = 0.999
SCRATCH_BYTES: Final = 4
"""Of a scratch file's name, in hexadecimal digits after a dot."""


@dataclass(frozen=True)
class Answered:
    """One answer to every label of a column."""

    label: str
    mechanism: str
    epsilon: float
    out: str
    delta: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {"label": self.label, "mechanism": self.mechanism, "epsilon": self.epsilon, "out": self.out, "delta": self.delta}


def note_of(data: Path) -> Path:
    """Beside the file itself, whatever link leads to it."""
    real = data.resolve()
    return real.with_name(f"{real.name}.answers.json")


def former(data: Path) -> list[Answered]:
    """Raises BadInput where the note cannot be read: nobody knows then what the labels have paid."""
    note = note_of(data)
    try:
        entries = json.loads(note.read_text(encoding="utf-8"))["answers"]
        return [_entry(one) for one in entries]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{note}: cannot be read; it says what the labels were answered before, so mend it from a copy") from error


def with_deltas(statement: LabelStatement, earlier: Sequence[Answered]) -> LabelStatement:
    """Deltas of earlier trainings add up as epsilons do; about all labels of one person nothing is claimed then."""
    delta = sum(one.delta for one in earlier)
    if delta == 0:
        return statement
    return replace(statement, delta=min(statement.delta + delta, MOST_DELTA), user_epsilon=None)


@contextmanager
def alone(data: Path) -> Iterator[None]:
    """No other process answers these labels meanwhile; raises BadInput where one does."""
    with data.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(f"{data}: another process is answering these labels; wait for it") from error
        yield


def remember(data: Path, answers: list[Answered]) -> None:
    """Durable when it returns; raises BadInput where the folder cannot be written."""
    note = note_of(data)
    text = json.dumps({"answers": [one.as_json() for one in answers]}, indent=2) + "\n"
    try:
        if answers:
            write_whole(note, text.encode(), replace=True)
        else:
            note.unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(
            f"{note}: cannot be written ({error.strerror}); what labels were answered must be noted beside them"
        ) from error


def write_whole(path: Path, content: bytes, *, replace: bool) -> None:
    """Whole or not at all; raises FileExistsError where there is one and it is not to be replaced."""
    scratch = scratch_of(path)
    try:
        with scratch.open("xb") as file:
            hold(file)
            file.write(content)
            file.flush()
            publish(scratch, path, replace=replace)
    finally:
        scratch.unlink(missing_ok=True)


def publish(scratch: Path, path: Path, *, replace: bool) -> None:
    """Gives a file its name once it is on the disk; raises FileExistsError as above."""
    with scratch.open("rb") as file:
        os.fsync(file.fileno())
    if replace:
        scratch.replace(path)
    else:
        os.link(scratch, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def scratch_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(SCRATCH_BYTES)}")


def hold(file: BinaryIO) -> None:
    """Whoever sweeps leaves a file alone that is being written; the lock ends with the process, however that ends."""
    fcntl.flock(file, fcntl.LOCK_EX)


def sweep(path: Path) -> None:
    """What processes that were killed have left of a file goes; what it holds nobody can use, and its answers are paid for."""
    for scratch in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 2 * SCRATCH_BYTES}"):
        with suppress(OSError), scratch.open("rb") as file:  # BlockingIOError: it is being written
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            scratch.unlink()


def _entry(one: dict[str, Any]) -> Answered:
    return Answered(one["label"], one["mechanism"], _epsilon(one["epsilon"]), one["out"], _epsilon(one.get("delta", 0.0)))


def _epsilon(told: object) -> float:
    if not isinstance(told, (int, float)) or not 0 <= told < math.inf:
        raise ValueError(told)
    return float(told)
