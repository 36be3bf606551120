"""What one population has spent: charges of many runs, in one budget that refuses to be overspent.

A population is the devices; a run is one instance of a mechanism: a task, a version of a model, a start from new, an arm of an
experiment. Every run protects the same unit against the same neighbours, so rho adds up over runs (Bun & Steinke 2016, Lemma
1.7). Within a run it does not: each charge is the price of everything that the run released so far, and takes the place of the
one before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from fedrho.privacy.statement import PrivacyStatement, combined, compose, round_up
from fedrho.privacy.zcdp import Rho


class BudgetExhausted(RuntimeError):
    """One more release would cost more than may be spent, or goes beyond the steps it was priced for."""


@dataclass(frozen=True)
class Ledger:
    """Guarantees: the sum over runs, correctly rounded, never exceeds `budget`, and no run's price ever falls."""

    budget: Rho
    runs: Mapping[str, PrivacyStatement] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises BudgetExhausted when the runs cost more than the budget, ValueError when they cannot be added."""
        if not (math.isfinite(self.budget) and self.budget > 0):
            raise ValueError(f"a budget must be a finite rho above 0, not {self.budget}")
        object.__setattr__(self, "runs", MappingProxyType(dict(self.runs)))  # ours alone
        if self.runs:
            compose(self.runs.values())
        if self.spent > self.budget:
            raise BudgetExhausted(f"rho comes to {round_up(self.spent)}, above the budget {self.budget:g}")

    @property
    def spent(self) -> Rho:
        return Rho(math.fsum(statement.rho for statement in self.runs.values()))

    def charge(self, run: str, statement: PrivacyStatement) -> Ledger:
        """The ledger after `run` has released what `statement` is about; call it before releasing.

        Raises BudgetExhausted when the sum would exceed the budget; ValueError when the run's price would fall, for what was
        released stays released, or when unit or neighbours are not those of the other runs.
        """
        before = self.runs.get(run)
        if before is not None and statement.rho < before.rho:
            raise ValueError(f"run {run!r} was charged rho = {before.rho} already; it cannot cost {statement.rho} now")
        try:
            return replace(self, runs={**self.runs, run: statement})
        except BudgetExhausted as error:
            others = math.fsum(part.rho for name, part in self.runs.items() if name != run)
            raise BudgetExhausted(
                f"run {run!r} would bring rho to {round_up(math.fsum((others, statement.rho)))}, above the budget "
                f"{self.budget:g}; the other runs on these devices have spent {round_up(others)}"
            ) from error

    def statement(self) -> PrivacyStatement:
        """What may be said about all runs together; raises ValueError when there is none."""
        return combined(self.runs)
