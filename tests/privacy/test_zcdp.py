"""rho and epsilon against the closed forms, the exact Gaussian trade-off, and Google's accountants."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import log_ndtr

from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import Grid
from fedrho.privacy.zcdp import Rho, epsilon, gaussian_rho

rhos = st.floats(1e-6, 50).map(Rho)
deltas = st.floats(-12, -1).map(lambda exponent: 10.0**exponent)


def simple(rho: float, delta: float) -> float:
    """Bun & Steinke 2016, Prop. 1.3."""
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def exact(rho: float, delta: float) -> float:
    """The epsilon of one Gaussian with mu = sqrt(2 rho) (Balle & Wang 2018, Theorem 8), solved in logarithms."""
    mu = math.sqrt(2 * rho)

    def excess(eps: float) -> float:
        log_p, log_q = log_ndtr(mu / 2 - eps / mu), eps + log_ndtr(-mu / 2 - eps / mu)
        return float(log_p + math.log(-math.expm1(min(log_q - log_p, -1e-300))) - math.log(delta))

    return float(brentq(excess, 0.0, simple(rho, delta), xtol=1e-12)) if excess(0.0) > 0 else 0.0


@pytest.mark.parametrize(
    ("rho", "delta", "by_simple", "by_cks", "by_exact"),
    [
        (0.81, 1e-6, 7.50046, 6.87564, 6.44548),
        (0.81, 1e-10, 9.44735, 8.92221, 8.54892),
        (2.63, 1e-6, 14.68567, 13.79233, 12.99263),
        (2.63, 1e-10, 18.19380, 17.43058, 16.74198),
    ],
)
def test_published_conversions_to_the_last_digit(
    rho: float, delta: float, by_simple: float, by_cks: float, by_exact: float
) -> None:
    assert round(simple(rho, delta), 5) == by_simple
    assert round(epsilon(Rho(rho), delta), 5) == by_cks
    assert round(exact(rho, delta), 5) == by_exact


def test_production_models_cost_what_was_published() -> None:
    es_es = BinaryTree(Grid(1.0), 7.0).cost(2000, Participation(6, 314))
    assert round(es_es, 6) == 0.806122
    assert round(epsilon(es_es, 1e-10), 4) == 8.8985
    assert round(gaussian_rho(3 / 5, 1.411), 6) == 0.150684
    assert round(gaussian_rho(2, 8.35), 7) == 0.0143426
    assert IndependentGaussian(Grid(1.0), 2.0).cost(100, Participation(8)) == 8 / (2 * 2.0**2)


@given(rhos, deltas)
def test_epsilon_lies_between_the_exact_gaussian_and_the_simple_bound(rho: Rho, delta: float) -> None:
    value = epsilon(rho, delta)
    assert exact(rho, delta) - 1e-9 <= value <= simple(rho, delta) + 1e-9


@given(rhos, deltas)
def test_epsilon_is_the_minimum_over_a_grid_of_orders(rho: Rho, delta: float) -> None:
    excess = np.exp(np.linspace(-8, 18, 20_001))
    alpha = 1 + excess
    grid = alpha * rho - np.log(alpha * delta) / excess + np.log(excess / alpha)
    assert epsilon(rho, delta) == pytest.approx(max(0.0, float(grid.min())), rel=1e-5, abs=1e-9)


@given(rhos, deltas, st.floats(1, 3))
def test_epsilon_rises_with_rho_and_falls_with_delta(rho: Rho, delta: float, factor: float) -> None:
    assert epsilon(Rho(rho * factor), delta) >= epsilon(rho, delta) - 1e-9
    assert epsilon(rho, delta / factor) >= epsilon(rho, delta) - 1e-9


@pytest.mark.parametrize("rho", [0.01, 0.1, 0.806122, 2.63, 10.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-10])
def test_epsilon_agrees_with_the_renyi_accountant_and_stays_above_the_loss_distribution(rho: float, delta: float) -> None:
    """A finer search cannot be beaten by a grid of orders; their grid comes within 1e-4, relatively, of the optimum."""
    event = dp_accounting.GaussianDpEvent(1 / math.sqrt(2 * rho))
    renyi = RdpAccountant(orders=1 + np.exp(np.linspace(-4, 8, 2000))).compose(event).get_epsilon(delta)
    ours = epsilon(Rho(rho), delta)
    assert renyi - 1e-4 * renyi <= ours <= renyi + 1e-9
    assert ours >= PLDAccountant().compose(event).get_epsilon(delta)


def test_no_loss_at_all_is_epsilon_zero() -> None:
    assert epsilon(Rho(0.0), 1e-10) == 0.0
    assert epsilon(Rho(1e-30), 1e-5) == pytest.approx(0.0, abs=1e-9)
    assert epsilon(Rho(0.001), 0.5) == 0.0


@pytest.mark.parametrize("rho", [-1e-9, math.nan, math.inf])
def test_a_rho_that_means_nothing_is_refused(rho: float) -> None:
    with pytest.raises(ValueError, match="rho"):
        epsilon(Rho(rho), 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 2.0, math.nan, math.inf])
def test_a_delta_that_means_nothing_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon(Rho(1.0), delta)


@pytest.mark.parametrize("multiplier", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_multiplier_that_means_nothing_is_refused(multiplier: float) -> None:
    with pytest.raises(ValueError, match="noise_multiplier"):
        gaussian_rho(1.0, multiplier)


@pytest.mark.parametrize("multiplier", [1e-200, 1e200])
def test_a_multiplier_whose_square_is_no_number_is_refused_as_one(multiplier: float) -> None:
    with pytest.raises(ValueError, match="noise_multiplier"):
        gaussian_rho(1.0, multiplier)


@pytest.mark.parametrize("sensitivity_squared", [-1.0, math.nan, math.inf])
def test_a_sensitivity_that_means_nothing_is_refused(sensitivity_squared: float) -> None:
    with pytest.raises(ValueError, match="sensitivity_squared"):
        gaussian_rho(sensitivity_squared, 1.0)
