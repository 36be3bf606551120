"""How often, and how far apart, one client may take part: promised by the accountant, kept by server and device."""

from __future__ import annotations

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

    def __post_init__(self) -> None:
        if self.max_times < 1:
            raise ValueError(f"max_times must be at least 1, not {self.max_times}")
        if self.min_separation < 1:
            raise ValueError(f"min_separation must be at least 1, not {self.min_separation}")

    def allows(self, past: Sequence[int], step: int) -> bool:
        """Whether a client that took part in the steps `past` may take part in `step`, in any order of arrival."""
        if len(past) >= self.max_times:
            return False
        return all(abs(step - earlier) >= self.min_separation for earlier in past)

    def most_times(self, steps: int) -> int:
        """The largest number of participations that `steps` steps leave room for."""
        return min(self.max_times, 1 + (steps - 1) // self.min_separation) if steps > 0 else 0
