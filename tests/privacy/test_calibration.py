"""The least noise that fits a budget fits it, and less does not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrho.privacy.calibration import least_noise_multiplier
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
