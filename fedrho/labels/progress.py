"""How a training on answers tells of itself: a bar on a terminal, nothing in a pipe; and how it is asked to stop."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedrho.stoppable import StoppableBar


class TrainProgress(StoppableBar):
    """Trainings done, of all."""

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
        super().__init__(columns, trainings, quiet, "training")
        self._name = ""

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
