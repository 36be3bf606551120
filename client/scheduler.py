"""When a device visits next: one instant for each population, drawn once, kept over restarts.

    counted, not counted, later, finished      within the server's retry window
    interrupted, or the server is away         backoff: twice as long each time, with jitter
    the server contradicts itself or refuses   a day, and up to an hour more

Before a visit begins its failure is written down, so a process that dies and is started again in a loop backs off as well.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedrho.protos.messages import RetryWindow

SHORTEST_SECONDS: Final = 0.05
LONGEST_SECONDS: Final = 7 * 86_400.0
"""Whatever a server or a file says: no device stays away for longer because of it."""
DAY_SECONDS: Final = 86_400.0
FIRST_BACKOFF_SECONDS: Final = 2.0
LONGEST_BACKOFF_SECONDS: Final = 1800.0


def draw(least: float, most: float) -> float:
    """Uniform between the two, by the operating system's generator; never so soon that a mistaken server would be flooded.

    What is no window at all counts as a day.
    """
    seconds = secrets.SystemRandom().uniform(least, most)
    return min(max(seconds, SHORTEST_SECONDS), LONGEST_SECONDS) if math.isfinite(seconds) else DAY_SECONDS


def within(window: RetryWindow) -> float:
    return draw(window.min_seconds, window.max_seconds)


def backoff(failures: int) -> float:
    """After so many failures in a row, 1 or more: between half and one and a half times what doubles with each."""
    middle = min(FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 30), LONGEST_BACKOFF_SECONDS)
    return draw(0.5 * middle, 1.5 * middle)


def a_day() -> float:
    return draw(DAY_SECONDS, DAY_SECONDS + 3600.0)


def steady() -> float:
    """Seconds that nobody sets, and that go on while the machine sleeps, where the system has such a clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass(frozen=True)
class Instant:
    """`seconds` after `drawn_at`, seconds since 1970 by this machine's clock; after so many `failures` in a row."""

    drawn_at: float
    seconds: float
    failures: int = 0

    @staticmethod
    def read(values: Mapping[str, Any]) -> Instant:
        """Raises ValueError, TypeError or KeyError for what nobody can have written."""
        drawn_at, seconds, failures = float(values["drawn_at"]), float(values["seconds"]), int(values["failures"])
        if not math.isfinite(drawn_at) or not 0 <= seconds <= LONGEST_SECONDS or failures < 0:
            raise ValueError("not an instant")
        return Instant(drawn_at, seconds, failures)

    def left(self, now: float) -> float:
        """Seconds from `now`, at most as many as were drawn: a clock that went back makes nobody wait for years."""
        return min(max(self.drawn_at + self.seconds - now, 0.0), self.seconds)


class Schedule:
    """The next instants of one device. A file that is missing or damaged says: at once.

    Within a process the time that passes is that of `steady`, whatever happens to the clock; over a restart it is the clock's.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time, steady: Callable[[], float] = steady) -> None:
        self._path = path
        self._clock = clock
        self._steady = steady
        self._instants = _read(path)
        now = clock()
        self._due = {name: steady() + instant.left(now) for name, instant in self._instants.items()}

    def left(self, population: str) -> float:
        """Seconds until the next visit; 0 where it is due, or none was set."""
        return max(self._due.get(population, 0.0) - self._steady(), 0.0)

    def begin(self, population: str) -> None:
        """A visit begins. Until it has ended otherwise, it counts as one more failure."""
        failures = self._instants[population].failures + 1 if population in self._instants else 1
        self._set(population, backoff(failures), failures)

    def failed(self, population: str) -> None:
        """The visit that began has come to nothing: the backoff is counted from its end."""
        failures = self._instants[population].failures
        self._set(population, backoff(failures), failures)

    def end(self, population: str, seconds: float) -> None:
        """The visit has ended, and the next is in so many seconds."""
        self._set(population, seconds, 0)

    def _set(self, population: str, seconds: float, failures: int) -> None:
        self._instants[population] = Instant(self._clock(), seconds, failures)
        self._due[population] = self._steady() + seconds
        with suppress(OSError):  # a full disk: the instant holds as long as the process
            _write(self._path, self._instants)


def _read(path: Path) -> dict[str, Instant]:
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        values = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): Instant.read(value) for name, value in values.items()}
    return {}


def _write(path: Path, instants: Mapping[str, Instant]) -> None:
    """Whole or not at all; raises OSError."""
    scratch = path.with_name(f"{path.name}.new")
    scratch.write_text(json.dumps({name: vars(instant) for name, instant in instants.items()}), encoding="utf-8")
    os.replace(scratch, path)
