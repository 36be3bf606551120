"""What has been spent: a charge for every release, refused where it would overspend; and the statement that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedrho.privacy.ledger import BudgetExhausted
from fedrho.privacy.statement import Neighbours, PrivacyStatement, Unit, round_up
from fedrho.privacy.zcdp import Rho
from fedrho.server.starting import starting_assumption
from fedrho.server.tasks import Task


@dataclass(frozen=True)
class Charge:
    """After the release of `step`, everything released so far costs `rho` in total."""

    step: int
    rho: Rho


def charge(task: Task, step: int) -> Charge:
    """The price of going on to release `step`; raises BudgetExhausted before anything is drawn or added."""
    if step > task.file.steps:
        raise BudgetExhausted(f"the task was priced for {task.file.steps} steps; step {step} is not one of them")
    rho = task.mechanism.cost(step, task.participation)
    if rho > task.budget:
        raise BudgetExhausted(f"step {step} would bring rho to {rho}, above the budget {task.budget}")
    return Charge(step, rho)


def same_price(one: Rho, other: Rho) -> bool:
    """Whether two prices are equal but for the rounding of sums on different machines."""
    return math.isclose(one, other, rel_tol=1e-9)


def statement(task: Task, latest: Charge) -> PrivacyStatement:
    """What may be said about everything released up to `latest`."""
    limits, kept_by = task.participation, "each device's own history"
    if task.file.participation.server_window:
        kept_by += " and by the server's window of the tags that devices present"
    return PrivacyStatement(
        unit=Unit.DEVICE,
        neighbours=Neighbours.ZERO_OUT,
        rho=latest.rho,
        exact=task.mechanism.sensitivity(latest.step, limits).exact,
        assumptions=(
            f"each device takes part in at most {limits.max_times} steps, any two of them at least {limits.min_separation} "
            f"apart (difference of step numbers), kept by {kept_by}",
            f"{latest.step} of {task.file.steps} steps were released, with noise {task.mechanism.described()}",
            "no device's history and no store was copied, restored from a backup or deleted",
            "for a person with several devices rho is larger by the square of their number: two devices, four times the rho",
            "other runs on the same devices, not counted here, add their rho",
            starting_assumption(task.file),
            "who takes part, and when, does not depend on the data of a device",
            "the server is trusted, and its shards: they see clipped updates in memory; it adds the noise and keeps seeds secret",
            "the wire is private: nobody else sees the updates on their way",
            "noise grows from seeds of the operating system through AES-128-CTR, as float64 Gaussians rounded to the grid",
            _constants(task, latest.step),
            "only the weights of released steps leave the server, and what follows from who came rather than from data",
        ),
    )


def _constants(task: Task, step: int) -> str:
    """A stop that depends on what was released is not what the price of the first steps is about."""
    text = f"the divisor {task.file.round.goal} and the number of steps are public constants"
    if step == task.file.steps:
        return text
    whole = task.mechanism.cost(task.file.steps, task.participation)
    return f"{text}; a run that is ended here because of what it released costs what all its steps cost, rho = {round_up(whole)}"
