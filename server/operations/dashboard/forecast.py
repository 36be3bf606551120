"""When a run will have finished, and what it will have spent by then.

The price of every step to come is the mechanism's own, the one that the ledger will charge. How long a step takes is not known:
it is taken from the latest steps, as their median, and as their quartiles for the quicker and the slower end. No step to come is
said to come earlier than now; where the next one is far too late, there is no pace to go by, and no time is said.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, bisect_right
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
LONG: Final = 3.0
"""Times the slower quartile of late: a step that takes longer is late, and worth a word."""
GRAIN: Final = 0.25
"""Of a step's time: a forecast whose next step is overdue moves on by so much at once, and not with every look at it."""


@dataclass(frozen=True)
class Pace:
    """Seconds from one release to the next, over the `count` latest ones."""

    quick: float
    median: float
    slow: float
    count: int


@dataclass(frozen=True)
class Latest:
    """Release of a run."""

    step: int
    at: float


@dataclass(frozen=True)
class Span:
    """When a step comes: at the median pace, and at the quicker and the slower one."""

    at: float
    earliest: float
    latest: float


@dataclass(frozen=True)
class Forecast:
    """`affordable` is the last step that the budget covers, `last_rise` the first after which rho is what it will be in the end.

    No span is told where no pace is known, the step was released, or the next release is late; `due_at`: since when.
    """

    affordable: int
    last_rise: int
    final_rho: float
    pace: Pace | None
    rises: Span | None = None
    ends: Span | None = None
    due_at: float | None = None


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
        self.last_rise = bisect_left(range(self.affordable + 1), self.at(self.affordable) * (1 - 1e-12), key=self.at)
        """rho is a staircase: with a tree, the last steps mostly cost nothing more."""

    def at(self, step: int) -> float:
        if step not in self._known:
            self._known[step] = self._task.mechanism.cost(step, self._task.participation)
        return self._known[step]

    def _covered(self, step: int) -> bool:
        """As the ledger decides it."""
        return self._task.mechanism.cost(step, self._task.participation) <= self._task.budget


def forecast(prices: Prices, latest: Latest, known: Pace | None, now: float) -> Forecast:
    """From the latest release on."""
    last = prices.affordable
    rises, ends, due_at = None, None, None
    if known is not None and latest.step < last:
        if _late(latest, known, now):
            due_at = latest.at + known.median
        else:
            ends = _span(last, latest, known, now)
            rises = _span(prices.last_rise, latest, known, now) if latest.step < prices.last_rise else None
    return Forecast(last, prices.last_rise, prices.at(last), known, rises, ends, due_at)


def ahead(prices: Prices, latest: Latest, known: Pace, now: float) -> list[tuple[int, float, float]]:
    """Step, time and rho of steps to come, after the latest release itself; at most POINTS of them, and none where it is late."""
    if _late(latest, known, now):
        return []
    chosen = thinned(range(latest.step, prices.affordable + 1))
    times = [latest.at, *(_span(step, latest, known, now).at for step in chosen[1:])]
    return [(step, at, prices.at(step)) for step, at in zip(chosen, times, strict=True)]


def not_before(latest: Latest, known: Pace, now: float) -> float:
    """When the next step can come at the earliest: now, rounded up so that a forecast does not change with every look."""
    grain = GRAIN * known.median
    if grain <= 0.0 or now <= latest.at:
        return max(now, latest.at)
    return latest.at + grain * math.ceil((now - latest.at) / grain)


def _late(latest: Latest, known: Pace, now: float) -> bool:
    return now - latest.at > LONG * known.slow


def _span(step: int, latest: Latest, known: Pace, now: float) -> Span:
    earliest, left = not_before(latest, known, now), step - latest.step - 1
    paces = (known.median, known.quick, known.slow)
    return Span(*(max(latest.at + seconds, earliest) + left * seconds for seconds in paces))


def thinned(values: Sequence[T], most: int = POINTS) -> list[T]:
    """First, last, and some between, evenly."""
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]
