"""What a device answers for its labels: once, durably, before anything is trained on it. Never a label itself.

    all records of the store ─▶ those without an answer under these terms ─▶ answered ─▶ committed ─▶ marked ─▶ read back ─▶ used
                                                                             in memory   synchronous=FULL

A crash before the commit leaves nothing: what was drawn was neither used nor seen, and is drawn anew. A crash after it leaves the
answer, which is used from then on. The answers are tables of the device's history, and have its lock, its seal and its marker: a
history that cannot know all, because it was deleted, restored or copied, answers nothing (`objection`).

Records are known by a keyed hash of their features, and equal ones by their number. So *assumes*: the features of a record stay
the same to the bit. Where records that were answered are gone and others have come, they may be the same ones in another form,
and nothing is answered; where equal ones were answered before, a further one may be one of them, and is left out.
*Guarantees*: a label is asked once at most under the same terms, and under others only as far as the owner's limit on the sum.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedrho.client.examples import AnsweredExamples, ExampleStore, described
from fedrho.client.history_file import MEND, HistoryError, HistoryFile
from fedrho.client.history_view import label_epsilon
from fedrho.client.limits import NO_LIMITS, Limits
from fedrho.client.participant import CannotTrain, Objects, TrainingFailed
from fedrho.client.records import Records, mixed, read_records, told_of, view_of
from fedrho.models.base import ModelSpec, no_label_privacy
from fedrho.models.zoo import UnknownModel, lookup
from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.chance import Chance, SystemChance
from fedrho.privacy.labels.local import check_classes, randomizer, rows_of
from fedrho.privacy.labels.private import PrivateLabels
from fedrho.privacy.labels.randomizers import checked_labels
from fedrho.protos.messages import LabelTerms, RoundPlan, TaskSpec

KEY_BYTES: Final = 32
LOST: Final = "this history cannot know which labels were answered before: it was deleted, restored or copied"
GONE: Final = (
    "records whose labels were answered are gone, and others have come: they may be the same ones in another form, "
    "so nothing more is answered"
)

Answer = Callable[[RoundPlan, ExampleStore], ExampleStore]
"""Of a device's examples for a plan that has label terms, what the training process may see of them. Raises TrainingFailed, and
CannotTrain where the memo cannot be used."""


def objecting(history: Path, limits: Limits = NO_LIMITS) -> Objects:
    """What the device whose history lies there has against a task's label terms; the memo is open while somebody asks."""

    def objects(task: TaskSpec) -> str:
        if task.terms.labels is None:
            return ""
        with closing(LabelMemo(history, limits)) as memo:
            return memo.objection(task)

    return objects


def answered_by(answer: Answer | None) -> Answer:
    """Raises CannotTrain where there is nobody who answers."""
    if answer is None:
        raise CannotTrain("the plan asks for answers for labels, and this device keeps none")
    return answer


def answering(history: Path, limits: Limits = NO_LIMITS) -> Answer:
    """The answers of the device whose history lies there; it is open while somebody asks."""

    def answer(plan: RoundPlan, examples: ExampleStore) -> ExampleStore:
        try:
            with closing(LabelMemo(history, limits)) as memo:
                return memo.answered(plan, examples)
        except HistoryError as error:  # whatever the examples are
            raise CannotTrain(str(error)) from error

    return answer


class LabelMemo:
    """The answers of one device."""

    def __init__(
        self,
        path: Path,
        limits: Limits = NO_LIMITS,
        chance: Chance | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens the history at `path`, or creates it; raises HistoryError, as every method does."""
        self._limits = limits
        self._chance = chance or SystemChance()
        self._file = HistoryFile(path, clock)
        self._database = self._file.database

    def close(self) -> None:
        self._file.close()

    # -- deciding ------------------------------------------------------------------------------------------------------

    def objection(self, task: TaskSpec) -> str:
        """Why nothing will be answered for this task, from its terms and the memo alone; empty where nothing is against it."""
        if task.terms.labels is None:
            return ""
        try:
            spec = lookup(task.model)
            _check(task.terms.labels, spec)
        except (UnknownModel, ValueError) as error:
            return f"its label terms cannot be met: {error}"
        with self._file.trusted():
            return self._refusal(task.terms.labels, spec)

    def _refusal(self, terms: LabelTerms, spec: ModelSpec) -> str:
        if self._file.value("losses"):
            return LOST
        return self._limits.too_much_of_labels(self._asked_elsewhere(terms, spec), terms.epsilon) or ""

    def _asked_elsewhere(self, terms: LabelTerms, spec: ModelSpec) -> float:
        """The most that one label may have paid under other terms, or in another view."""
        return label_epsilon(self._database, but=(view_of(spec), said(terms, spec)))

    # -- answering -----------------------------------------------------------------------------------------------------

    def answered(self, plan: RoundPlan, examples: ExampleStore) -> AnsweredExamples:
        """What may be trained on: features and answers, in an order and in batches that no true label has a part in.

        Raises TrainingFailed, whose text is for the owner alone.
        """
        spec, terms = lookup(plan.model), plan.labels
        assert terms is not None
        try:
            _check(terms, spec)
            with self._file.trusted():
                records = read_records(plan, examples, view_of(spec), self._key())
                number = self._terms(terms, spec)
                self._ask(records, terms, spec, number, plan.run)
                answers, kept = self._recall(records, number, spec.classes)
            return told_of(plan, records, answers, kept)
        except (HistoryError, TrainingFailed):
            raise
        except Exception as error:  # somebody's store may raise anything, and its text may be about examples
            raise TrainingFailed(f"answering for labels raised {described(error)}") from error

    def _ask(self, records: Records, terms: LabelTerms, spec: ModelSpec, number: int, run: bytes) -> None:
        """Answers what has no answer yet and may have one; the answers are in the file, and marked, when this returns."""
        with self._file.transaction():
            places = self._to_ask(records, terms, spec, number)
            if len(places):
                groups = [records.first[place] for place in places]
                answers = self._drawn(records.labels[places], groups, terms, spec.classes)
                self._insert(number, run, [records.names[place] for place in places], answers)
        if len(places):
            self._file.mark()

    def _to_ask(self, records: Records, terms: LabelTerms, spec: ModelSpec, number: int) -> NDArray[np.int64]:
        """Places of records; whether and what is decided without a look at labels."""
        known = {bytes(row[0]) for row in self._database.execute("SELECT record FROM label_answers WHERE terms = ?", (number,))}
        there = set(records.names)
        asked = [
            place
            for place, (name, first) in enumerate(zip(records.names, records.first, strict=True))
            if name not in known and first not in known
        ]
        if asked and known - there:
            raise TrainingFailed(GONE)
        if asked:
            self._file.check_place()
            reason = self._refusal(terms, spec)
            if reason:
                raise TrainingFailed(reason)
        return np.array(asked, dtype=np.int64)

    def _drawn(self, labels: NDArray[np.int64], groups: list[bytes], terms: LabelTerms, classes: int) -> Answers:
        """One answer each; a label outside the classes refuses all of them, whichever it is and wherever."""
        try:
            known = mixed(checked_labels(labels, (len(labels), classes)), groups, self._chance)
        except ValueError:
            raise TrainingFailed(f"a label is none of the {classes} classes; nothing was answered") from None
        private, priors = PrivateLabels(known, classes, budget=terms.epsilon), rows_of(terms.prior, len(labels), classes)
        return private.answer(np.arange(len(labels)), randomizer(terms.mechanism, terms.epsilon), priors, self._chance)

    def _recall(self, records: Records, number: int, classes: int) -> tuple[Answers, NDArray[np.int64]]:
        """The stored answers, and the places of the records that they belong to; the others are left out."""
        rows = {bytes(record): (label, size, row) for record, label, size, row in self._stored(number)}
        places = [place for place, name in enumerate(records.names) if name in rows]
        found = [rows[records.names[place]] for place in places]
        labels, sizes = (np.array([one[part] for one in found], dtype=np.int64) for part in (0, 1))
        likelihoods = np.frombuffer(b"".join(one[2] for one in found), dtype="<f8").reshape(len(found), classes)
        return Answers(labels, likelihoods.astype(np.float64), sizes), np.array(places, dtype=np.int64)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _insert(self, number: int, run: bytes, names: list[bytes], answers: Answers) -> None:
        """Within a transaction. The table itself refuses a second answer for a record under the same terms."""
        self._file.keep_time()
        execute = self._database.execute
        asking = execute("SELECT coalesce(max(number), 0) + 1 FROM label_askings").fetchone()[0]
        channels = [self._likelihood(row.astype("<f8").tobytes()) for row in answers.likelihoods]
        rows = [
            (name, number, asking, int(label), int(size), channel)
            for name, label, size, channel in zip(names, answers.labels, answers.sizes, channels, strict=True)
        ]
        self._database.executemany("INSERT INTO label_answers VALUES (?, ?, ?, ?, ?, ?)", rows)
        values = (asking, number, run, self._file.clock(), len(rows), digest_of(self._of_asking(asking)))
        execute("INSERT INTO label_askings VALUES (?, ?, ?, ?, ?, ?)", values)

    def _likelihood(self, row: bytes) -> int:
        """The number of a row of likelihoods; most records share a few."""
        found = self._database.execute("SELECT number FROM label_likelihoods WHERE row = ?", (row,)).fetchone()
        if found is None:
            found = self._database.execute("INSERT INTO label_likelihoods (row) VALUES (?) RETURNING number", (row,)).fetchone()
        return int(found[0])

    def _stored(self, number: int) -> Iterator[tuple[bytes, int, int, bytes]]:
        """Record, label, size and likelihoods of every answer under these terms; raises HistoryError where one was changed."""
        askings = self._database.execute("SELECT number, count, digest FROM label_askings WHERE terms = ?", (number,)).fetchall()
        for asking, count, digest in askings:
            rows = self._of_asking(asking)
            if len(rows) != count or digest_of(rows) != bytes(digest):
                raise HistoryError(f"{self._file.path}: damaged (an answer for a label was changed or is missing); {MEND}")
            yield from rows

    def _of_asking(self, asking: int) -> list[tuple[bytes, int, int, bytes]]:
        return self._database.execute(
            "SELECT record, label, size, row FROM label_answers JOIN label_likelihoods ON likelihood = number "
            "WHERE asking = ? ORDER BY record",
            (asking,),
        ).fetchall()

    def _terms(self, terms: LabelTerms, spec: ModelSpec) -> int:
        """The number of these terms for this view of the records; all that was ever answered for them has it."""
        names = (view_of(spec), said(terms, spec))
        row = self._database.execute("SELECT number FROM label_terms WHERE view = ? AND said = ?", names).fetchone()
        if row is None:
            with self._file.transaction():
                row = self._database.execute(
                    "INSERT INTO label_terms (view, said, epsilon) VALUES (?, ?, ?) RETURNING number", (*names, terms.epsilon)
                ).fetchone()
        return int(row[0])

    def _key(self) -> bytes:
        """What names of records are hashed with, so that the file tells nobody whose features it is about."""
        row = self._database.execute("SELECT key FROM label_key").fetchone()
        if row is None:
            with self._file.transaction():
                row = self._database.execute(
                    "INSERT INTO label_key VALUES (1, ?) RETURNING key", (os.urandom(KEY_BYTES),)
                ).fetchone()
        return bytes(row[0])


def said(terms: LabelTerms, spec: ModelSpec) -> str:
    """What answers depend on: terms that agree in this have the same ones. The correction is the training's."""
    return json.dumps([terms.mechanism, terms.epsilon, list(terms.prior), spec.classes])


def digest_of(rows: list[tuple[bytes, int, int, bytes]]) -> bytes:
    return hashlib.sha256(b"\n".join(repr(row).encode() for row in rows)).digest()


def _check(terms: LabelTerms, spec: ModelSpec) -> None:
    """Raises ValueError where the terms are about other classes, or too many."""
    if reason := no_label_privacy(spec):
        raise ValueError(reason)
    rows_of(terms.prior, 0, spec.classes)
    check_classes(spec.name, spec.classes, terms.correction)
