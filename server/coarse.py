"""Who came, as operators see it: in whole groups, so that no figure moves for one device alone.

Every figure is a count that moves by GROUP devices or more at once, or a share of FATES devices or more, told in steps that GROUP
of them make. What it takes to see one device is to know of all others of its group. That is no differential privacy: whoever does
know all others learns the last one, and when things happened is not hidden at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

GROUP: Final = 5
"""Devices, or answers to them, that are shown together."""

FATES: Final = 10 * GROUP
"""Devices behind a share in tenths, at least: one of them is a fifth of a tenth."""

MOST_HELD: Final = 1000
"""Values that wait for `Groups.tell`, because strangers must not fill the memory."""

K = TypeVar("K", bound=Hashable)


def whole(count: int) -> int:
    """Down to whole groups."""
    return count - count % GROUP


def shown_fill(counted: int, goal: int) -> float:
    """Reports per goal, down to whole groups and to tenths.

    Groups are counted back from the goal, for a full round is seen by its release: the first group is the larger one, and between
    two values there are GROUP reports, or all of a goal that is smaller.
    """
    if counted >= goal:
        return 1.0
    seen = goal + whole(counted - goal)
    return 10 * seen // goal / 10 if seen >= GROUP else 0.0


@dataclass(frozen=True)
class ShownDropOut:
    """The share of seats whose devices did not report, of attempt after attempt until they are FATES; then the next ones begin.

    Each device is in one share and in no later one, so it is shown once, together with all others of that share.
    """

    rate: float
    """What the task expects until there is a first share, then a tenth."""
    measured: bool = False
    """Whether there was a first share. It depends on how many seats there were, and on nothing that became of them."""
    _kept: int = 0
    _dropped: int = 0

    def observed(self, kept: int, dropped: int) -> ShownDropOut:
        """After an attempt."""
        kept, dropped = self._kept + kept, self._dropped + dropped
        if kept + dropped < FATES:
            return replace(self, _kept=kept, _dropped=dropped)
        return ShownDropOut(round(10 * dropped / (kept + dropped)) / 10, measured=True)


class Groups(Generic[K]):
    """Values that are told by the group, the oldest first; of each key, up to GROUP - 1 wait for others."""

    def __init__(self, tell: Callable[[K, float], None]) -> None:
        self._tell = tell
        self._waiting: defaultdict[K, list[float]] = defaultdict(list)

    def add(self, key: K, value: float = 1.0) -> None:
        """Tells those of the key that are whole groups by now."""
        self.hold(key, value)
        self.tell(key)

    def hold(self, key: K, value: float = 1.0) -> None:
        """Without telling."""
        self._waiting[key].append(value)
        if len(self._waiting[key]) >= MOST_HELD:
            self.tell(key)

    def tell(self, key: K) -> None:
        waiting = self._waiting[key]
        told = whole(len(waiting))
        for value in waiting[:told]:
            self._tell(key, value)
        del waiting[:told]

    def tell_all(self) -> None:
        for key in list(self._waiting):
            self.tell(key)
