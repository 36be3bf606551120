"""The least noise that fits a budget fits it, and less does not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrho.privacy.banded import BandedToeplitz
from fedrho.privacy.blt import BufferedToeplitz
from fedrho.privacy.calibration import calibrated, least_cohort, least_noise_multiplier, most_steps
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import Grid
from fedrho.privacy.zcdp import Rho, gaussian_rho

sensitivities = st.one_of(st.integers(1, 10**7).map(float), st.floats(1e-3, 1e7))
budgets = st.floats(1e-6, 1e3).map(Rho)


@given(sensitivities, budgets)
def test_the_budget_is_met_in_floating_point_and_nothing_smaller_meets_it(sensitivity_squared: float, budget: Rho) -> None:
    multiplier = least_noise_multiplier(sensitivity_squared, budget)
    assert gaussian_rho(sensitivity_squared, multiplier) <= budget
    assert gaussian_rho(sensitivity_squared, multiplier * (1 - 1e-9)) > budget


@given(budgets)
def test_a_calibrated_mechanism_costs_its_budget(budget: Rho) -> None:
    participation = Participation(6, 31)
    sensitivity_squared = BinaryTree(Grid(1.0), 1.0).sensitivity(200, participation).squared
    cost = BinaryTree(Grid(1.0), least_noise_multiplier(sensitivity_squared, budget)).cost(200, participation)
    assert budget * (1 - 1e-9) < cost <= budget


def test_the_published_model_needs_the_noise_it_used() -> None:
    assert least_noise_multiplier(79, Rho(79 / 98)) == pytest.approx(7.0, rel=1e-15)


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_that_means_nothing_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="budget"):
        least_noise_multiplier(1.0, Rho(budget))


@pytest.mark.parametrize("sensitivity_squared", [0.0, -1.0, math.nan, math.inf])
def test_a_sensitivity_that_means_nothing_is_refused(sensitivity_squared: float) -> None:
    with pytest.raises(ValueError, match=r"sensitivity_squared|noise_multiplier|math domain|expected a nonnegative"):
        least_noise_multiplier(sensitivity_squared, Rho(1.0))


GRID = Grid(1.0)
MECHANISMS = [
    BinaryTree(GRID, 3.0),
    BinaryTree(GRID, 3.0, restarts=(5, 8)),
    BinaryTree(GRID, 3.0, restarts=(5, 8), completed=True),
    IndependentGaussian(GRID, 3.0),
    BandedToeplitz(GRID, 3.0, (1.0, 0.5, 0.25)),
    BufferedToeplitz(GRID, 3.0, (0.9, 0.4), (0.3, 0.2)),
]
NAMES = ["tree", "restarted", "completed", "independent", "banded", "blt"]


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=NAMES)
@pytest.mark.parametrize("participation", [Participation(3, 4), Participation.single(), Participation.epochs(4, 6)])
def test_the_most_steps_are_those_of_a_plain_search(mechanism: Mechanism[Any], participation: Participation) -> None:
    costs = [float(mechanism.cost(steps, participation)) for steps in range(1, 41)]
    for budget in (0.01, 0.06, 0.2, 0.35, 0.7, 2.0, costs[0], costs[11]):
        plain = max((steps for steps, cost in enumerate(costs, 1) if cost <= budget), default=0)
        assert most_steps(mechanism, participation, Rho(budget), limit=40) == plain


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=NAMES)
@pytest.mark.parametrize("budget", [1e-6, 0.3, 100.0])
def test_a_calibrated_mechanism_keeps_the_budget_and_the_next_smaller_float_does_not(
    mechanism: Mechanism[Any], budget: float
) -> None:
    participation = Participation(3, 4)
    found = calibrated(mechanism, 30, participation, Rho(budget))
    assert found.cost(30, participation) <= budget
    less = replace(found, noise_multiplier=found.noise_multiplier * (1 - 4e-16))
    assert less.cost(30, participation) > budget * (1 - 1e-15)
    assert replace(found, noise_multiplier=mechanism.noise_multiplier) == mechanism


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=NAMES)
@pytest.mark.parametrize("mean_noise", [0.003, 0.05, 0.5, 1e3])
def test_the_least_cohort_is_that_of_a_plain_count(mechanism: Mechanism[Any], mean_noise: float) -> None:
    participation, budget = Participation(3, 4), Rho(0.5)
    squared, plain = mechanism.sensitivity(30, participation).squared, 1
    while gaussian_rho(squared, plain * mean_noise) > budget:
        plain += 1
    assert least_cohort(mechanism, 30, participation, budget, mean_noise) == plain


def test_a_cohort_that_fits_exactly_is_taken() -> None:
    assert least_cohort(IndependentGaussian(GRID, 1.0), 9, Participation(1), Rho(1 / 32), 0.5) == 8  # noise 4 / 0.5


def test_not_one_step_fits_a_budget_too_small() -> None:
    assert most_steps(BinaryTree(GRID, 1.0), Participation(1), Rho(0.4)) == 0
    assert most_steps(BinaryTree(GRID, 1.0), Participation(1), Rho(0.5)) == 1


@pytest.mark.parametrize("mean_noise", [0.0, -1.0, math.nan, math.inf])
def test_a_mean_noise_that_means_nothing_is_refused(mean_noise: float) -> None:
    with pytest.raises(ValueError, match="mean_noise"):
        least_cohort(BinaryTree(GRID, 1.0), 10, Participation(1), Rho(1.0), mean_noise)
