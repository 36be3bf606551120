"""Who is told how far a long computation is: a plain call, since nothing here knows of terminals.

Of what, how many are done, of how many, and what is being done. The total is None where nobody knows how many it takes. A new
unit, or another total, begins another part of the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Progress = Callable[[str, int, int | None, str], None]


def unwatched(unit: str, done: int, total: int | None, doing: str) -> None:
    """Nobody looks on."""


def watched(items: Collection[Item], unit: str, progress: Progress, doing: str) -> Iterator[Item]:
    """The items one by one; before the first and after each, `progress` is told."""
    progress(unit, 0, len(items), doing)
    for done, item in enumerate(items, 1):
        yield item
        progress(unit, done, len(items), doing)
