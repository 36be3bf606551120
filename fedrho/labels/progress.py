"""How a training on answers tells of itself: a bar on a terminal, nothing in a pipe; and how it is asked to stop."""

from __future__ import annotations

from typing import Self

from fedrho.stoppable import StoppableBar


class TrainProgress(StoppableBar):
    """Trainings done, of all."""

    def __init__(self, trainings: int, quiet: bool) -> None:
        super().__init__("training", trainings, quiet)
        self._name = ""
        self._skipped = False

    def __enter__(self) -> Self:
        self.reach(0)
        return super().__enter__()

    def begun(self, name: str, skipped: bool = False) -> None:
        self._name, self._skipped = name, skipped
        self.say(f"{name}{', done before' if skipped else ''}")

    def within(self, text: str) -> None:
        self.say(f"{self._name}: {text}")

    def fitting(self, done: int, steps: int, loss: float) -> None:
        """As `KerasLearner` tells it; the loss is that on answers."""
        self.within(f"step {done}/{steps}, loss on answers {loss:.3f}")

    def ended(self) -> None:
        if self._skipped:
            self.skip_to(self._done + 1)
        else:
            self.reach(self._done + 1)
