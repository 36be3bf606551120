"""rho and epsilon against the closed forms, the exact Gaussian trade-off, and Google's accountants."""

from __future__ import annotations

import math
from collections.abc import Callable

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import log_ndtr

from fedrho.privacy import zcdp
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import Grid
from fedrho.privacy.zcdp import (
    Rho,
    best_order,
    epsilon,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_rho,
    largest_rho,
    rdp_epsilon,
    simple_epsilon,
)

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


@settings(deadline=None)
@given(rhos, deltas)
def test_epsilon_lies_between_the_exact_gaussian_and_the_simple_bound(rho: Rho, delta: float) -> None:
    value = epsilon(rho, delta)
    assert exact(rho, delta) - 1e-9 <= value <= simple(rho, delta) + 1e-9


@settings(deadline=None)
@given(rhos, deltas)
def test_epsilon_is_the_minimum_over_a_grid_of_orders(rho: Rho, delta: float) -> None:
    excess = np.exp(np.linspace(-8, 18, 20_001))
    alpha = 1 + excess
    grid = alpha * rho - np.log(alpha * delta) / excess + np.log(excess / alpha)
    assert epsilon(rho, delta) == pytest.approx(max(0.0, float(grid.min())), rel=1e-5, abs=1e-9)


@settings(deadline=None)
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


def plain_log_delta(rho: float, value: float) -> float:
    """ln E[(1 - exp(value - L))+] for the loss L ~ N(mu**2 / 2, mu**2), integrated; all terms are positive, nothing cancels."""
    mu = math.sqrt(2 * rho)
    a = value / mu - mu / 2
    if a > -1:  # the density at a is taken out of the integral
        width = max(a, 1.0)
        part, _ = quad(
            lambda s: -math.expm1(-mu * s / width) * math.exp(-a * s / width - (s / width) ** 2 / 2) / width,
            *(0, 90),
            epsabs=0,
            epsrel=1e-12,
            limit=500,
        )
        return -a * a / 2 - math.log(2 * math.pi) / 2 + math.log(part)
    start = max(0.0, -a - 40)
    whole, _ = quad(
        lambda s: -math.expm1(-mu * s) * math.exp(-((a + s) ** 2) / 2), start, 40 - a, epsabs=0, epsrel=1e-12, limit=500
    )
    return math.log(whole) - math.log(2 * math.pi) / 2


WIDE_RHOS = [1e-12, 1e-9, 1e-6, 1e-3, 0.1, 0.81, 10.0, 1e3, 1e6]
WIDE_DELTAS = [1e-300, 1e-100, 1e-30, 1e-10, 1e-6, 1e-3, 0.1, 0.5, 0.9]


@pytest.mark.parametrize("rho", WIDE_RHOS)
def test_the_exact_epsilon_is_where_the_integral_says(rho: float) -> None:
    """Both sides round: float64 leaves 1e-16 / mu of ln delta, and the quadrature 1e-12; so 1e-10 of epsilon is asked."""
    for delta in WIDE_DELTAS:
        found = gaussian_epsilon(Rho(rho), delta)
        if found == 0.0:
            assert plain_log_delta(rho, 1e-300) <= math.log(delta) + 1e-9
        else:
            assert plain_log_delta(rho, found * (1 - 1e-10)) > math.log(delta) > plain_log_delta(rho, found * (1 + 1e-10))


@settings(deadline=None)
@given(st.floats(-12, 6).map(lambda e: Rho(10.0**e)), st.floats(-300, -0.05).map(lambda e: 10.0**e))
def test_the_three_epsilons_keep_their_order_and_the_exact_one_its_delta(rho: Rho, delta: float) -> None:
    exactly, optimal = gaussian_epsilon(rho, delta), epsilon(rho, delta)
    assert exactly <= optimal <= simple_epsilon(rho, delta)
    assert exactly == 0.0 or zcdp._log_delta(rho, exactly) <= math.log(delta)  # of which an exp would keep 13 digits


@settings(deadline=None)
@given(rhos, deltas, st.floats(1.001, 3))
def test_every_conversion_rises_with_rho_and_falls_with_delta(rho: Rho, delta: float, factor: float) -> None:
    for conversion in (simple_epsilon, epsilon, gaussian_epsilon):
        assert conversion(Rho(rho * factor), delta) >= conversion(rho, delta)
        assert conversion(rho, delta / factor) >= conversion(rho, delta)


@pytest.mark.parametrize("delta", [1e-320, 5e-324, 1e-300, math.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("rho", [5e-324, 1e-200, 1e-22, 1.0, 1e9])
def test_the_ends_of_the_floats_neither_hang_nor_turn_into_nonsense(rho: float, delta: float) -> None:
    values = [conversion(Rho(rho), delta) for conversion in (gaussian_epsilon, epsilon, simple_epsilon)]
    assert all(math.isfinite(value) and value >= 0 for value in values)
    assert rho < 1e-30 or values == sorted(values)  # beyond that the best order is above e**40, where the search ends


@settings(deadline=None)
@given(st.floats(1e-6, 100), deltas)
def test_the_largest_rho_is_the_inverse_to_the_last_bit(allowed: float, delta: float) -> None:
    for conversion in (simple_epsilon, epsilon, gaussian_epsilon):
        rho = largest_rho(allowed, delta, conversion)
        assert conversion(rho, delta) <= allowed < conversion(Rho(math.nextafter(rho, math.inf)), delta)


@pytest.mark.parametrize("rho", [0.01, 0.81, 2.63, 10.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-10])
def test_the_exact_epsilon_is_that_of_the_loss_distribution(rho: float, delta: float) -> None:
    """Google's discretisation is pessimistic, by at most its interval of 1e-4."""
    event = dp_accounting.GaussianDpEvent(1 / math.sqrt(2 * rho))
    theirs = PLDAccountant().compose(event).get_epsilon(delta)
    assert -1e-4 <= gaussian_epsilon(Rho(rho), delta) - theirs <= 1e-6


@pytest.mark.parametrize(
    ("rho", "delta", "by_simple", "by_cks", "order", "by_exact"),
    [
        (0.81, 1e-6, 7.50046, 6.87564, 4.89, 6.44548),
        (0.81, 1e-10, 9.44735, 8.92221, 6.12, 8.54892),
        (2.63, 1e-6, 14.68567, 13.79233, 3.19, 12.99263),
        (2.63, 1e-10, 18.19380, 17.43058, 3.87, 16.74198),
    ],
)
def test_our_own_conversions_give_the_published_table(
    rho: float, delta: float, by_simple: float, by_cks: float, order: float, by_exact: float
) -> None:
    found = [conversion(Rho(rho), delta) for conversion in (simple_epsilon, epsilon, gaussian_epsilon)]
    assert [round(value, 5) for value in found] == [by_simple, by_cks, by_exact]
    assert round(best_order(Rho(rho), delta), 2) == order


@settings(deadline=None)
@given(st.floats(1.01, 200), st.floats(0, 100), deltas)
def test_epsilon_of_a_renyi_guarantee_by_its_formula(order: float, value: float, delta: float) -> None:
    formula = value + math.log(1 / (order * delta)) / (order - 1) + math.log(1 - 1 / order)
    assert rdp_epsilon(order, value, delta) == pytest.approx(max(0.0, formula), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(rhos, deltas)
def test_the_best_order_proves_the_epsilon_and_no_other_a_smaller_one(rho: Rho, delta: float) -> None:
    best = best_order(rho, delta)
    assert rdp_epsilon(best, best * rho, delta) == pytest.approx(epsilon(rho, delta), rel=1e-7, abs=1e-9)
    for order in (1 + (best - 1) * 1.1, 1 + (best - 1) / 1.1):
        assert rdp_epsilon(order, order * rho, delta) >= epsilon(rho, delta) * (1 - 1e-9)


@pytest.mark.parametrize("order", [1.0, 0.5, -2.0, math.nan, math.inf])
def test_an_order_that_means_nothing_is_refused(order: float) -> None:
    with pytest.raises(ValueError, match="order"):
        rdp_epsilon(order, 1.0, 1e-6)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_an_epsilon_that_means_nothing_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        largest_rho(value, 1e-6)
    if value != 0.0:
        with pytest.raises(ValueError, match="epsilon"):
            gaussian_delta(Rho(1.0), value)


@pytest.mark.parametrize("conversion", [simple_epsilon, epsilon, gaussian_epsilon, best_order])
def test_no_conversion_takes_nonsense(conversion: Callable[[Rho, float], float]) -> None:
    for rho, delta in [(-1.0, 0.1), (math.nan, 0.1), (math.inf, 0.1), (1.0, 0.0), (1.0, 1.0), (1.0, math.nan), (1.0, -0.1)]:
        with pytest.raises(ValueError, match=r"rho|delta"):
            conversion(Rho(rho), delta)
