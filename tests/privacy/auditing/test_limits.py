"""What rho allows, against the closed forms, published figures and numerical integration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from fedrho.privacy.auditing.limits import (
    epsilon_between,
    largest_accuracy,
    largest_advantage,
    largest_auc,
    largest_separation,
)
from fedrho.privacy.zcdp import Rho, epsilon


@pytest.mark.parametrize(
    ("rho", "accuracy", "auc"), [(0.1, 0.5885, 0.6241), (0.25, 0.6382, 0.6915), (0.81, 0.7377, 0.8159), (2.63, 0.8743, 0.9476)]
)
def test_limits_at_the_production_figures(rho: float, accuracy: float, auc: float) -> None:
    assert round(largest_accuracy(Rho(rho)), 4) == accuracy
    assert round(largest_auc(Rho(rho)), 4) == auc
    assert largest_advantage(Rho(rho)) == pytest.approx(2 * largest_accuracy(Rho(rho)) - 1)


def test_limits_are_those_of_the_best_test_between_two_gaussians() -> None:
    mu = largest_separation(Rho(0.81))
    auc, _ = quad(lambda x: norm.pdf(x, mu) * norm.cdf(x), -10, 12)
    advantage = max(norm.sf(t, mu) - norm.sf(t) for t in np.linspace(-3, 5, 8001))
    assert largest_auc(Rho(0.81)) == pytest.approx(auc, abs=1e-9)
    assert largest_advantage(Rho(0.81)) == pytest.approx(advantage, abs=1e-7)


def test_no_rho_leaves_an_attacker_only_luck() -> None:
    assert (largest_accuracy(Rho(0.0)), largest_auc(Rho(0.0)), largest_advantage(Rho(0.0))) == (0.5, 0.5, 0.0)


@pytest.mark.parametrize("rho", [-1.0, math.nan, math.inf])
def test_a_rho_that_is_none_is_refused(rho: float) -> None:
    with pytest.raises(ValueError, match="rho"):
        largest_auc(Rho(rho))


@pytest.mark.parametrize(
    ("rho", "delta", "exact"), [(0.81, 1e-6, 6.44548), (0.81, 1e-10, 8.54892), (2.63, 1e-6, 12.99263), (2.63, 1e-10, 16.74198)]
)
def test_equal_deviations_give_the_exact_epsilon_of_one_gaussian(rho: float, delta: float, exact: float) -> None:
    assert epsilon_between(math.sqrt(2 * rho), 1.0, 1.0, delta) == pytest.approx(exact, abs=5e-6)
    assert epsilon_between(math.sqrt(2 * rho), 1.0, 1.0, delta) < epsilon(Rho(rho), delta)


@pytest.mark.parametrize(
    ("mean", "out", "inside", "delta"),
    [(1.0, 1.0, 1.3, 1e-3), (1.0, 1.3, 1.0, 1e-3), (0.0, 1.0, 2.0, 1e-2), (-2.0, 0.5, 0.6, 1e-5), (3.0, 1.0, 1.0001, 1e-4)],
)
def test_at_that_epsilon_the_worse_direction_has_exactly_delta(mean: float, out: float, inside: float, delta: float) -> None:
    found = epsilon_between(mean, out, inside, delta)
    one = excess_mass(found, (0.0, out), (mean, inside))
    other = excess_mass(found, (mean, inside), (0.0, out))
    assert max(one, other) == pytest.approx(delta, rel=1e-3)


def excess_mass(eps: float, p: tuple[float, float], q: tuple[float, float]) -> float:
    """The integral of max(0, p - exp(eps) q), on a fine grid."""
    x = np.linspace(-30, 30, 600_001)
    return float(np.sum(np.maximum(0.0, norm.pdf(x, *p) - math.exp(eps) * norm.pdf(x, *q))) * (x[1] - x[0]))


def test_nearly_equal_deviations_are_as_equal_ones() -> None:
    equal = epsilon_between(1.5, 1.0, 1.0, 1e-6)
    for gap in (1e-9, 1e-12, 1e-15):
        assert epsilon_between(1.5, 1.0, 1.0 + gap, 1e-6) == pytest.approx(equal, rel=1e-6)


def test_the_same_gaussian_twice_and_indistinguishable_ones_have_epsilon_zero() -> None:
    assert epsilon_between(0.0, 2.0, 2.0, 1e-9) == 0.0
    assert epsilon_between(1e-4, 1.0, 1.0, 1e-2) == 0.0


def test_the_scale_does_not_matter() -> None:
    assert epsilon_between(1.5e-9, 1e-9, 1.2e-9, 1e-6) == pytest.approx(epsilon_between(1.5, 1.0, 1.2, 1e-6), rel=1e-9)


@pytest.mark.parametrize("arguments", [(1.0, 0.0, 1.0, 0.1), (1.0, 1.0, math.inf, 0.1), (math.nan, 1.0, 1.0, 0.1)])
def test_what_is_no_gaussian_is_refused(arguments: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="finite mean"):
        epsilon_between(*arguments)
    with pytest.raises(ValueError, match="delta"):
        epsilon_between(1.0, 1.0, 1.0, 0.0)
