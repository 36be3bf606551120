"""What this device took part in: a SQLite file of its own, written through to the disk before a single byte is uploaded.

A device refuses by itself: too often, too soon by steps, too soon by the clocks, what its owner does not allow or has left, and a
server that contradicts what it said before. Time has passed only when both clocks say so, the device's own and the population's
signed one; so neither gains anything by leaping. What the history cannot know, because it was lost, it takes as given.

Opening, locks and damage: `history_file.py`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedrho.client.history_file import MIGRATIONS as MIGRATIONS
from fedrho.client.history_file import SCHEMA_VERSION as SCHEMA_VERSION
from fedrho.client.history_file import HistoryError as HistoryError
from fedrho.client.history_file import HistoryFile
from fedrho.client.history_file import ServerChanged as ServerChanged
from fedrho.client.limits import NO_LIMITS, Limits
from fedrho.client.participant import promised
from fedrho.client.spec import Known
from fedrho.client.withdrawal import Withdrawals
from fedrho.protos.messages import ID_BYTES, PopulationSpec, PrivacyTerms, TaskSpec
from fedrho.protos.signing import check_public

EPOCH_BYTES = 8
AGAIN_SECONDS = 3600.0
"""Before the same incident is written down again."""
MOST_NOTED = 1000
"""Incidents that are known to be written down: more than a spec has tasks."""


def since_boot() -> float:
    """Seconds that nobody turns back, those that the machine has slept through included where the system counts them."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


LOOSER = {
    "clip_norm": max,
    "noise_multiplier": min,
    "rho_budget": max,
    "max_participations": max,
    "min_separation": min,
    "min_period_seconds": min,
}
"""Which of two values promises less."""


class DeviceHistory:
    """The participation ledger of one device; every answer is read from the file, every yes is in it first."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        limits: Limits = NO_LIMITS,
        steady: Callable[[], float] = since_boot,
    ) -> None:
        """Opens or creates the file; raises HistoryError when it is not a history or in use, as every method does.

        `clock` is the device's, which may be wrong; `steady` only ever goes on, and ends with the process.
        """
        self._clock = clock
        self._limits = limits
        self._steady = steady
        self._file = HistoryFile(path, clock)
        self._database = self._file.database
        self._left = Withdrawals(path)
        self._heard: dict[bytes, tuple[Known, float]] = {}
        self._noted: dict[tuple[str, str, bytes], float] = {}

    def close(self) -> None:
        self._file.close()

    # -- what a participant asks ---------------------------------------------------------------------------------------

    def hear(self, known: Known) -> None:
        """Remembers what a population announces, as it did before or stricter.

        Raises ServerChanged where it takes back what it has said of a run: steps released, terms, or one thing and another under
        the same epoch. *Assumes* that the spec was verified, and its key trusted.
        """
        key, before = known.public_key, self._heard.get(known.public_key)
        with self._file.trusted():
            if before is None or before[0].etag != known.etag:
                self._learn(key, known.spec)
                if before is None or known.spec.server_time >= before[0].spec.server_time:
                    self._heard[key] = (known, self._steady())
            self._date(key)

    def allows(self, run: bytes, step: int, terms: PrivacyTerms) -> bool:
        with self._file.trusted():
            if self._file.leapt_back():
                with self._file.transaction():
                    self._file.keep_time()
            return self._allows(run, step, self._strictest(run, terms))

    def exhausted(self, run: bytes, terms: PrivacyTerms) -> bool:
        with self._file.trusted():
            terms = self._strictest(run, terms)
            if len(self._past(run)) >= terms.max_participations:
                return True
            reason = self._too_much(run, terms)
            if reason:
                name = next((announced["task"] for announced in self._announced(run)), run.hex())
                self.note("not joined", f"{name}: {reason}", run)
            return self._over(run, terms)

    def record(self, run: bytes, step: int, terms: PrivacyTerms) -> bool:
        with self._file.trusted():
            self._file.check_place()
            with self._file.transaction():
                allowed = self._allows(run, step, self._strictest(run, terms))
                if allowed:
                    self._insert(run, step)
            if allowed:
                self._file.mark()
        return allowed

    def tag(self, run: bytes) -> bytes:
        with self._file.trusted():
            row = self._database.execute("SELECT tag FROM tags WHERE run = ?", (run,)).fetchone()
            if row is None:
                with self._file.transaction():
                    self._database.execute("INSERT OR IGNORE INTO tags VALUES (?, ?)", (run, os.urandom(ID_BYTES)))
                    row = self._database.execute("SELECT tag FROM tags WHERE run = ?", (run,)).fetchone()
            return bytes(row[0])

    def note(self, kind: str, detail: str, run: bytes = b"") -> None:
        """Leaves a dated record for the owner; the same again only after a while."""
        now, key = self._steady(), (kind, detail, run)
        if key not in self._noted or now - self._noted[key] >= AGAIN_SECONDS:
            self._noted = {**self._noted, key: now} if len(self._noted) < MOST_NOTED else {key: now}
            self._file.incident(kind, detail, run)

    # -- what an owner says --------------------------------------------------------------------------------------------

    def trust(self, server: str, key: bytes, epoch: int) -> None:
        """Remembers the population key that `server` shows, and its epoch, a uint64.

        Raises ServerChanged, and remembers nothing but that, where the server has shown another key, or the key a later epoch;
        BadKey where it is none. *Assumes* that the spec's signature by this key was verified before.
        """
        name, number = server.lower(), epoch.to_bytes(EPOCH_BYTES, "big")
        with self._file.trusted():
            try:
                self._check_pin(server, check_public(key))
                highest = self._highest(server, key, number)
            except ServerChanged as changed:
                self._file.incident("server", str(changed))
                raise
            if self._pinned(name) is not None and number == highest:
                return
            with self._file.transaction():
                self._database.execute("INSERT OR REPLACE INTO epochs VALUES (?, ?)", (key, number))
                self._database.execute("INSERT OR IGNORE INTO pins VALUES (?, ?)", (name, key))

    def pin(self, server: str, key: bytes) -> None:
        """From now on `server` must show this key, which a person has named, whatever it has shown before; raises BadKey."""
        check_public(key)
        with self._file.trusted():
            if self._pinned(server.lower()) != key:
                with self._file.transaction():
                    self._database.execute("INSERT OR REPLACE INTO pins VALUES (?, ?)", (server.lower(), key))

    def vouch(self) -> None:
        """The owner says that this history knows every contribution of this device, wherever it has come from."""
        self._file.vouch()

    # -- deciding ------------------------------------------------------------------------------------------------------

    def _allows(self, run: bytes, step: int, terms: PrivacyTerms) -> bool:
        past = self._past(run)
        if self._over(run, terms) or (past and step <= max(past)) or not promised(terms).allows(past, step):
            return False
        given = self._given()
        if not self._rested(run, terms.min_period_seconds, given):
            return False
        return all(
            self._rested(run, group.min_period_seconds, [one for one in given if self._in_group(one[0], group.holds)])
            for group in self._limits.groups
            if self._in_group(run, group.holds)
        )

    def _over(self, run: bytes, terms: PrivacyTerms) -> bool:
        """Whether nothing more will ever come from this device to this run: it was left, it may be unknown, or it is too much."""
        return self._has_left(run) or self._blind(run) or bool(self._too_much(run, terms))

    def _has_left(self, run: bytes) -> bool:
        return self._left.has_left(run, self._populations_of(run))

    def _blind(self, run: bytes) -> bool:
        """Whether this device may have contributed to the run without knowing it."""
        if not self._file.value("losses"):
            return False
        rows = self._database.execute(
            "SELECT began, blind FROM runs JOIN populations USING (key) WHERE run = ?", (run,)
        ).fetchall()
        return not rows or any(blind is None or began <= blind for began, blind in rows)

    def _too_much(self, run: bytes, terms: PrivacyTerms) -> str:
        """Why the owner's limits over several runs leave no room; empty where they do."""
        given = self._given()
        for group in self._limits.groups:
            count = sum(self._in_group(of, group.holds) for of, *_ in given)
            if group.max_participations is not None and count >= group.max_participations and self._in_group(run, group.holds):
                return f"the owner's group {group.name!r} has had its {group.max_participations} participations"
        if self._limits.max_rho is None:
            return ""
        spent = {of: max(self._prices(of), default=float("inf")) for of, *_ in given}
        return self._limits.too_much(spent, run, max([terms.rho_budget, *self._prices(run)])) or ""

    def _in_group(self, run: bytes, holds: Callable[[str], bool]) -> bool:
        """A run whose name nobody remembers is in every group."""
        names = [announced["task"] for announced in self._announced(run)]
        return not names or any(holds(name) for name in names)

    def _prices(self, run: bytes) -> list[float]:
        """What a run may cost, by the most that each population has said of it; none where nobody remembers its terms."""
        return [announced.get("dearest", announced["terms"]["rho_budget"]) for announced in self._announced(run)]

    def _rested(self, run: bytes, seconds: float, given: list[tuple[bytes, int, float, float]]) -> bool:
        """Whether the last of `given`, or the beginning of this history, is so long ago, by each clock that there is."""
        if seconds <= 0:
            return True
        began = self._file.value("trusted")
        latest = max([ticks for *_, ticks in given] + ([] if began is None else [began]), default=None)
        if latest is None:
            return True
        if self._file.ticks() - latest < seconds:
            return False
        populations = self._populations_of(run)
        if not populations:
            return not given or self._clock() - max(at for _, _, at, _ in given) >= seconds
        return all(self._rested_by(key, seconds, given, began is not None) for key in populations)

    def _rested_by(self, key: bytes, seconds: float, given: list[tuple[bytes, int, float, float]], bounded: bool) -> bool:
        """The same by the time that this population signs; not without having heard it since."""
        rows = self._database.execute("SELECT run, step, at FROM signed WHERE key = ?", (key,))
        then: dict[tuple[bytes, int], float] = {(bytes(run), step): at for run, step, at in rows}
        moments = [then.get((run, step)) for run, step, *_ in given]
        if bounded:
            moments += self._database.execute("SELECT since FROM populations WHERE key = ?", (key,)).fetchone()
        now = self._server_time(key)
        return all(moment is not None and now - moment >= seconds for moment in moments)

    def _server_time(self, key: bytes) -> float:
        """What the population's clock shows at least: the highest time that it has signed, and what has passed since."""
        stored = float(self._database.execute("SELECT server_time FROM populations WHERE key = ?", (key,)).fetchone()[0])
        if key not in self._heard:
            return stored
        known, heard_at = self._heard[key]
        return max(stored, known.spec.server_time + max(0.0, self._steady() - heard_at))

    def _insert(self, run: bytes, step: int) -> None:
        self._file.keep_time()
        self._database.execute(
            "INSERT INTO contributions (run, step, at, ticks) VALUES (?, ?, ?, ?)",
            (run, step, self._clock(), self._file.value("ticks")),
        )
        for key in self._populations_of(run):
            now = self._server_time(key)
            self._database.execute("INSERT INTO signed VALUES (?, ?, ?, ?)", (run, step, key, now))
            self._database.execute("UPDATE populations SET server_time = ? WHERE key = ?", (now, key))

    # -- what was announced --------------------------------------------------------------------------------------------

    def _learn(self, key: bytes, spec: PopulationSpec) -> None:
        """Writes down what is new in it; raises ServerChanged, and writes that down."""
        try:
            changes = list(self._news(key, spec))
        except ServerChanged as changed:
            self._file.incident("terms", str(changed))
            raise
        if changes:
            with self._file.transaction():
                for statement, values in changes:
                    self._database.execute(statement, values)

    def _date(self, key: bytes) -> None:
        """Gives contributions to others the date, in this population's time, at which it was first heard after them."""
        count = "SELECT (SELECT count(*) FROM contributions), (SELECT count(*) FROM signed WHERE key = ?)"
        contributions, dated = self._database.execute(count, (key,)).fetchone()
        if dated < contributions:
            with self._file.transaction():
                self._database.execute(
                    "INSERT OR IGNORE INTO signed SELECT run, step, ?, ? FROM contributions", (key, self._server_time(key))
                )

    def _news(self, key: bytes, spec: PopulationSpec) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """What has to be written; raises ServerChanged."""
        row = self._database.execute("SELECT server_time, since FROM populations WHERE key = ?", (key,)).fetchone()
        if row is None or row[1] is None:
            blind = spec.server_time if self._file.value("losses") else None
            highest = spec.server_time if row is None else max(row[0], spec.server_time)
            yield "INSERT OR REPLACE INTO populations VALUES (?, ?, ?, ?)", (key, highest, highest, blind)
        for task in spec.tasks:
            if _make_sense(task.terms):
                yield from self._news_of(key, spec.epoch, task)

    def _news_of(self, key: bytes, epoch: int, task: TaskSpec) -> Iterator[tuple[str, tuple[Any, ...]]]:
        said = (epoch.to_bytes(EPOCH_BYTES, "big"), task.released, int(task.ended), task.began)
        announced = {name: getattr(task, name) for name in ("task", "model", "size", "steps")} | {"terms": _plain(task.terms)}
        row = self._database.execute(
            "SELECT epoch, released, ended, began, announced FROM runs WHERE key = ? AND run = ?", (key, task.run)
        ).fetchone()
        if row is not None:
            if said[0] < bytes(row[0]):
                return  # read before what is remembered
            before = json.loads(row[4])
            contradiction = _contradiction(task.task, row, said) or _weaker(task.task, before, announced)
            if contradiction:
                raise ServerChanged(f"{contradiction}; take part again when its operator has explained it")
            dearest = before.get("dearest", before["terms"]["rho_budget"])
            if dearest > task.terms.rho_budget:  # what was given was given at that price
                announced["dearest"] = dearest
        if row is None or (*row[:4], json.loads(row[4])) != (*said, announced):
            yield "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)", (key, task.run, *said, json.dumps(announced))

    def _strictest(self, run: bytes, terms: PrivacyTerms) -> PrivacyTerms:
        """Of these terms and those announced, whichever promises more."""
        for announced in self._announced(run):
            values = {
                name: (min if looser is max else max)(getattr(terms, name), announced["terms"][name])
                for name, looser in LOOSER.items()
            }
            terms = replace(terms, **values)
        return terms

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _past(self, run: bytes) -> tuple[int, ...]:
        rows = self._database.execute("SELECT step FROM contributions WHERE run = ? ORDER BY step", (run,))
        return tuple(row[0] for row in rows)

    def _given(self) -> list[tuple[bytes, int, float, float]]:
        """Run, step, the device's clock and its ticks of every contribution."""
        rows = self._database.execute("SELECT run, step, at, ticks FROM contributions")
        return [(bytes(run), step, at, ticks) for run, step, at, ticks in rows]

    def _populations_of(self, run: bytes) -> list[bytes]:
        return [bytes(row[0]) for row in self._database.execute("SELECT key FROM runs WHERE run = ?", (run,))]

    def _announced(self, run: bytes) -> list[dict[str, Any]]:
        rows = self._database.execute("SELECT announced FROM runs WHERE run = ?", (run,))
        return [json.loads(row[0]) for row in rows]

    def _pinned(self, server: str) -> bytes | None:
        row = self._database.execute("SELECT key FROM pins WHERE server = ?", (server,)).fetchone()
        return bytes(row[0]) if row else None

    def _check_pin(self, server: str, key: bytes) -> None:
        if self._pinned(server.lower()) not in (None, key):
            raise ServerChanged(
                f"{server}: shows another population key than before, now {key.hex()}; "
                "ask its operator, and name the key yourself if it is the right one"
            )

    def _highest(self, server: str, key: bytes, epoch: bytes) -> bytes:
        row = self._database.execute("SELECT epoch FROM epochs WHERE key = ?", (key,)).fetchone()
        highest = bytes(row[0]) if row else b""
        if epoch < highest:
            raise ServerChanged(
                f"{server}: went back to epoch {int.from_bytes(epoch, 'big')} of its population, after "
                f"{int.from_bytes(highest, 'big')}; take part again when its operator has restored a current state"
            )
        return highest


def _plain(terms: PrivacyTerms) -> dict[str, Any]:
    """As they come back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(terms)))
    return plain


def _make_sense(terms: PrivacyTerms) -> bool:
    """Others are not remembered: nothing is ever given under them."""
    try:
        promised(terms)
    except ValueError:
        return False
    return True


def _contradiction(name: str, before: tuple[Any, ...], now: tuple[bytes, int, int, float]) -> str:
    """What a later spec may not say of a run, after an earlier one."""
    epoch, released, ended, began = bytes(before[0]), *before[1:4]
    if now[1] < released:
        return f"{name}: went back to {now[1]} released steps, after {released}"
    if ended and not now[2]:
        return f"{name}: goes on after it had ended"
    if now[0] == epoch and now[1:3] != (released, ended):
        return f"{name}: two different specs under epoch {int.from_bytes(epoch, 'big')}"
    if now[3] != began:
        return f"{name}: began at another time than before"
    return ""


def _weaker(name: str, before: dict[str, Any], now: dict[str, Any]) -> str:
    """What makes the terms of a run weaker than they were, or the run another one; stricter terms are kept to."""
    for key in ("task", "model", "size", "steps"):
        if now[key] != before[key]:
            return f"{name}: its {key} is {now[key]!r} now, after {before[key]!r}"
    if now["terms"]["mechanism"] != before["terms"]["mechanism"]:
        return f"{name}: its mechanism is {now['terms']['mechanism']!r} now, after {before['terms']['mechanism']!r}"
    for key, looser in LOOSER.items():
        old, new = before["terms"][key], now["terms"][key]
        if new != old and looser(old, new) == new:
            return f"{name}: weaker terms, {key} is {new:g} now, after {old:g}"
    if now["terms"]["labels"] != before["terms"].get("labels"):
        return f"{name}: asks for labels under other terms than before"
    return ""
