"""The devices of a simulation: what each has contributed, by its own ledger, and which of them may come now.

Memory follows the devices that ever took part, time those that come in a step; the population is a number.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.participation import Participation
from fedrho.simulations.state import Arrays, BadState


class Pool:
    """The numbers from 0 to `size` - 1 that are in, by place: a shuffled list of which only what was moved is written down.

    The first `len(self)` places hold those that are in, the others those that are out; every call takes the same time.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._inside = size
        self._at: dict[int, int] = {}
        self._place: dict[int, int] = {}

    def __len__(self) -> int:
        return self._inside

    def __contains__(self, device: int) -> bool:
        return self._place.get(device, device) < self._inside

    def at(self, place: int) -> int:
        return self._at.get(place, place)

    def many_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        look = self._at.get
        return np.fromiter((look(place, place) for place in places.tolist()), dtype=np.int64, count=len(places))

    def take(self, device: int) -> None:
        """Out, if it is in."""
        if (place := self._place.get(device, device)) < self._inside:
            self._inside -= 1
            self._swap(device, place, self._inside)

    def give(self, device: int) -> None:
        """In, if it is out."""
        if (place := self._place.get(device, device)) >= self._inside:
            self._swap(device, place, self._inside)
            self._inside += 1

    def _swap(self, device: int, here: int, there: int) -> None:
        """Moves `device` from one place to another, and what is there to the first."""
        if here != there:
            self._put(self._at.get(there, there), here)
            self._put(device, there)

    def _put(self, device: int, place: int) -> None:
        if device == place:
            self._at.pop(place, None)
            self._place.pop(device, None)
        else:
            self._at[place] = device
            self._place[device] = place

    def arrays(self) -> dict[str, NDArray[np.int64]]:
        places = np.array(sorted(self._at), dtype=np.int64)
        return {"pool.places": places, "pool.devices": self.many_at(places), "pool.inside": np.array([self._inside])}

    def restore(self, arrays: Arrays) -> None:
        self._inside = int(arrays["pool.inside"][0])
        pairs = zip(arrays["pool.places"].tolist(), arrays["pool.devices"].tolist(), strict=True)
        self._at = dict(pairs)
        self._place = {device: place for place, device in self._at.items()}


class Devices:
    """Who took part when, and who may come: `pool` holds those that neither rest, nor are busy, nor have given all they may.

    A device rests until `min_separation` steps and `min_period` seconds have gone by since its latest contribution, as its own
    history would have it; it is busy while it trains.
    """

    def __init__(self, population: int, limits: Participation, min_period: float) -> None:
        self.population = population
        self.pool = Pool(population)
        self._limits = limits
        self._min_period = min_period
        self._past: dict[int, list[int]] = {}
        self._latest: dict[int, float] = {}
        self._resting: defaultdict[int, list[int]] = defaultdict(list)
        self._busy: list[tuple[float, int]] = []
        self._exhausted = 0
        self._rest = 0

    def past(self, device: int) -> tuple[int, ...]:
        """The steps that the device has contributed to."""
        return tuple(self._past.get(device, ()))

    @property
    def participants(self) -> tuple[int, ...]:
        """Devices that ever contributed."""
        return tuple(sorted(self._past))

    def may_ever(self) -> int:
        """Devices that may still contribute to the step that was opened last, at once or later."""
        return self.population - self._exhausted - self._rest

    def open(self, step: int, now: float) -> None:
        """A new step: whoever has rested long enough for it may come again."""
        rested = sorted(self._resting.pop(step, []))
        self._rest -= len(rested)
        for device in rested:
            if (until := self._latest[device] + self._min_period) <= now:
                self.pool.give(device)
            else:
                heapq.heappush(self._busy, (until, device))
        self.wake(now)

    def wake(self, now: float) -> None:
        """Whoever is done by `now` may come again."""
        while self._busy and self._busy[0][0] <= now:
            self.pool.give(heapq.heappop(self._busy)[1])

    def next_wake(self) -> float | None:
        """When the next busy device is done."""
        return self._busy[0][0] if self._busy else None

    def allows(self, device: int, step: int, now: float) -> bool:
        past = self._past.get(device)
        return past is None or (self._limits.allows(past, step) and now >= self._latest[device] + self._min_period)

    def record(self, device: int, step: int, now: float) -> bool:
        """What a seated device writes down before its upload; says no where its limits do, and changes nothing."""
        if not self.allows(device, step, now):
            return False
        past = self._past.setdefault(device, [])
        past.append(step)
        self._latest[device] = now
        if len(past) >= self._limits.max_times:
            self._exhausted += 1
        else:
            self._resting[step + self._limits.min_separation].append(device)
            self._rest += 1
        return True

    def leave(self, busy: Iterable[tuple[float, int]]) -> None:
        """They may come again when they are done: who got a seat and contributed nothing, and who has rested."""
        for one in busy:
            heapq.heappush(self._busy, one)

    # -- what is kept ------------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
        known = self.participants
        busy = sorted(self._busy)
        return {
            **self.pool.arrays(),
            "past.devices": np.array(known, dtype=np.int64),
            "past.counts": np.array([len(self._past[device]) for device in known], dtype=np.int64),
            "past.steps": np.array([step for device in known for step in self._past[device]], dtype=np.int64),
            "past.latest": np.array([self._latest[device] for device in known], dtype=np.float64),
            "busy.until": np.array([until for until, _ in busy], dtype=np.float64),
            "busy.devices": np.array([device for _, device in busy], dtype=np.int64),
        }

    def restore(self, arrays: Arrays, step: int) -> None:
        """As it was after `step` was opened; raises BadState."""
        try:
            self.pool.restore(arrays)
            self._remember(arrays)
            self._busy = list(zip(arrays["busy.until"].tolist(), arrays["busy.devices"].tolist(), strict=True))
        except (KeyError, ValueError, IndexError) as error:
            raise BadState(f"the state of the devices cannot be read: {type(error).__name__}: {error}") from error
        for device, past in self._past.items():
            back = past[-1] + self._limits.min_separation
            if len(past) >= self._limits.max_times:
                self._exhausted += 1
            elif back > step:
                self._resting[back].append(device)
                self._rest += 1

    def _remember(self, arrays: Arrays) -> None:
        steps, first = arrays["past.steps"].tolist(), 0
        known = arrays["past.devices"].tolist()
        for device, count in zip(known, arrays["past.counts"].tolist(), strict=True):
            self._past[device] = steps[first : first + count]
            first += count
        self._latest = dict(zip(known, arrays["past.latest"].tolist(), strict=True))
