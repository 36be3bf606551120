"""How often, and how far apart, one client may take part: promised by the accountant, kept by server and device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Participation:
    """At most `max_times` steps, any two of them `min_separation` or more apart.

    Steps are releases, numbered from 1. Separation is the *difference*: steps i < j are far enough apart when
    j - i >= min_separation (the b of the matrix-factorisation literature; production accountants that count the rounds
    *between* two participations use b - 1).
    """

    max_times: int
    min_separation: int = 1
    cyclic: bool = False

    @classmethod
    def single(cls) -> Participation:
        """Once."""
        return cls(max_times=1)

    @classmethod
    def epochs(cls, count: int, length: int) -> Participation:
        """Once in each of `count` passes over the clients in the same order, `length` steps a pass."""
        return cls(count, length, cyclic=True)

    @classmethod
    def from_days(cls, steps: int, days: float, hours_between: float = 24.0) -> Participation:
        """`steps` steps spread evenly over `days`, each client taking part at most once in any `hours_between`.

        The last day ends before its last instant: in 2 days a client may come at 0 and at 24 hours, not at 48 again.
        A client that comes whenever it may does so at most ceil(days * 24 / hours_between) times. The separation is the number of
        steps in a window of that length, rounded down. Assumes an even pace: where steps came faster than planned, take the
        separation from the log of the run.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, not {steps}")
        if not (math.isfinite(days) and days > 0):
            raise ValueError(f"days must be a finite number above 0, not {days}")
        if not (math.isfinite(hours_between) and hours_between > 0):
            raise ValueError(f"hours between two participations must be a finite number above 0, not {hours_between}")
        windows = min(max(days * 24.0 / hours_between, 1e-9), float(steps))
        return cls(max(1, math.ceil(windows)), max(1, min(steps, math.floor(steps / windows))))

    def __post_init__(self) -> None:
        for name in ("max_times", "min_separation"):
            if not isinstance(getattr(self, name), int) or isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be a whole number, not {getattr(self, name)!r}")
        if self.max_times < 1:
            raise ValueError(f"max_times must be at least 1, not {self.max_times}")
        if self.min_separation < 1:
            raise ValueError(f"min_separation must be at least 1, not {self.min_separation}")

    def allows(self, past: Sequence[int], step: int) -> bool:
        """Whether a client that took part in the steps `past` may take part in `step`, in any order of arrival."""
        if len(past) >= self.max_times:
            return False
        distances = [abs(step - earlier) for earlier in past]
        if self.cyclic and any(distance % self.min_separation for distance in distances):
            return False
        return all(distance >= self.min_separation for distance in distances)

    def most_times(self, steps: int) -> int:
        """The largest number of participations that `steps` steps leave room for."""
        return min(self.max_times, 1 + (steps - 1) // self.min_separation) if steps > 0 else 0
