"""What `fedrho labels audit` reads: priors, matrices of anybody's, and statements about labels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrho.console import BadInput
from fedrho.server.tasks import why_unreadable
from fedrho.work import Work

if TYPE_CHECKING:
    from fedrho.privacy.labels.audit import LabelAudit, Settings

PRINTED = 1e-6
"""How far rounding in a file may take a row's sum from 1, or an epsilon above its claim."""
NO_PRIVACY = "inite: no privacy"
"""What a ledger writes behind an epsilon that is inf."""
LOST = "answers that were lost, "
"""What a ledger says where a crash cost a second reading; the mechanism is that of another line."""
ROUNDED_UP = 1e-3
"""Share by which the epsilon in words may exceed that in numbers: four digits, never below."""


def prior_of(text: str | None, classes: int | None, most: int) -> list[float]:
    """Of the option, or uniform; raises BadInput."""
    if text is None:
        count = 10 if classes is None else classes
        if not 2 <= count <= most:
            raise BadInput(f"--classes: {count} is not allowed (2 to {most}); nearest: {min(max(count, 2), most)}")
        return [1.0 / count] * count
    from fedrho.labels.options import probabilities
    from fedrho.privacy.labels.priors import checked

    (row,) = checked([probabilities(text)]).tolist()
    if classes not in (None, len(row)):
        raise BadInput(f"--prior: has {len(row)} probabilities for --classes {classes}; leave --classes out")
    if not 2 <= len(row) <= most:
        raise BadInput(f"--prior: {len(row)} probabilities are not allowed (2 to {most})")
    return [float(share) for share in row]


def of_matrix(path: Path, epsilon: float | None, prior: Sequence[float] | None) -> LabelAudit:
    """Of a .csv, or of a .json: rows, or an object with `matrix` and perhaps `epsilon` (what `fedrho labels matrix` prints)."""
    from fedrho.privacy.labels.audit import audit_channel

    if path.suffix.lower() == ".json":
        loaded = _json(path)
        values: Any = loaded.get("matrix") if isinstance(loaded, Mapping) else loaded
        said = loaded.get("epsilon") if isinstance(loaded, Mapping) else None
    else:
        values, said = _csv(path), None
    if said is not None and not _is_number(said):
        raise BadInput(f"{path}: its epsilon is no number")
    claimed = said if epsilon is None else epsilon
    try:
        return audit_channel(values, claimed, prior, PRINTED)
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from error


def of_statement(
    path: Path, epsilon: float | None, prior: Sequence[float], settings: Settings
) -> tuple[list[LabelAudit], list[str]]:
    """One audit of each mechanism that the file names, and of their sum; and what it names that no draw can show, as DP-SGD.

    Raises BadInput, also where there is nothing else.
    """
    from fedrho.privacy.labels.audited import UnknownMechanism, named

    if epsilon is not None:
        raise BadInput("--epsilon: the statement has its own; leave it out")
    stated = _statements(path, _json(path))
    if not stated:
        raise BadInput(f"{path}: has no statement about labels: no `mechanisms` with an `epsilon`")
    audits: dict[tuple[str, float, int | None], LabelAudit] = {}
    totals: list[LabelAudit] = []
    others: dict[str, UnknownMechanism] = {}
    for statement, records in stated:
        for text in map(str, statement["mechanisms"]):
            if text.startswith(LOST):
                continue
            try:
                kind = named(text)
            except UnknownMechanism as error:
                others[text] = error
                continue
            if kind not in audits:
                audits[kind] = _audited(path, kind, prior, settings)
        totals += _totals(path, statement, records)
    if not audits and others:
        raise BadInput(f"{path}: {next(iter(others.values()))}")
    return [*audits.values(), *totals], list(others)


def _audited(path: Path, kind: tuple[str, float, int | None], prior: Sequence[float], settings: Settings) -> LabelAudit:
    from fedrho.privacy.labels.audited import audited
    from fedrho.privacy.labels.chance import SystemChance

    name, epsilon, k = kind
    try:
        with Work("auditing", f"{name} at epsilon {epsilon:g}") as work:
            return audited(name, epsilon, prior, SystemChance(), settings, k, work.progress)
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from error


def _totals(path: Path, statement: Mapping[str, Any], records: int | None) -> list[LabelAudit]:
    """No total is below the dearest mechanism, or below what a label paid on average where the file says how many there are.

    The sum of all is the most that one label can have paid. Nothing where no line tells a price.
    """
    from fedrho.privacy.labels.audit import Finding, LabelAudit

    claimed = float("inf") if statement["epsilon"] is None else float(statement["epsilon"])
    paid = [price for text in statement["mechanisms"] if (price := _paid(str(text))) is not None]
    if not paid:
        return []
    dearest, most = max(epsilon for epsilon, _ in paid), sum(epsilon for epsilon, _ in paid)
    mean = sum(epsilon * count for epsilon, count in paid) / records if records else 0.0
    least = max(dearest, mean)
    told = "of the dearest mechanism" if mean <= dearest * (1 + ROUNDED_UP) else f"on average over {records} records"
    holds = claimed >= least * (1 - ROUNDED_UP)
    detail = f"{told}; {most:.6g} if all of them read one label"
    findings = [Finding("total of the statement", "epsilon", claimed, min(least, claimed) if holds else least, holds, detail)]
    person = statement.get("user_epsilon")
    if person is not None:
        findings.append(Finding("total of a person", "epsilon", person, claimed, person >= claimed, "that of one label at least"))
    return [LabelAudit(f"statement in {path.name}", claimed, tuple(findings))]


def _paid(text: str) -> tuple[float, int] | None:
    """What a line of a statement says: an epsilon, and how many labels paid it, where it says that too."""
    line = re.search(r", epsilon (?P<epsilon>[^,]+)(, read (?P<count>\d+) labels)?$", text)
    try:
        return None if line is None else (float(line["epsilon"].removesuffix(NO_PRIVACY)), int(line["count"] or 0))
    except ValueError:
        return None


def _statements(path: Path, loaded: object, records: int | None = None) -> list[tuple[Mapping[str, Any], int | None]]:
    """The object itself, those of a list, its `statement`, or those of its `runs`; each with the number of records, if told."""
    if isinstance(loaded, list):
        return [one for part in loaded for one in _statements(path, part, records)]
    if not isinstance(loaded, Mapping):
        return []
    told = loaded.get("records", records)
    if told is not None and (not isinstance(told, int) or told < 1):
        raise BadInput(f"{path}: its number of records is none")
    if "mechanisms" in loaded and "epsilon" in loaded:
        if loaded["epsilon"] is not None and not _is_number(loaded["epsilon"]):
            raise BadInput(f"{path}: the epsilon of a statement is no number")
        delta, person = loaded.get("delta", 0.0), loaded.get("user_epsilon")
        if not (_is_number(delta) and 0 <= delta < 1) or not (person is None or _is_number(person)):
            raise BadInput(f"{path}: a statement's delta lies in [0, 1), and its epsilon of a person is a number or null")
        return [(loaded, told)] if isinstance(loaded["mechanisms"], list) and loaded["mechanisms"] else []
    runs = loaded.get("runs")
    inner = [loaded.get("statement"), *(runs if isinstance(runs, list) else [])]
    found = [one for part in inner for one in _statements(path, part, told)]
    return [one for place, one in enumerate(found) if one not in found[:place]]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json(path: Path) -> object:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}: is no JSON ({error})") from error


def _csv(path: Path) -> list[list[float]]:
    rows = [line.split(",") for line in _text(path).splitlines() if line.strip() and not line.startswith("#")]
    if not rows:
        raise BadInput(f"{path}: is empty; a matrix has one row for each true label, numbers with commas between them")
    try:
        values = [[float(cell) for cell in row] for row in rows]
    except ValueError as error:
        raise BadInput(f"{path}: {error}; a matrix has numbers alone, one row for each true label") from error
    if len({len(row) for row in values}) > 1:
        raise BadInput(f"{path}: its rows have different lengths")
    return values


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read as text ({why_unreadable(error)})") from error
