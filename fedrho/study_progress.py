"""How a simulation tells of itself: a bar on a terminal, nothing in a pipe; and how it is asked to stop."""

from __future__ import annotations

from fedrho.privacy.statement import round_up
from fedrho.simulations.records import Row
from fedrho.stoppable import StoppableBar


class StudyProgress(StoppableBar):
    """Looks on while a study runs. `rho_budget` is what its task may spend, where it says so in rho."""

    def __init__(self, steps: int, quiet: bool, rho_budget: float | None = None) -> None:
        super().__init__("step", steps, quiet)
        self._budget = "" if rho_budget is None else f" of {rho_budget:g}"
        self._accuracy = ""
        self._spent = ""

    def shown(self, row: Row) -> None:
        """The rate counts from the first step on, which is slow: TensorFlow traces."""
        if row["held_out"]:
            self._accuracy = f"accuracy {row['held_out']['accuracy']:.3f}"
        if row["rho"] is not None:
            self._spent = f"rho {round_up(row['rho'], 3)}{self._budget}"
        elif row["epsilon"] is not None:  # under Poisson sampling, whose price takes long, where accuracy is measured
            self._spent = f"epsilon {round_up(row['epsilon'], 3)}"
        self.reach(row["step"], ", ".join(part for part in (self._spent, self._accuracy) if part))
