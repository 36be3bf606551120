"""Labels of a CSV file answered: read once and checked, answered in chunks, written beside a statement; all of it or nothing.

    read (labels, priors, persons) ── checks ──> note beside the data ──> answers in chunks ──> statement, then OUT

No message names a label, or a row because of its label, for messages are kept in logs. What is refused because of labels, one
that is no class or rows grouped by class, is said to whoever holds them, and nothing is written then.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from fedrho.console import BadInput
from fedrho.labels.answered import (
    Answered,
    alone,
    former,
    hold,
    note_of,
    publish,
    remember,
    scratch_of,
    sweep,
    with_deltas,
    write_whole,
)
from fedrho.labels.csv_file import CsvFile, Header, Record, value
from fedrho.labels.order import tells_labels
from fedrho.places import ASK
from fedrho.privacy.labels.chance import SystemChance
from fedrho.privacy.labels.per_bit import PerBit
from fedrho.privacy.labels.private import PrivateLabels
from fedrho.privacy.progress import Progress, unwatched

if TYPE_CHECKING:
    from fedrho.privacy.labels.randomizers import Randomizer
    from fedrho.privacy.labels.statement import LabelStatement

CHUNK: Final = 2**15
"""Rows that are answered at a time, at most;"""
ENTRIES: Final = 2**21
"""and rows times classes, each of which takes some 50 bytes meanwhile."""
SEEN: Final = 4096
"""Rows that are read before whoever looks on is told."""


@dataclass(frozen=True)
class Question:
    """What is asked: everything but the labels."""

    data: Path
    out: Path
    label: str
    classes: list[str]
    randomizer: Randomizer
    mechanism: str
    prior: list[float] | None = None
    prior_columns: list[str] | None = None
    user: str | None = None
    delimiter: str = ","
    shuffle: bool = False
    public_order: bool = False
    again: bool = False

    @property
    def statement_file(self) -> Path:
        return self.out.with_name(f"{self.out.name}.statement.json")

    @property
    def names(self) -> list[str]:
        """The columns that take the place of the label's: one; of bits one for each class."""
        return [f"{self.label}={name}" for name in self.classes] if self.by_bits else [self.label]

    @property
    def by_bits(self) -> bool:
        return isinstance(self.randomizer, PerBit)


@dataclass(frozen=True)
class Read:
    """What the first pass found; `digest` is compared with the second's, and leaves the process in no way."""

    private: PrivateLabels
    priors: NDArray[np.float64]
    """Of shape (n, K), or (1, K) where one is for all."""
    digest: bytes


def answer(question: Question, progress: Progress = unwatched) -> dict[str, Any]:
    """What `--json` shows. Raises BadInput; what fails leaves neither OUT nor a debt behind.

    Guarantees that a process that is killed leaves the note of an answer, or none was written anywhere.
    """
    try:
        _check_places(question)
        with alone(question.data):
            return _answer_alone(question, progress)
    except OSError as error:
        reason = f"{error.filename or question.data}: {error.strerror or error}"
        raise BadInput(f"{reason}; {ASK if isinstance(error, PermissionError) else 'nothing was answered; mend that'}") from error


def _answer_alone(question: Question, progress: Progress) -> dict[str, Any]:
    for path in (question.out, question.statement_file, note_of(question.data)):
        sweep(path)
    earlier = former(question.data)
    same = _before(question, earlier)
    read = read_data(question, same, progress)
    latest = Answered(question.label, question.randomizer.name, question.randomizer.epsilon, question.out.name)
    remember(question.data, [*earlier, latest])
    scratch = scratch_of(question.out)
    try:
        with scratch.open("xb") as file:
            hold(file)
            size = Writer(question, read, file, progress).write()
            file.flush()
            statement = with_deltas(read.private.ledger.statement(_assumptions(question)), same)
            summary = summary_values(question, statement, len(read.private), size)
            write_whole(question.statement_file, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode(), replace=False)
            publish(scratch, question.out, replace=False)
    except BaseException as error:
        if not question.out.exists():  # nobody saw an answer
            scratch.unlink(missing_ok=True)
            question.statement_file.unlink(missing_ok=True)
            remember(question.data, earlier)
        if isinstance(error, OSError):
            raise BadInput(f"--out {question.out}: cannot be written ({error.strerror or error})") from error
        raise
    finally:
        scratch.unlink(missing_ok=True)
    return summary


def summary_values(question: Question, statement: LabelStatement, records: int, size: float) -> dict[str, Any]:
    """For `--json` and the file of the statement: nothing in it depends on a label, not even on a noisy one."""
    return {
        "records": records,
        "label": question.label,
        "classes": question.classes,
        "mechanism": question.mechanism,
        "epsilon": question.randomizer.epsilon,
        "epsilon_total": statement.epsilon,
        "prior": question.prior or question.prior_columns or "uniform",
        "mean_k": size,
        "out": question.out.name,
        "statement": statement.to_json(),
    }


# -- checks before a label is read --------------------------------------------------------------------------------------------


def _check_places(question: Question) -> None:
    if question.data.is_dir():
        raise BadInput(f"{question.data}: is a folder; name a CSV file in it")
    if not question.data.is_file():
        raise BadInput(f"{question.data}: there is no such file; name a CSV file with a header")
    if question.statement_file.exists() and not question.out.exists():
        raise BadInput(
            f"--out {question.out}: {question.statement_file} is there and tells of answers that are not: an answer was broken "
            "off between the two, or its file was moved; remove the statement, or choose another name, and --again pays once more"
        )
    for path in (question.out, question.statement_file):
        if path.exists() or path.is_symlink():
            raise BadInput(
                f"--out {question.out}: {path} is there already; what it tells stays told, and a second answer of these labels "
                "costs epsilon again: keep the first, or choose another name and add --again"
            )
    if question.out.resolve() == note_of(question.data):
        raise BadInput(f"--out {question.out}: is where answers of these labels are noted; choose another name")
    if not question.out.parent.is_dir():
        raise BadInput(f"--out {question.out}: there is no folder {question.out.parent}")


def _before(question: Question, earlier: list[Answered]) -> list[Answered]:
    """Earlier answers of these labels; raises BadInput where there are some and nobody said that they are known."""
    same = [one for one in earlier if one.label == question.label]
    if same and not question.again:
        told = ", ".join(f"{one.out} (epsilon {one.epsilon:g})" for one in same)
        total = math.fsum([question.randomizer.epsilon, *(one.epsilon for one in same)])
        there = [one.out for one in same if _is_there(question, one)]
        first = f"use {there[0]}, or add --again" if there else f"add --again if you want it ({_gone(same)})"
        raise BadInput(
            f"{question.data}: these labels were answered before: {told}; a second answer costs epsilon again, {total:g} in all: "
            f"{first} ({note_of(question.data).name} keeps the account)"
        )
    return same


def _is_there(question: Question, one: Answered) -> bool:
    """Whether the file of an earlier answer is where such files are; the account has no more than its name."""
    return any((folder / one.out).exists() for folder in (question.out.parent, question.data.resolve().parent))


def _gone(same: list[Answered]) -> str:
    if len(same) == 1:
        first = same[0].out
        return f"{first} is not here: it was broken off before its file was written, or the file was moved; it counts either way"
    return "none of these files is here: each was broken off before it was written, or moved; they count either way"


def _assumptions(question: Question) -> Iterator[str]:
    yield f"these labels are answered by nobody else, and {note_of(question.data).name} lists every answer that they were given"
    if question.shuffle:
        yield "the rows were written in a random order; in whatever order they are elsewhere, it does not tell the labels"
    elif question.public_order:
        yield "the order of the rows was decided without the labels, as was said by --public-order"
    if question.prior is not None or question.prior_columns is not None:
        yield "the prior that was given is made without these labels"


# -- the first pass -----------------------------------------------------------------------------------------------------------


def read_data(question: Question, same: list[Answered], progress: Progress = unwatched) -> Read:
    """Raises BadInput for what is wrong with the file, before anything is drawn."""
    file = CsvFile(question.data, question.delimiter)
    rows = file.read()
    columns = _Columns(question, _header(rows))
    size = question.data.stat().st_size
    for record in rows:
        assert isinstance(record, Record)
        if record.number % SEEN == 2:
            progress("byte", min(file.taken, size), size, "reading labels")
        if record.fields:
            columns.take(record)
    labels, users, priors = columns.arrays()
    if not question.public_order and tells_labels(labels, question.classes):
        raise BadInput(
            f"{question.data}: the rows stand in groups by {question.label}, so their order would tell the labels; add --shuffle "
            "to write them in a random order, or --public-order where the order was decided without the labels"
        )
    budget = math.fsum([question.randomizer.epsilon, *(one.epsilon for one in same)])
    private = PrivateLabels(labels, len(question.classes), budget, users)
    for one in same:
        private.ledger.charge(np.arange(len(labels)), one.epsilon, one.mechanism)
    return Read(private, priors, file.digest)


class _Columns:
    """Collects labels, persons and priors of all rows."""

    def __init__(self, question: Question, header: Header) -> None:
        self._question = question
        self._label = header.place("--label", question.label)
        self._user = None if question.user is None else header.place("--user", question.user)
        self._priors = [header.place("--prior-columns", name) for name in question.prior_columns or ()]
        self._check(header)
        self._codes = {name: code for code, name in enumerate(question.classes)}
        self._persons: dict[bytes, int] = {}
        self._labels, self._users, self._numbers = array("q"), array("q"), array("d")

    def _check(self, header: Header) -> None:
        if self._label in (self._user, *self._priors):
            raise BadInput(f"--label {self._question.label}: is a private column, and cannot be --user or a prior as well")
        if self._priors and len(self._priors) != len(self._question.classes):
            raise BadInput(
                f"--prior-columns: {len(self._priors)} columns for {len(self._question.classes)} classes; "
                "give one for each, in the order of --classes"
            )
        taken = (set(header.names) - {self._question.label}) & set(self._question.names)
        if taken:
            raise BadInput(f"{self._question.data}: has a column {min(taken)!r} already; rename it")

    def take(self, record: Record) -> None:
        self._labels.append(self._code(record.fields[self._label]))
        if self._user is not None:
            self._users.append(self._persons.setdefault(_bare(record.fields[self._user]), len(self._persons)))
        if self._priors:
            self._numbers.extend(self._probability(record, place) for place in self._priors)

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64] | None, NDArray[np.float64]]:
        """Labels, persons, priors. Raises BadInput for no rows, and for labels that are no class, without saying where."""
        labels, classes = np.array(self._labels, dtype=np.int64), len(self._codes)
        if not len(labels):
            raise BadInput(f"{self._question.data}: has a header, and no records")
        if labels.min() < 0:
            raise BadInput(
                f"{self._question.data}: column {self._question.label} has a label that is none of the {classes} of --classes "
                "(spaces and case count; empty is a label); which one is not said, since messages are kept; nothing was done"
            )
        users = np.array(self._users, dtype=np.int64) if self._user is not None else None
        given = [self._question.prior or [1.0] * classes]
        priors = np.array(self._numbers).reshape(-1, classes) if self._priors else np.array(given)
        return labels, users, priors

    def _code(self, field: bytes) -> int:
        try:
            return self._codes.get(value(field), -1)
        except UnicodeDecodeError:
            return -1

    def _probability(self, record: Record, place: int) -> float:
        try:
            number = float(_bare(record.fields[place]))
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            raise BadInput(f"{self._question.data}: row {record.number} has no probability in a column of --prior-columns")
        return number


def _bare(field: bytes) -> bytes:
    return field[1:-1] if field.startswith(b'"') else field


def _header(rows: Iterator[Header | Record]) -> Header:
    header = next(rows)
    assert isinstance(header, Header)
    return header


# -- the second pass ----------------------------------------------------------------------------------------------------------


class Writer:
    """Answers all labels, and writes every row as it was with the answer in place of the label."""

    def __init__(self, question: Question, read: Read, file: BinaryIO, progress: Progress) -> None:
        self._question, self._read, self._file, self._progress = question, read, file, progress
        self._answers = 0
        self._csv = CsvFile(question.data, question.delimiter)
        self._chance = SystemChance()
        self._sizes = 0
        self._chunk = max(1, min(CHUNK, ENTRIES // len(question.classes)))

    def write(self) -> float:
        """The mean k. Raises BadInput where the data are no longer those of the first pass."""
        rows = self._csv.read()
        header = _header(rows)
        self._place = header.place("--label", self._question.label)
        self._quoted = header.quoted(self._place)  # not as the label was: that would tell something of it
        self._texts = [self._csv.written(name, self._quoted) for name in self._question.classes]
        names = [self._csv.written(name, self._quoted) for name in self._question.names]
        self._file.write(header.mark + self._csv.join(self._replaced(header.record, names), header.record.end))
        count = self._shuffled(rows, header) if self._question.shuffle else self._in_order(rows)
        if count != len(self._read.private) or self._csv.digest != self._read.digest:
            raise BadInput(f"{self._question.data}: was changed while it was read; nothing was written")
        return self._sizes / count

    def _in_order(self, rows: Iterator[Header | Record]) -> int:
        count = 0
        while chunk := [row for row in islice(rows, self._chunk) if isinstance(row, Record)]:
            filled = sum(bool(row.fields) for row in chunk)
            self._answered(chunk, np.arange(count, count + filled))
            count += filled
        return count

    def _shuffled(self, rows: Iterator[Header | Record], header: Header) -> int:
        """Of the same line end each, since the last may have none."""
        end = header.record.end or b"\n"
        all_rows = [Record(row.number, row.fields, end) for row in rows if isinstance(row, Record) and row.fields]
        order = np.argsort(self._chance.words(len(all_rows)), kind="stable")
        for start in range(0, len(order), self._chunk):
            places = order[start : start + self._chunk]
            self._answered([all_rows[place] for place in places], places)
        return len(all_rows)

    def _answered(self, chunk: list[Record], places: NDArray[np.int64]) -> None:
        if len(places) and places.max() >= len(self._read.private):
            raise BadInput(f"{self._question.data}: was changed while it was read; nothing was written")
        total, doing = len(self._read.private), "answering labels"
        self._progress("row", self._answers, total, doing)
        told = iter(self._told(places))
        self._answers += len(places)
        self._progress("row", self._answers, total, doing)
        for row in chunk:
            fields = self._replaced(row, next(told)) if row.fields else []
            self._file.write(self._csv.join(fields, row.end))

    def _told(self, places: NDArray[np.int64]) -> list[list[bytes]]:
        """For each place what stands instead of its label."""
        priors = self._read.priors
        shape = (len(places), self._read.private.classes)
        rows = np.broadcast_to(priors, shape) if len(priors) == 1 else priors[places]
        answers = self._read.private.answer(places, self._question.randomizer, rows, self._chance)
        self._sizes += int(answers.sizes.sum())
        if self._question.by_bits:
            return [[b"1" if told else b"0" for told in row] for row in (answers.likelihoods == 1.0).tolist()]
        return [[self._texts[label]] for label in answers.labels.tolist()]

    def _replaced(self, row: Record, texts: list[bytes]) -> list[bytes]:
        return [*row.fields[: self._place], *texts, *row.fields[self._place + 1 :]]
