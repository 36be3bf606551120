"""What rho allows any attacker at most, and the epsilon between two Gaussians.

Every mechanism here is one Gaussian: for the worst client the best test is the one between N(0, 1) and N(mu, 1) with
mu = sqrt(2 rho), whatever the attacker sees, knows or computes (Dong, Roth & Su 2022, arXiv 1905.02383, section 2.3):

    accuracy <= Phi(mu / 2)        AUC <= Phi(mu / sqrt(2)) = Phi(sqrt(rho))

Assumes a Gaussian mechanism. zCDP alone, without it, does not imply these limits.
"""

from __future__ import annotations

import math

import scipy

from fedrho.privacy.zcdp import Rho

LARGEST_LOG = 700.0
"""Beyond this an exp leaves float64."""


def largest_separation(rho: Rho) -> float:
    """mu: the distance of the two means, in standard deviations of the best test's score."""
    if not (math.isfinite(rho) and rho >= 0):
        raise ValueError(f"rho must be finite and not negative, not {rho}")
    return math.sqrt(2.0 * rho)


def largest_auc(rho: Rho) -> float:
    """The chance at most that one who took part scores above one who did not."""
    return float(scipy.special.ndtr(largest_separation(rho) / math.sqrt(2.0)))


def largest_accuracy(rho: Rho) -> float:
    """The share at most of right guesses when half of the clients took part."""
    return float(scipy.special.ndtr(largest_separation(rho) / 2.0))


def largest_advantage(rho: Rho) -> float:
    """True positives minus false positives at most, at any threshold: 2 * accuracy - 1."""
    return 2.0 * largest_accuracy(rho) - 1.0


def epsilon_between(mean: float, stddev_out: float, stddev_in: float, delta: float) -> float:
    """The least epsilon with which N(0, stddev_out**2) and N(mean, stddev_in**2) are (epsilon, delta)-close in both directions.

    Exact up to float64: the set where the densities' ratio exceeds exp(epsilon) is where a quadratic is positive.
    """
    if not (0 < stddev_out < math.inf and 0 < stddev_in < math.inf and math.isfinite(mean)):
        raise ValueError(f"need a finite mean and stddevs above 0, not {mean}, {stddev_out}, {stddev_in}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie strictly between 0 and 1, not {delta}")

    def excess(epsilon: float) -> float:
        one = _log_delta(epsilon, mean, stddev_out, stddev_in)
        other = _log_delta(epsilon, mean, stddev_in, stddev_out)
        return max(one, other, -LARGEST_LOG) - math.log(delta)

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2.0
    return float(scipy.optimize.brentq(excess, 0.0, high, xtol=1e-12))


def _log_delta(epsilon: float, mean: float, first: float, second: float) -> float:
    """ln of P(S) - exp(epsilon) Q(S) for P = N(0, first**2), Q = N(mean, second**2), S where ln(p / q) > epsilon.

    ln(p / q) - epsilon = a x**2 + b x + c.
    """
    a = 0.5 * (second**-2 - first**-2)
    b = -mean / second**2
    c = 0.5 * (mean / second) ** 2 + math.log(second / first) - epsilon
    in_p, in_q = -math.inf, -math.inf
    for low, high in _positive(a, b, c):
        in_p = _log_add(in_p, _log_mass(low / first, high / first))
        in_q = _log_add(in_q, _log_mass((low - mean) / second, (high - mean) / second))
    factor = epsilon + in_q - in_p if in_p > -math.inf else 0.0
    return in_p + math.log(-math.expm1(factor)) if factor < 0 else -math.inf


def _positive(a: float, b: float, c: float) -> list[tuple[float, float]]:
    """The intervals where a x**2 + b x + c > 0."""
    if a == 0.0 and b == 0.0:
        return [(-math.inf, math.inf)] if c > 0 else []
    if a == 0.0:
        return [(-c / b, math.inf)] if b > 0 else [(-math.inf, -c / b)]
    discriminant = b * b - 4.0 * a * c
    if discriminant <= 0:
        return [(-math.inf, math.inf)] if a > 0 else []
    q = -0.5 * (b + math.copysign(math.sqrt(discriminant), b))  # no cancellation, however small a is
    left, right = sorted((q / a, c / q))
    return [(-math.inf, left), (right, math.inf)] if a > 0 else [(left, right)]


def _log_mass(low: float, high: float) -> float:
    """ln of the standard normal's mass between `low` and `high`, from the nearer tail."""
    if low + high > 0:
        low, high = -high, -low
    upper, lower = float(scipy.special.log_ndtr(high)), float(scipy.special.log_ndtr(low))
    return upper + math.log(-math.expm1(lower - upper)) if lower < upper else -math.inf


def _log_add(one: float, other: float) -> float:
    high, low = max(one, other), min(one, other)
    return high + math.log1p(math.exp(low - high)) if high > -math.inf else high
