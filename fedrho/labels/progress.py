"""How a training on answers tells of itself: a bar on a terminal, nothing in a pipe; and how it is asked to stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

from fedrho.stoppable import StoppableBar


class TrainProgress(StoppableBar):
    """Trainings done, of all; within one by the steps of its models, so that rate and time left are known early."""

    def __init__(self, trainings: int, quiet: bool) -> None:
        super().__init__("training", trainings, quiet)
        self._name = ""
        self._ended = 0
        self._skipped = False
        self._fits: Sequence[int] = ()
        self._fit = self._step = 0
        self._finished = False

    def __enter__(self) -> Self:
        self.reach(0)
        return super().__enter__()

    def begun(self, name: str, fits: Sequence[int], skipped: bool = False) -> None:
        """`fits` are the steps of its models, one after another, as far as that is known before."""
        self._name, self._skipped, self._fits = name, skipped, fits
        self._fit = self._step = 0
        self._finished = False
        self.say(f"{name}{', done before' if skipped else ''}")

    def within(self, text: str) -> None:
        self.say(f"{self._name}: {text}")

    def fitting(self, done: int, steps: int, loss: float) -> None:
        """As `KerasLearner` tells it; the loss is that on answers, and NaN where nobody may see one."""
        if self._finished or done <= self._step:
            self._fit += 1
        self._step, self._finished = done, done == steps
        before, now = sum(self._fits[: self._fit]), self._fits[self._fit : self._fit + 1]
        share = (before + sum(now) * done / steps) / max(1, sum(self._fits))
        of = f" of model {self._fit + 1}/{len(self._fits)}" if len(self._fits) > 1 else ""
        told = "" if math.isnan(loss) else f", loss on answers {loss:.3f}"
        self.reach(self._ended + min(share, 1.0), f"{self._name}: step {done}/{steps}{of}{told}")

    def ended(self) -> None:
        self._ended += 1
        if self._skipped:
            self.skip_to(self._ended)
        else:
            self.reach(self._ended)
