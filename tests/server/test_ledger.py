"""The ledger refuses before anything is drawn, and the statement says what it assumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fedrho.privacy.ledger import BudgetExhausted
from fedrho.privacy.statement import Neighbours, Unit
from fedrho.privacy.zcdp import Rho
from fedrho.server.ledger import charge, statement
from fedrho.server.tasks import Task

MakeTask = Callable[..., Task]


def test_a_step_beyond_the_plan_is_refused(make_task: MakeTask) -> None:
    task = make_task()
    assert charge(task, task.file.steps).rho <= task.budget
    with pytest.raises(BudgetExhausted, match="priced for 4 steps"):
        charge(task, task.file.steps + 1)


def test_a_step_above_the_budget_is_refused(make_task: MakeTask) -> None:
    """The same task with half the noise, which the task file itself would refuse."""
    task = make_task()
    louder = replace(task, mechanism=replace(task.mechanism, noise_multiplier=task.mechanism.noise_multiplier / 2))
    affordable = [step for step in range(1, 5) if louder.mechanism.cost(step, louder.participation) <= louder.budget]
    assert affordable == [1, 2]
    assert charge(louder, 2).rho == louder.mechanism.cost(2, louder.participation)
    with pytest.raises(BudgetExhausted, match="above the budget"):
        charge(louder, 3)


@pytest.mark.parametrize("window", [False, True])
def test_the_statement_names_unit_neighbours_and_what_it_assumes(window: bool, make_task: MakeTask) -> None:
    task = make_task(window=window)
    said = statement(task, charge(task, 2))
    assert (said.unit, said.neighbours, said.rho) == (Unit.DEVICE, Neighbours.ZERO_OUT, charge(task, 2).rho)
    text = " | ".join(said.assumptions)
    for needed in (
        "at most 2 steps, any two of them at least 2 apart",
        "each device's own history",
        "copied, restored from a backup or deleted",
        "larger by the square of their number",
        "not counted here",
        "starting weights",
        "does not depend on the data",
        "the server is trusted",
        "the wire is private",
        "operating system",
        "the divisor 3",
    ):
        assert needed in text
    assert ("server's window" in text) is window


def test_nothing_released_costs_nothing(make_task: MakeTask) -> None:
    task = make_task()
    said = statement(task, replace(charge(task, 1), step=0, rho=task.mechanism.cost(0, task.participation)))
    assert said.rho == Rho(0.0)
    assert said.epsilon(1e-5) == 0.0
