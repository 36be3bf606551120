"""A bar on a terminal, nothing in a pipe, for work that may be asked to stop between two of its parts."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

from rich.progress import Progress, ProgressColumn

from fedrho.console import err


class StoppableBar:
    """The first Ctrl-C or SIGTERM lets the `part` at hand end, a second one does not."""

    def __init__(self, columns: tuple[ProgressColumn, ...], total: int, quiet: bool, part: str, **fields: Any) -> None:
        self._bar = Progress(*columns, console=err, disable=quiet or not err.is_terminal)
        self._task = self._bar.add_task("starting", total=total, **fields)
        self._part = part
        self._told = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._told_to) for number in (signal.SIGINT, signal.SIGTERM)}
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def told_to_stop(self) -> bool:
        return self._told

    def _told_to(self, number: int, frame: FrameType | None) -> None:
        if self._told:
            raise KeyboardInterrupt
        self._told = True
        self._bar.update(self._task, description=f"ending after this {self._part}")
