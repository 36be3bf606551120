"""What DP-SGD costs under substitution: against integrals, against every other pair of gradients, against the way round."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import fftconvolve
from scipy.stats import norm

from fedrho.privacy.labels.dp_sgd import DpSgdCost, least_noise

GRID = np.linspace(-25.0, 25.0, 100_001)


def mixture(rate: float, centre: float, sigma: float) -> NDArray[np.float64]:
    return np.asarray((1 - rate) * norm.pdf(GRID, 0.0, sigma) + rate * norm.pdf(GRID, centre, sigma))


def divergence(p: NDArray[np.float64], q: NDArray[np.float64], epsilon: float) -> float:
    """delta at epsilon of two densities on the grid."""
    return float(np.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0.0), GRID))


@pytest.mark.parametrize(("sigma", "rate", "epsilon"), [(1.0, 0.1, 0.3), (0.7, 0.01, 0.05)])
def test_one_step_is_the_integral_of_the_antipodal_pair(sigma: float, rate: float, epsilon: float) -> None:
    exact = divergence(mixture(rate, 1.0, sigma), mixture(rate, -1.0, sigma), epsilon)
    assert exact * (1 - 1e-6) <= DpSgdCost(sigma, rate, 1).delta(epsilon) <= exact * 1.01


def test_no_other_pair_of_clipped_gradients_is_told_apart_better() -> None:
    """On a line, of any sign and size; in the plane, by sampling, at any angle."""
    sigma, rate, epsilon = 1.0, 0.2, 0.4
    worst = divergence(mixture(rate, 1.0, sigma), mixture(rate, -1.0, sigma), epsilon)
    for first in np.linspace(-1, 1, 5):
        for second in np.linspace(-1, 1, 5):
            assert divergence(mixture(rate, first, sigma), mixture(rate, second, sigma), epsilon) <= worst + 1e-9
    random = np.random.default_rng(0)
    for angle in np.linspace(0.0, np.pi, 7):
        points = random.normal(size=(200_000, 2))
        centres = np.array([[1.0, 0.0], [np.cos(angle), np.sin(angle)]])
        points[random.random(len(points)) < rate] += centres[0]
        p, q = (1 - rate + rate * np.exp(points @ centre - 0.5) for centre in centres)
        drawn = np.maximum(1 - math.exp(epsilon) * q / p, 0.0)
        assert drawn.mean() <= worst + 4 * drawn.std() / math.sqrt(len(points))  # one in 30,000 for each angle


def test_three_steps_are_the_convolution_of_their_losses() -> None:
    """Losses of one step are put on a fine lattice by rounding to nearest, and convolved."""
    sigma, rate, steps, epsilon, width = 1.0, 0.3, 3, 0.8, 1e-3
    p, q = mixture(rate, 1.0, sigma), mixture(rate, -1.0, sigma)
    places = np.rint(np.log(p / q) / width).astype(int)
    offset = places.min()
    masses = np.bincount(places - offset, weights=p * (GRID[1] - GRID[0]))
    composed = masses
    for _ in range(steps - 1):
        composed = fftconvolve(composed, masses)
    losses = (np.arange(len(composed)) + steps * offset) * width
    exact = float(np.sum(composed * np.maximum(1 - np.exp(epsilon - losses), 0.0)))
    assert DpSgdCost(sigma, rate, steps).delta(epsilon) == pytest.approx(exact, rel=0.02)


def test_all_records_in_one_step_are_one_gaussian_of_twice_the_sensitivity() -> None:
    """Balle & Wang 2018, theorem 8, with sensitivity 2 and standard deviation 3."""
    epsilon, ratio = 1.0, 2.0 / 3.0
    exact = norm.cdf(ratio / 2 - epsilon / ratio) - math.exp(epsilon) * norm.cdf(-ratio / 2 - epsilon / ratio)
    assert DpSgdCost(3.0, 1.0, 1).delta(epsilon) == pytest.approx(exact, rel=0.01)
    with_more_steps = DpSgdCost(3.0 * math.sqrt(50), 1.0, 50)
    assert with_more_steps.delta(epsilon) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(2.0, 128 / 1437, 300), (8.0, 0.3, 40)])
def test_a_substitution_costs_more_than_a_removal_and_less_than_a_removal_and_an_addition(
    sigma: float, rate: float, steps: int
) -> None:
    cost = DpSgdCost(sigma, rate, steps)
    assert cost.add_or_remove_epsilon(1e-5) < cost.epsilon(1e-5) < cost.converted_epsilon(1e-5)


def test_add_or_remove_is_what_the_accountant_of_tensorflow_privacy_prints() -> None:
    """Its `compute_dp_sgd_privacy` composes this event by this accountant (dp_accounting's PLD, Poisson sampling)."""
    from dp_accounting.pld import PLDAccountant

    cost = DpSgdCost(1.1, 256 / 60000, 300)
    assert cost.add_or_remove_epsilon(1e-5) == pytest.approx(PLDAccountant().compose(cost.event()).get_epsilon(1e-5), rel=2e-3)


def test_the_least_noise_keeps_its_epsilon_and_a_little_less_does_not() -> None:
    found = least_noise(2.0, 1e-5, 0.1, 100)
    assert found.epsilon(1e-5) <= 2.0
    assert DpSgdCost(found.noise_multiplier / 1.003, 0.1, 100).epsilon(1e-5) > 2.0


def test_prices_that_nobody_can_pay_are_refused() -> None:
    for sigma, rate, steps in ((0.0, 0.1, 1), (math.nan, 0.1, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, 0.1, 0)):
        with pytest.raises(ValueError, match="not"):
            DpSgdCost(sigma, rate, steps)
    for epsilon, delta in ((0.0, 1e-5), (1.0, 0.0), (math.inf, 1e-5)):
        with pytest.raises(ValueError, match="not"):
            least_noise(epsilon, delta, 0.1, 10)
