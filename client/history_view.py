"""A history as its owner sees it: read beside whoever uses it, without changing a byte."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrho.client.history_file import MEND, SCHEMA_VERSION, HistoryError, digest
from fedrho.client.withdrawal import Withdrawals


@dataclass(frozen=True)
class Contribution:
    """One, at a time of the device's own clock."""

    step: int
    at: float


@dataclass(frozen=True)
class RunSeen:
    """What this device knows of a run; `announced` is None for one that it heard of before it kept such things."""

    run: bytes
    population: bytes
    released: int
    ended: bool
    may_be_unknown: bool
    announced: dict[str, Any] | None
    contributions: tuple[Contribution, ...]


@dataclass(frozen=True)
class Incident:
    """Something that the owner should know: `times`, from the `first` to the `last`."""

    kind: str
    detail: str
    run: bytes
    first: float
    last: float
    times: int


@dataclass(frozen=True)
class PopulationSeen:
    """A population, where it was met, and how far it was."""

    key: bytes
    servers: tuple[str, ...]
    epoch: int
    server_time: float | None


@dataclass(frozen=True)
class LabelsAnswered:
    """Labels that answered under the same terms: what each of them paid, and how many there are; never what they answered."""

    mechanism: str
    epsilon: float
    prior: tuple[float, ...]
    classes: int
    labels: int
    first: float
    last: float


@dataclass(frozen=True)
class DeviceLedger:
    """All that the history of a device holds. `complete` is whether it knows of every contribution, as far as can be told.

    `label_epsilon` is the most that any one label has paid, by all answers together; 0 where none was asked.
    """

    path: Path
    born: float | None
    complete: bool
    populations: tuple[PopulationSeen, ...]
    runs: tuple[RunSeen, ...]
    incidents: tuple[Incident, ...]
    left: dict[str, float]
    labels: tuple[LabelsAnswered, ...] = ()
    label_epsilon: float = 0.0


def read_ledger(path: Path) -> DeviceLedger:
    """Raises HistoryError for what is not a whole history."""
    try:
        left = Withdrawals(path).read().dates
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("BEGIN")  # all of it as of one moment
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version != SCHEMA_VERSION:
                raise HistoryError(f"{path}: of another version of fedrho (schema {version}); `fedrho join` brings an old one up")
            sealed = database.execute("SELECT born, losses, digest FROM seal").fetchone()
            if sealed is None or sealed[2] != digest(database):
                raise HistoryError(f"{path}: damaged (a row was changed or is missing); {MEND}")
            return DeviceLedger(
                path,
                sealed[0],
                not sealed[1],
                _populations(database),
                _runs(database, sealed[1]),
                _incidents(database),
                left,
                _labels(database),
                label_epsilon(database),
            )
    except (OSError, sqlite3.Error, ValueError, TypeError, KeyError) as error:
        raise HistoryError(f"{path}: not a usable participation history ({error})") from error


def _populations(database: sqlite3.Connection) -> tuple[PopulationSeen, ...]:
    times = {bytes(key): at for key, at in database.execute("SELECT key, server_time FROM populations")}
    epochs = {bytes(key): int.from_bytes(epoch, "big") for key, epoch in database.execute("SELECT key, epoch FROM epochs")}
    pins = [(server, bytes(key)) for server, key in database.execute("SELECT server, key FROM pins ORDER BY server")]
    keys = dict.fromkeys([*(key for _, key in pins), *sorted(epochs), *sorted(times)])
    return tuple(
        PopulationSeen(key, tuple(server for server, of in pins if of == key), epochs.get(key, 0), times.get(key)) for key in keys
    )


def _runs(database: sqlite3.Connection, losses: int) -> tuple[RunSeen, ...]:
    given: dict[bytes, list[Contribution]] = {}
    for run, step, at in database.execute("SELECT run, step, at FROM contributions ORDER BY step"):
        given.setdefault(bytes(run), []).append(Contribution(step, at))
    found = []
    for key, run, released, ended, began, announced, blind in database.execute(
        "SELECT key, run, released, ended, began, announced, blind FROM runs JOIN populations USING (key) ORDER BY began, run"
    ):
        unknown = bool(losses) and (blind is None or began <= blind)
        mine = tuple(given.get(bytes(run), ()))
        found.append(RunSeen(bytes(run), bytes(key), released, bool(ended), unknown, json.loads(announced), mine))
    heard = {one.run for one in found}
    others = (RunSeen(run, b"", 0, False, bool(losses), None, tuple(mine)) for run, mine in given.items() if run not in heard)
    return (*found, *others)


def _labels(database: sqlite3.Connection) -> tuple[LabelsAnswered, ...]:
    rows = database.execute(
        "SELECT said, sum(count), min(at), max(at) FROM label_askings JOIN label_terms ON terms = label_terms.number "
        "GROUP BY terms ORDER BY min(at), terms"
    )
    found = []
    for said, count, first, last in rows:
        mechanism, epsilon, prior, classes = json.loads(said)
        found.append(LabelsAnswered(mechanism, epsilon, tuple(prior), classes, count, first, last))
    return tuple(found)


def label_epsilon(database: sqlite3.Connection, but: tuple[str, str] = ("", "")) -> float:
    """The most that one label may have paid: of each view of the records the dearest one, all views together.

    Without what was paid in the view and under the terms of `but`.
    """
    rows = database.execute(
        "SELECT max(paid) FROM (SELECT view, sum(epsilon) AS paid FROM label_answers JOIN label_terms "
        "ON terms = number WHERE NOT (view = ? AND said = ?) GROUP BY view, record) GROUP BY view",
        but,
    )
    return float(sum(paid for (paid,) in rows))


def _incidents(database: sqlite3.Connection) -> tuple[Incident, ...]:
    rows = database.execute("SELECT kind, detail, run, first, last, times FROM incidents ORDER BY last, number")
    return tuple(Incident(kind, detail, bytes(run), first, last, times) for kind, detail, run, first, last, times in rows)
