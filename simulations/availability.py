"""Who comes, when, and who stays away after all: the behaviour of devices in virtual time.

    uniform      any device that may take part comes next with the same probability
    diurnal      its chance follows the time of day where it is: low by day, high at night, when it charges
    correlated   its chance depends on what it holds: how many examples, or which label most of them have
    shuffled     all devices in one random order, the same in every epoch; as many are called as are needed

The first three are devices that check in by themselves, `checkins_per_second` of them if all were willing; thinned by their
chances, fewer come and it takes longer. All randomness is keyed by seed, purpose, step, attempt and device, so nothing here has a
state, except that `shuffled` counts how many it has called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrho.server.rounds import Round
from fedrho.server.tasks import Positive, Section, TaskError, TaskFile
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.devices import Devices
from fedrho.simulations.seeded import coins, generator

AT_ONCE = 128
"""Visits that are drawn together, at most."""
ROUNDS = 6
"""Of the Feistel network that shuffles."""
SAMPLE = 255
"""Devices that tell what is usual."""
MOST_KNOWN = 100_000
"""Devices whose chance is remembered."""

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]
Share = Annotated[float, Field(ge=0, lt=1)]
Chances = Callable[[Numbers, Floats], Floats]
"""Of devices, each at a time of its own: how likely each is to come where an ever-willing one would; from 0 to 1."""


class AvailabilitySection(Section):
    """`[availability]` of a study. What is left out follows from the task: see `Behaviour`."""

    model: Literal["uniform", "diurnal", "correlated", "shuffled"] = "uniform"
    checkins_per_second: Positive | None = None
    drop_out: Share = 0.0
    training_seconds: Positive | None = None
    training_spread: Annotated[float, Field(ge=0, le=5)] = 0.5
    slow_share: Share = 0.0
    slow_factor: Annotated[float, Field(ge=1, le=1e6)] = 5.0
    lowest: Annotated[float, Field(ge=0.001, le=1)] | None = None
    peak_hour: Annotated[float, Field(ge=0, lt=24)] | None = None
    time_zones: Annotated[int, Field(ge=1, le=24)] | None = None
    by: Literal["examples", "label"] | None = None
    strength: Annotated[float, Field(ge=-10, le=10)] | None = None


KEYS = {
    "uniform": (),
    "diurnal": ("lowest", "peak_hour", "time_zones"),
    "correlated": ("lowest", "by", "strength"),
    "shuffled": (),
}


def check_availability(section: AvailabilitySection) -> None:
    """Raises TaskError where a key belongs to another model, or is missing."""
    for name in ("lowest", "peak_hour", "time_zones", "by", "strength"):
        if getattr(section, name) is not None and name not in KEYS[section.model]:
            raise TaskError(f"availability.{name}", f"does not belong to {section.model}; leave it out")
    if section.model == "shuffled" and section.checkins_per_second is not None:
        raise TaskError("availability.checkins_per_second", "shuffled devices are called when they are needed; leave it out")


@dataclass(frozen=True)
class Behaviour:
    """How long training takes and who drops out. Seconds are lognormal around a median, times a factor for slow devices.

    A device is slow for good; how long it takes and whether it drops out is drawn anew for every attempt.
    """

    seed: int
    median: float
    spread: float
    slow_share: float
    slow_factor: float
    drop_out: float

    @staticmethod
    def of(section: AvailabilitySection, file: TaskFile, seed: int) -> Behaviour:
        """Training takes a twentieth of the deadline where nothing else is said."""
        median = section.training_seconds or file.round.deadline_seconds / 20.0
        return Behaviour(seed, median, section.training_spread, section.slow_share, section.slow_factor, section.drop_out)

    def seconds(self, devices: Numbers, step: int, attempt: int) -> Floats:
        """How long each would train."""
        seconds = np.full(len(devices), self.median)
        if self.spread:
            first, second = (coins(devices, self.seed, purpose, step, attempt) for purpose in ("seconds", "more seconds"))
            seconds *= np.exp(self.spread * np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * math.pi * second))
        if self.slow_share:
            seconds[coins(devices, self.seed, "slow") < self.slow_share] *= self.slow_factor
        return seconds

    def drops(self, devices: Numbers, step: int, attempt: int) -> NDArray[np.bool_]:
        """Who would never be heard of again."""
        if not self.drop_out:
            return np.zeros(len(devices), dtype=np.bool_)
        return coins(devices, self.seed, "drop-out", step, attempt) < self.drop_out


class Visit(NamedTuple):
    """A device comes at `when`; if it gets a seat it trains for `seconds`, and uploads unless it drops out."""

    when: float
    device: int
    seconds: float
    drops: bool


class Arrivals(Protocol):
    """The devices that come in one attempt, in the order of their coming."""

    def next(self, after: float) -> Visit | None:
        """The next visit, not before `after`; None while there is nobody who may come. The same again until `taken`."""
        ...

    def taken(self) -> None:
        """The device of the latest visit got its seat."""
        ...

    def wanted(self, round_: Round, awaited: int) -> bool:
        """Whether a device should come, while so many reports are on their way."""
        ...


@dataclass(frozen=True)
class Drawing:
    """What the visits of one attempt are drawn from."""

    devices: Devices
    behaviour: Behaviour
    step: int
    attempt: int

    def visits(self, times: Floats, devices: Numbers) -> Iterator[Visit]:
        seconds = self.behaviour.seconds(devices, self.step, self.attempt).tolist()
        drops = self.behaviour.drops(devices, self.step, self.attempt).tolist()
        return map(Visit, times.tolist(), devices.tolist(), seconds, drops)


class CheckIns:
    """Devices that check in by themselves: visits at a constant rate, each by a random device of the pool, thinned by chances."""

    def __init__(self, drawing: Drawing, rate: float, chances: Chances | None) -> None:
        self._drawing = drawing
        self._pool = drawing.devices.pool
        self._rate = rate
        self._chances = chances
        self._random = generator(drawing.behaviour.seed, "check-ins", drawing.step, drawing.attempt)
        self._drawn: Iterator[Visit] = iter(())
        self._clock = -math.inf
        self._ahead: Visit | None = None

    def next(self, after: float) -> Visit | None:
        """Visits before `after` were in vain; the rate is constant, so the next is as far away from there as ever."""
        while self._ahead is None or self._ahead.when < after or self._ahead.device not in self._pool:
            if not len(self._pool):
                return None
            self._ahead = next(self._drawn, None)
            if self._ahead is None:
                self._drawn = self._draw(max(self._clock, after))
        return self._ahead

    def taken(self) -> None:
        self._ahead = None

    def wanted(self, round_: Round, awaited: int) -> bool:
        """As long as there are seats."""
        return round_.seats_left() > 0

    def _draw(self, after: float) -> Iterator[Visit]:
        """Some visits. Of a pool that is nearly empty a few at a time, so that each may come at every one of them."""
        count = min(AT_ONCE, len(self._pool) if self._chances is None else max(1, len(self._pool) // 16))
        times = after + np.cumsum(self._random.exponential(1.0 / self._rate, count))
        devices = self._pool.many_at(self._random.choice(len(self._pool), count, replace=False))
        self._clock = float(times[-1])
        if self._chances is not None:
            come = self._random.random(count) < self._chances(devices, times)
            times, devices = times[come], devices[come]
        return self._drawing.visits(times, devices)


class Calls:
    """Devices that are called in one order, the same in every epoch; who may not come now is passed over until the next."""

    def __init__(self, drawing: Drawing, called: int) -> None:
        self._drawing = drawing
        self.called = called
        """Places of the order that were called or passed over, over all epochs."""
        self._drawn: Iterator[Visit] = iter(())
        self._ahead: Visit | None = None

    def next(self, after: float) -> Visit | None:
        pool = self._drawing.devices.pool
        while self._ahead is None or self._ahead.device not in pool:
            if not len(pool):
                return None
            if self._ahead is not None:
                self.called += 1
            self._ahead = next(self._drawn, None)
            if self._ahead is None:
                self._drawn = self._draw()
        return self._ahead._replace(when=after)

    def taken(self) -> None:
        self._ahead = None
        self.called += 1

    def wanted(self, round_: Round, awaited: int) -> bool:
        """As long as nobody is on the way with one of the reports that are missing."""
        return round_.counted() + awaited < round_.goal and round_.seats_left() > 0

    def _draw(self) -> Iterator[Visit]:
        size = self._drawing.devices.population
        places = (self.called + np.arange(min(AT_ONCE, size))) % size
        return self._drawing.visits(np.zeros(len(places)), shuffled(places, size, self._drawing.behaviour.seed))


def shuffled(places: Numbers, size: int, seed: int) -> Numbers:
    """What stands at these places of a random order of 0 ... `size` - 1; no table is made.

    A Feistel network over the next power of four, walked until it comes back below `size`.
    """
    half = max(1, math.ceil(math.log2(max(size, 2)) / 2))
    found = _feistel(places, half, seed)
    while (out := found >= size).any():
        found[out] = _feistel(found[out], half, seed)
    return found


def _feistel(places: Numbers, half: int, seed: int) -> Numbers:
    left, right = places >> half, places & (2**half - 1)
    for number in range(ROUNDS):
        left, right = right, left ^ (coins(right, seed, "order", number) * 2**half).astype(np.int64)
    together: Numbers = (left << half) | right
    return together


def diurnal(seed: int, lowest: float, peak_hour: float, time_zones: int) -> Chances:
    """A cosine over the day with its top at `peak_hour`, local time. Zones are an hour apart; second 0 is midnight in one."""

    def chances(devices: Numbers, times: Floats) -> Floats:
        hours = times / 3600.0 + np.floor(time_zones * coins(devices, seed, "time zone"))
        height: Floats = (1.0 + np.cos((hours - peak_hour) * (2.0 * math.pi / 24.0))) / 2.0
        return lowest + (1.0 - lowest) * height

    return chances


def correlated(seed: int, dataset: FederatedDataset, lowest: float, by: str, strength: float) -> Chances:
    """By examples: half of (their number over the usual one) to the power of `strength`. By label: one over the number of the
    most frequent label, counted from 1, to that power. Never below `lowest`, nor above 1."""
    known: dict[int, float] = {}
    usual = float(np.median([dataset.count(device) for device in _some(dataset.size, seed)])) if by == "examples" else 1.0

    def raw(device: int) -> float:
        if by == "examples":
            return 0.5 * float((dataset.count(device) / usual) ** strength)
        return float((1.0 + _usual_label(dataset, device)) ** -strength)

    def chance(device: int) -> float:
        if device not in known:
            if len(known) >= MOST_KNOWN:
                known.clear()
            known[device] = min(1.0, max(lowest, raw(device)))
        return known[device]

    return lambda devices, times: np.array([chance(device) for device in devices.tolist()])


def _some(size: int, seed: int) -> list[int]:
    """A sample of devices, to know what is usual."""
    chosen: list[int] = generator(seed, "usual").integers(0, size, SAMPLE).tolist()
    return chosen


def _usual_label(dataset: FederatedDataset, device: int) -> int:
    """The label that most examples of a device have; the lowest of several."""
    labels, counts = np.unique(dataset.examples(device).labels, return_counts=True)
    return max(0, int(labels[counts.argmax()]))


def chances_of(section: AvailabilitySection, seed: int, dataset: FederatedDataset | None) -> Chances | None:
    """None where everybody is always willing. Raises TaskError where the data are needed and not there."""
    lowest = section.lowest or 0.1
    if section.model == "diurnal":
        peak = 2.0 if section.peak_hour is None else section.peak_hour
        return diurnal(seed, lowest, peak, section.time_zones or 4)
    if section.model == "correlated":
        if dataset is None:
            raise TaskError("availability.model", "correlated needs the data set")
        return correlated(seed, dataset, lowest, section.by or "examples", 1.0 if section.strength is None else section.strength)
    return None


def rate_of(section: AvailabilitySection, file: TaskFile) -> float:
    """Check-ins a second while all are willing: where nothing is said, the goal in a tenth of the deadline."""
    return section.checkins_per_second or 10.0 * file.round.goal / file.round.deadline_seconds
