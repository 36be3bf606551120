"""What every store refuses, whatever it keeps its state in: the wrong task, the wrong step, the wrong state, too high a price.

state      may become
ACTIVE     PAUSED, CANCELLED; FINISHED by the last commit alone
PAUSED     ACTIVE, CANCELLED; FINISHED by the last commit alone (a round that was full when the pause came is released)
CANCELLED  -
FINISHED   -
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from fedrho.privacy.ledger import BudgetExhausted
from fedrho.privacy.statement import round_up
from fedrho.privacy.zcdp import Rho
from fedrho.server.ledger import Charge
from fedrho.server.release import RunState, StoreConflict
from fedrho.server.tasks import TaskFile

FINAL = frozenset({RunState.CANCELLED, RunState.FINISHED})
FORMER: dict[str, Any] = {"round.overselect": 1.3, "round.retry_seconds": [5.0, 15.0]}
"""What these keys stood for when a file left them out, until the server measured both for itself; neither touches privacy."""


def check_same_task(where: str, stored: TaskFile, here: TaskFile) -> None:
    """Raises StoreConflict that names the keys in which the tasks differ. A key that is left out is no difference from FORMER."""
    changed = sorted(_differences("", stored.model_dump(mode="json"), here.model_dump(mode="json")))
    if changed:
        raise StoreConflict(
            f"{where}: holds a run of another task named {stored.name!r} ({'; '.join(changed)}); "
            "give the task another name, or choose another store"
        )


def check_not_cancelled(where: str, name: str, state: RunState) -> None:
    if state is RunState.CANCELLED:
        raise StoreConflict(f"{where}: run {name!r} was cancelled and cannot go on; give the task another name")


def check_next(where: str, name: str, state: RunState, latest: Charge, charge: Charge) -> None:
    """Raises StoreConflict unless `charge` is the step after the latest one of a run that goes on, at no lower price."""
    if state in FINAL:
        raise StoreConflict(f"{where}: run {name!r} is {state.value}; nothing more can be released")
    if charge.step != latest.step + 1:
        raise StoreConflict(f"{where}: step {charge.step} does not follow the latest release of {name!r}, {latest.step}")
    if not (math.isfinite(charge.rho) and charge.rho >= latest.rho):
        raise StoreConflict(f"{where}: run {name!r} was charged rho = {latest.rho} already; it cannot cost {charge.rho} now")


def check_transition(where: str, name: str, before: RunState, after: RunState) -> bool:
    """Whether something changes; raises StoreConflict where it must not."""
    if before is after:
        return False
    if before in FINAL or after is RunState.FINISHED:
        raise StoreConflict(f"{where}: run {name!r} is {before.value} and cannot be {after.value}")
    return True


def check_spending(budget: Rho | None, name: str, rho: Rho, others: Iterable[Rho]) -> None:
    """Raises BudgetExhausted when `name` at `rho` and the other runs together, correctly rounded, exceed the budget."""
    apart = list(others)
    if budget is None or math.fsum([*apart, rho]) <= budget:
        return
    raise BudgetExhausted(
        f"run {name!r} would bring rho to {round_up(math.fsum([*apart, rho]))}, above the store's budget {budget:g}; "
        f"the other runs on these devices have spent {round_up(math.fsum(apart))}"
    )


def check_budget(rho: Rho | None, spent: Iterable[Rho]) -> None:
    """Raises BudgetExhausted when that much is spent already, ValueError for what is no budget."""
    if rho is None:
        return
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"a budget must be a finite rho above 0, not {rho!r}")
    total = math.fsum(spent)
    if total > rho:
        raise BudgetExhausted(f"rho comes to {round_up(total)} already, above a budget of {rho:g}; a budget cannot be lower")


def _differences(prefix: str, there: Any, here: Any) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in there.keys() | here.keys():
            yield from _differences(f"{prefix}.{key}" if prefix else key, there.get(key), here.get(key))
    elif there != here and (here is not None or there != FORMER.get(prefix)):
        yield f"{prefix} is {there} there, {here} here"
