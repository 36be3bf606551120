"""Pace: how many seats a step needs, and when a device that got none should come back.

A large population is spread: everybody who is turned away draws an instant of a window so wide that about as many devices come in
one step as it has seats for, with some to spare. A small population is gathered: everybody is sent to the same instant, when the
next attempt is expected to open, because its seats can be filled only if nearly all devices are there (Bonawitz et al., "Towards
Federated Learning at Scale: System Design", 2019, section 2.3, pace steering).

All of it is measured as the run goes on: drop-out from attempts that have ended, the length of a step from releases, and how
many devices there are from how often they come (Little's law: number = rate x time between two visits). Nothing of it is about a
single device, and nothing of it touches privacy: who takes part is a promise of `Participation`, not of the pace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fedrho.protos.messages import RetryWindow

MEMORY = 0.8
"""What an average keeps of itself at each new observation."""

EXPECTED = 1.3
"""Seats for one report, before anything was observed."""

CONFIDENCE = 2.5
"""Standard deviations of the number of drop-outs that the seats make room for."""

TO_SPARE = 1.5
"""Devices that are asked to come in one step, for each seat."""

FORGOTTEN = 0.0005
"""Of the drop-out rate, with each attempt that was over before anybody can have been missed: seats that nobody needs go."""

MOST_SEATS = 10
"""Seats for one report of the goal, at most."""

ENOUGH_VISITS = 30
"""For a rate of visits to be taken."""

MOST_SURPRISE = 4.0
"""Times as many devices as the task expects are believed in, at most: strangers must not send all others away for days."""

MOST_VISITS_A_SECOND = 500.0
"""Of devices without a seat: a quarter of what one core answers."""

SHORTEST_SECONDS = 0.05
LONGEST_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class DropOut:
    """The share of seated devices that are not counted: `rate` is an average over attempts, the latest weighing most.

    With `fixed`, seats are that many times the goal, whatever is observed.
    """

    rate: float
    fixed: float | None = None

    @staticmethod
    def of_task(overselect: float | None) -> DropOut:
        """What a task file asks for; without a wish, what is expected until something was observed."""
        return DropOut(1.0 - 1.0 / (overselect or EXPECTED), overselect)

    def observed(self, kept: int, dropped: int) -> DropOut:
        """After an attempt; those of whom nothing could be known when it ended do not count."""
        if kept + dropped == 0:
            return replace(self, rate=(1.0 - FORGOTTEN) * self.rate)
        seen = dropped / (kept + dropped)
        weight = (1.0 - MEMORY) * min(1.0, (kept + dropped) / 10.0)
        return replace(self, rate=(1.0 - weight) * self.rate + weight * seen)

    def seats(self, goal: int) -> int:
        """Enough that nearly always `goal` of them are counted: mean plus CONFIDENCE standard deviations of the drop-outs."""
        if self.fixed is not None:
            return math.ceil(goal * self.fixed)
        keep = max(1.0 - self.rate, 1.0 / MOST_SEATS)
        seats = goal / keep
        seats += CONFIDENCE * math.sqrt(seats * (1.0 - keep) * keep) / keep
        return min(goal * MOST_SEATS, math.ceil(seats))


@dataclass(frozen=True)
class Pace:
    """`population` devices, as far as known, where `expected` were expected; a step takes `step_seconds` and has `seats`.

    Visits come at `rate` a second.
    """

    population: float
    step_seconds: float
    seats: int
    rate: float = 0.0
    away_seconds: float = 0.0
    since: float = -math.inf
    visits: int = 0
    sent: int = 0
    sent_seconds: float = 0.0
    expected: float = math.inf

    def stepped(self, seconds: float) -> Pace:
        """After a step that took so long from its first device on; one very long step, as of a night, is no measure."""
        seconds = min(max(seconds, SHORTEST_SECONDS), 2.0 * self.step_seconds)
        return replace(self, step_seconds=MEMORY * self.step_seconds + (1.0 - MEMORY) * seconds)

    def visited(self, now: float) -> Pace:
        """A device has come by. The rate is taken anew over each step's length, and with it the number of devices."""
        if math.isinf(self.since):
            return replace(self, since=now, visits=1)
        passed = now - self.since
        if passed < self.step_seconds or self.visits < ENOUGH_VISITS:
            return self._counting_one_more()
        return replace(self._measured(passed), since=now, visits=1, sent=0, sent_seconds=0.0)

    def sent_away(self, window: RetryWindow) -> Pace:
        """A device was told to come back within `window`."""
        mean = (window.min_seconds + window.max_seconds) / 2.0
        return replace(self, sent=self.sent + 1, sent_seconds=self.sent_seconds + mean)

    def window(self, opens_in: float) -> RetryWindow:
        """For a device that is turned away; the next attempt is expected to open in `opens_in` seconds."""
        wanted = self.seats * TO_SPARE
        if self.population <= wanted:
            gathering = max(SHORTEST_SECONDS, 0.1 * self.step_seconds, min(opens_in, LONGEST_SECONDS))
            return RetryWindow(gathering, gathering + 0.1 * self.step_seconds)
        mean = max(self.step_seconds * self.population / wanted, self.population / MOST_VISITS_A_SECOND)
        mean = min(mean, LONGEST_SECONDS)
        return RetryWindow(0.5 * mean, 1.5 * mean)

    def _counting_one_more(self) -> Pace:
        """`replace` of the number of visits; three times as fast, for it happens at every check-in."""
        after = object.__new__(Pace)
        after.__dict__.update(self.__dict__, visits=self.visits + 1)
        return after

    def _measured(self, passed: float) -> Pace:
        """Who comes now was sent away before: the mean time away is an average over about that time."""
        rate = self.visits / passed
        if self.sent == 0:  # everybody found a seat
            return replace(self, rate=rate, population=max(MEMORY * self.population, float(self.visits)))
        mean = self.sent_seconds / self.sent
        away = self.away_seconds or mean
        away += (mean - away) * min(1.0, passed / away)
        seen = MEMORY * self.population + (1.0 - MEMORY) * rate * away
        return replace(self, rate=rate, away_seconds=away, population=min(seen, MOST_SURPRISE * self.expected))
