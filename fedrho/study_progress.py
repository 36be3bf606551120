"""How a simulation tells of itself: a bar on a terminal, nothing in a pipe; and how it is asked to stop."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedrho.console import err
from fedrho.privacy.statement import round_up
from fedrho.simulations.records import Row


class StudyProgress:
    """Looks on while a study runs. The first Ctrl-C or SIGTERM lets the step end, a second one does not."""

    def __init__(self, steps: int, quiet: bool) -> None:
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[rate]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
        )
        self._bar = Progress(*columns, console=err, disable=quiet or not err.is_terminal)
        self._task = self._bar.add_task("starting", total=steps, rate="")
        self._accuracy = ""
        self._spent = ""
        self._began: float | None = None
        self._first = 0
        self._told = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StudyProgress:
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

    def shown(self, row: Row) -> None:
        if self._began is None:  # the first step is slow: TensorFlow traces
            self._began, self._first = time.monotonic(), row["step"]
        if row["held_out"]:
            self._accuracy = f"accuracy {row['held_out']['accuracy']:.3f} "
        if row["rho"] is not None:
            self._spent = f"rho {round_up(row['rho'], 3)}"
        elif row["epsilon"] is not None:  # under Poisson sampling, whose price takes long, where accuracy is measured
            self._spent = f"epsilon {round_up(row['epsilon'], 3)}"
        figures = f"{self._accuracy}{self._spent}"
        self._bar.update(self._task, completed=row["step"], description=figures, rate=self._rate(row["step"]))

    def _rate(self, step: int) -> str:
        assert self._began is not None
        seconds = time.monotonic() - self._began
        return f"{(step - self._first) / seconds:.3g} steps/s" if step > self._first and seconds > 0 else ""

    def _told_to(self, number: int, frame: FrameType | None) -> None:
        if self._told:
            raise KeyboardInterrupt
        self._told = True
        self._bar.update(self._task, description="ending after this step")
