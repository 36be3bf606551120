"""What a store tells of a run's releases, read and checked again as steps are released, but never for most of the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedrho.server.chain import Entry, HistoryBroken, check, read_task
from fedrho.server.release import StoreConflict
from fedrho.server.storage.store import read_history

REST: Final = 20.0
"""How much longer a history is left alone than it took to read and check."""


@dataclass(frozen=True)
class Past:
    """The releases of a run, the start, step 0, first; `problem` says why they cannot be trusted, or could not be read."""

    entries: tuple[Entry, ...] = ()
    links: tuple[bytes, ...] = ()
    problem: str = ""
    read_at: float = 0.0

    @property
    def step(self) -> int:
        return self.entries[-1].step if self.entries else 0


class Pasts:
    """Of all runs of a store. Calls must not overlap; each may take long."""

    def __init__(self, store: Path | str, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._known: dict[bytes, Past] = {}
        self._rests_until: dict[bytes, float] = {}

    def known(self, run: bytes) -> Past | None:
        """As it was read last, if it was."""
        return self._known.get(run)

    def of(self, run: bytes, step: int, at_once: bool = False) -> Past:
        """At `step` or later; unless `at_once`, shortly before where there are so many that reading them takes long."""
        known = self._known.get(run)
        began = self._clock()
        if known is not None and known.step >= step and not known.problem:
            return known
        if known is not None and not at_once and began < self._rests_until[run]:
            return known
        self._known[run] = found = _read(self._store, run)
        ended = self._clock()
        self._rests_until[run] = ended + REST * (ended - began)
        return found


def _read(store: Path | str, run: bytes) -> Past:
    """A text of ours where that fails; it names the store without a password."""
    try:
        history = read_history(store, run)
    except (StoreConflict, HistoryBroken) as error:
        return Past(problem=str(error), read_at=time.time())
    try:
        check(history, read_task(history))
    except HistoryBroken as error:
        return Past(history.entries, history.links, str(error), time.time())
    return Past(history.entries, history.links, "", time.time())
