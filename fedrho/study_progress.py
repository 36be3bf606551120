"""How a simulation tells of itself: a bar on a terminal, nothing in a pipe; and how it is asked to stop."""

from __future__ import annotations

import time

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from fedrho.privacy.statement import round_up
from fedrho.simulations.records import Row
from fedrho.stoppable import StoppableBar


class StudyProgress(StoppableBar):
    """Looks on while a study runs."""

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
        super().__init__(columns, steps, quiet, "step", rate="")
        self._accuracy = ""
        self._spent = ""
        self._began: float | None = None
        self._first = 0

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
