"""The hash chain over a run's releases, and what it proves: nothing was changed, left out or put in afterwards.

    link_0 = SHA-256(SHA-256(run, task) + entry_0)        link_t = SHA-256(link_(t-1) + entry_t)

An entry names everything that became durable with a release: step, attempt, price, digests of weights and optimizer, times, and
name and digest of each noise node that was drawn and of each vector of noise that was written down. Whoever keeps one link
elsewhere (a log, a notebook, a colleague) can tell later whether the history up to it is still the same. A chain that was written
anew from some step on is whole in itself: only a link kept elsewhere shows it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fedrho.models.zoo import UnknownModel
from fedrho.privacy.ledger import BudgetExhausted
from fedrho.privacy.noise import NoiseNode
from fedrho.privacy.progress import Progress, unwatched
from fedrho.privacy.statement import PrivacyStatement
from fedrho.privacy.vectors import IntVector
from fedrho.privacy.zcdp import Rho
from fedrho.server.ledger import Charge, charge, same_price, statement
from fedrho.server.tasks import Task, TaskError, TaskFile, build_task

VISIBLE_NOISE = 1.0
"""In grid units. Less may round to nothing, which equals nothing; with more, no two vectors of a model are equal by chance."""


class HistoryBroken(ValueError):
    """The stored history contradicts itself or its price; the message names the step."""


@dataclass(frozen=True)
class Entry:
    """One release, as it is chained. Digests are SHA-256.

    `nodes` are pairs of name and digest of the noise that was drawn, in that order; `kept` are name, type and digest of the
    vectors of noise that were written down with this step, by name.
    """

    step: int
    attempt: int
    rho: float
    weights_sha256: bytes
    velocity_sha256: bytes
    opened_at: float
    committed_at: float
    nodes: tuple[tuple[str, bytes], ...]
    kept: tuple[tuple[str, str, bytes], ...] = ()

    def link(self, before: bytes) -> bytes:
        """The SHA-256 that ties this entry to all before it."""
        text = json.dumps(asdict(self), default=bytes.hex, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(before + text.encode()).digest()


@dataclass(frozen=True)
class History:
    """What a store holds: the run, its task as stored, every entry with its stored link, and what it says is published."""

    run: bytes
    task: str
    entries: tuple[Entry, ...]
    links: tuple[bytes, ...]
    published_step: int
    published_link: bytes


def first_link(run: bytes, task: str) -> bytes:
    """What the entry of step 0 is tied to."""
    return hashlib.sha256(run + hashlib.sha256(task.encode()).digest()).digest()


def read_task(history: History) -> Task:
    """The task that the history began with; raises HistoryBroken when its text is another by now, or not a task."""
    start = first_link(history.run, history.task)
    if not history.entries or _linked(history.entries[0], start) != history.links[0]:
        raise HistoryBroken("step 0: its link does not follow from run and task; one of them, or the start, was changed")
    try:
        return build_task(TaskFile.model_validate_json(history.task))
    except (TaskError, UnknownModel, ValueError) as error:
        raise HistoryBroken(f"its task cannot be read: {str(error).splitlines()[0]}") from error


def check(history: History, task: Task, progress: Progress = unwatched) -> PrivacyStatement:
    """The statement, derived anew from the entries; raises HistoryBroken at the first step that does not hold."""
    if not history.entries:
        raise HistoryBroken("no step is stored")
    before = first_link(history.run, history.task)
    expected = _names(task, len(history.entries))
    for number, (entry, link, names) in enumerate(zip(history.entries, history.links, expected, strict=True)):
        before = _linked(entry, before)
        if entry.step != number:
            raise HistoryBroken(f"step {number} is missing: the next one stored is step {entry.step}")
        if link != before:
            raise HistoryBroken(f"step {number}: its link does not follow; this entry or one before it was changed")
        _check_price(entry, task)
        if ([name for name, _ in entry.nodes], [name for name, *_ in entry.kept]) != names:
            raise HistoryBroken(f"step {number}: its noise nodes or kept vectors are not those of the mechanism there")
        progress("step", number, len(history.entries) - 1, f"checking the chain, rho {entry.rho:.4g}")
    if task.mechanism.stddev >= VISIBLE_NOISE:
        _check_digests(history.entries)
    known = 0 <= history.published_step < len(history.links)
    if not known or history.links[history.published_step] != history.published_link:
        raise HistoryBroken(f"step {history.published_step} was published with another link than the one stored")
    latest = history.entries[-1]
    return statement(task, Charge(latest.step, Rho(latest.rho)))


def _linked(entry: Entry, before: bytes) -> bytes:
    try:
        return entry.link(before)
    except (TypeError, ValueError) as error:
        raise HistoryBroken(f"step {entry.step}: holds something else than numbers and digests ({error})") from error


def _check_price(entry: Entry, task: Task) -> None:
    try:
        price = charge(task, entry.step).rho if entry.step else Rho(0.0)
    except BudgetExhausted as error:
        raise HistoryBroken(str(error)) from error
    if not same_price(price, Rho(entry.rho)):
        raise HistoryBroken(f"step {entry.step} was charged rho = {entry.rho}, but costs {price}")


def _check_digests(entries: Sequence[Entry]) -> None:
    """Equal noise in two nodes would cancel, or count twice."""
    seen: dict[bytes, str] = {}
    for entry in entries:
        for name, digest in entry.nodes:
            if digest in seen:
                raise HistoryBroken(f"step {entry.step}: noise node {name} has the same noise as {seen[digest]}")
            seen[digest] = name


def _names(task: Task, count: int) -> Iterator[tuple[list[str], list[str]]]:
    """The nodes drawn at each step, and the vectors first kept there; none at the start, step 0. Dry: on one coordinate."""
    state = task.mechanism.init(1)
    known: set[str] = set()
    yield [], []
    for step in range(1, count):
        _, state = task.mechanism.next_noise(state, _DRY)
        kept = {one.name for one in state.kept} if step < task.file.steps else set()
        yield [node.name for node in state.drawn], sorted(kept - known)
        known |= kept


class _DryNoise:
    """Names without noise."""

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        return np.zeros(size, dtype=np.int64), NoiseNode(name, b"", b"")


_DRY = _DryNoise()
