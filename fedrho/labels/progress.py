"""How a training on answers tells of itself: a bar on a terminal, nothing in a pipe; and how it is asked to stop."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedrho.console import err


class TrainProgress:
    """Trainings done, of all. The first Ctrl-C or SIGTERM lets the one at hand end, a second one does not."""

    def __init__(self, trainings: int, quiet: bool) -> None:
        columns = (
            TextColumn("training"),
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.description}", markup=False),
        )
        self._bar = Progress(*columns, console=err, disable=quiet or not err.is_terminal)
        self._task = self._bar.add_task("starting", total=trainings)
        self._name = ""
        self._told = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> TrainProgress:
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

    def begun(self, name: str, skipped: bool = False) -> None:
        self._name = name
        self._bar.update(self._task, description=f"{name}{', done before' if skipped else ''}")

    def within(self, text: str) -> None:
        self._bar.update(self._task, description=f"{self._name}: {text}")

    def fitting(self, done: int, steps: int, loss: float) -> None:
        """As `KerasLearner` tells it; the loss is that on answers."""
        self.within(f"step {done}/{steps}, loss on answers {loss:.3f}")

    def ended(self) -> None:
        self._bar.advance(self._task)

    def _told_to(self, number: int, frame: FrameType | None) -> None:
        if self._told:
            raise KeyboardInterrupt
        self._told = True
        self._bar.update(self._task, description="ending after this training")
