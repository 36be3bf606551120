"""A bar for work that may be asked to stop between two of its parts."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Self

from fedrho.progress import Bar


class StoppableBar(Bar):
    """The first Ctrl-C or SIGTERM lets the unit at hand end, a second one does not."""

    def __init__(self, unit: str, total: int, quiet: bool = False) -> None:
        super().__init__(unit, total, quiet=quiet)
        self._told = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._told_to) for number in (signal.SIGINT, signal.SIGTERM)}
        return super().__enter__()

    def end(self) -> None:
        """From here on a signal stops whatever is done, at once."""
        super().end()
        for number in list(self._before):
            signal.signal(number, self._before.pop(number))

    @property
    def told_to_stop(self) -> bool:
        return self._told

    def say(self, figures: str | None) -> None:
        super().say(f"ending after this {self._unit}" if self._told else figures)

    def _told_to(self, number: int, frame: FrameType | None) -> None:
        if self._told:
            raise KeyboardInterrupt
        self._told = True
        self.say(None)
