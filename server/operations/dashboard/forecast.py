"""When a run will have finished, and what it will have spent by then.

The price of every step to come is the mechanism's own, the one that the ledger will charge. How long a step takes is not known:
it is taken from the latest steps, as their median, and as their quartiles for the quicker and the slower end.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeVar

from fedrho.server.chain import Entry
from fedrho.server.tasks import Task

T = TypeVar("T")

RECENT: Final = 20
"""Steps whose times are looked at."""
POINTS: Final = 120
"""Of a curve; more would not be seen."""


@dataclass(frozen=True)
class Pace:
    """Seconds from one release to the next, over the `count` latest ones."""

    quick: float
    median: float
    slow: float
    count: int


@dataclass(frozen=True)
class Forecast:
    """`affordable` is the last step that the budget covers. The times are None where no pace is known, or nothing is left."""

    affordable: int
    final_rho: float
    pace: Pace | None
    ends_at: float | None = None
    earliest: float | None = None
    latest: float | None = None


def pace(entries: Sequence[Entry]) -> Pace | None:
    """None before the second release: the first one also waited for devices to hear of the run."""
    times = [entry.committed_at for entry in entries if entry.step > 0][-RECENT - 1 :]
    gaps = [after - before for before, after in pairwise(times)]
    if not gaps:
        return None
    if len(gaps) == 1:
        return Pace(gaps[0], gaps[0], gaps[0], 1)
    quick, median, slow = statistics.quantiles(gaps, n=4, method="inclusive")
    return Pace(quick, median, slow, len(gaps))


class Prices:
    """What each step of a task brings rho to, computed once."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.steps = task.file.steps
        self.affordable = bisect_right(range(1, self.steps + 1), 0, key=lambda step: 0 if self._covered(step) else 1)
        self._known: dict[int, float] = {0: 0.0}

    def at(self, step: int) -> float:
        if step not in self._known:
            self._known[step] = self._task.mechanism.cost(step, self._task.participation)
        return self._known[step]

    def _covered(self, step: int) -> bool:
        """As the ledger decides it."""
        return self._task.mechanism.cost(step, self._task.participation) <= self._task.budget


def forecast(prices: Prices, entries: Sequence[Entry]) -> Forecast:
    """From the releases so far, the start first."""
    known = pace(entries)
    last = prices.affordable
    step = entries[-1].step if entries else 0
    if known is None or step >= last:
        return Forecast(last, prices.at(last), known)
    began, left = entries[-1].committed_at, last - step
    ends = [began + left * seconds for seconds in (known.median, known.quick, known.slow)]
    return Forecast(last, prices.at(last), known, *ends)


def ahead(prices: Prices, entries: Sequence[Entry], known: Pace) -> list[tuple[int, float, float]]:
    """Step, time and rho of steps to come, from the latest release on; at most POINTS of them."""
    step, began = entries[-1].step, entries[-1].committed_at
    chosen = thinned(range(step, prices.affordable + 1))
    return [(one, began + (one - step) * known.median, prices.at(one)) for one in chosen]


def thinned(values: Sequence[T], most: int = POINTS) -> list[T]:
    """First, last, and some between, evenly."""
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]
