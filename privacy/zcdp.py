"""Zero-concentrated differential privacy: rho, its price for a Gaussian release, and its meaning as (epsilon, delta).

    rho = sensitivity**2 / (2 * noise_multiplier**2)                              Bun & Steinke 2016, Prop. 1.6
    epsilon = rho + 2 * sqrt(rho * ln(1/delta))                                   Bun & Steinke 2016, Prop. 1.3 (simple)
    epsilon = min over alpha > 1 of  alpha*rho + ln(1/(alpha*delta))/(alpha-1) + ln(1 - 1/alpha)
                                                                                  Canonne, Kamath & Steinke 2020, Cor. 13
    delta = Phi(mu/2 - epsilon/mu) - exp(epsilon) * Phi(-mu/2 - epsilon/mu),  mu = sqrt(2*rho)
                                                                                  Balle & Wang 2018, Theorem 8 (exact)

The first two follow from rho alone. The last holds only where everything released is one Gaussian mechanism: the tree, matrix
factorisations and unamplified DP-FedAvg are, a subsampled mechanism is not. rho adds up under adaptive composition; epsilon
does not add usefully.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NewType

import scipy  # its parts load when they are used: importing this module stays quick

Rho = NewType("Rho", float)
Conversion = Callable[[Rho, float], float]


def gaussian_rho(sensitivity_squared: float, noise_multiplier: float) -> Rho:
    """The rho of Gaussian noise with standard deviation `noise_multiplier` per unit of clip norm."""
    square = noise_multiplier * noise_multiplier
    if not (math.isfinite(square) and square > 0 and noise_multiplier > 0):
        raise ValueError(f"noise_multiplier must be a finite number above 0, not {noise_multiplier}")
    if not (math.isfinite(sensitivity_squared) and sensitivity_squared >= 0):
        raise ValueError(f"sensitivity_squared must be finite and not negative, not {sensitivity_squared}")
    return Rho(sensitivity_squared / (2.0 * square))


def epsilon(rho: Rho, delta: float) -> float:
    """The least epsilon known to follow from `rho` at `delta`; every order alpha gives a valid bound, so the search is safe."""
    _check(rho, delta)
    return 0.0 if float(rho) == 0.0 else max(0.0, _bound(rho, delta, best_order(rho, delta) - 1.0))


def best_order(rho: Rho, delta: float) -> float:
    """The order alpha > 1 at which `epsilon` is reached; RDP there is alpha * rho."""
    _check(rho, delta)
    if float(rho) == 0.0:
        return math.inf
    found = scipy.optimize.minimize_scalar(
        lambda log_excess: _bound(rho, delta, math.exp(log_excess)),
        bounds=(-40.0, 40.0),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return 1.0 + math.exp(float(found.x))


def simple_epsilon(rho: Rho, delta: float) -> float:
    """Looser than `epsilon`, and easy to check by hand."""
    _check(rho, delta)
    return rho + 2.0 * math.sqrt(rho * -math.log(delta))


def gaussian_epsilon(rho: Rho, delta: float) -> float:
    """The exact epsilon of one Gaussian mechanism with this rho, rounded so that delta is kept."""
    _check(rho, delta)
    if gaussian_delta(rho, 0.0) <= delta:
        return 0.0
    target = math.log(delta)
    above = simple_epsilon(rho, delta) * (1.0 + 1e-9)
    found: float = scipy.optimize.brentq(lambda value: _log_delta(rho, value) - target, 0.0, above, xtol=1e-300, maxiter=10_000)
    step = math.ulp(found)
    while _log_delta(rho, found) > target:
        found, step = found + step, 2.0 * step
    return found


def gaussian_delta(rho: Rho, epsilon: float) -> float:
    """The exact delta of one Gaussian mechanism with this rho at `epsilon`."""
    _check(rho, 0.5)
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"epsilon must be finite and not negative, not {epsilon}")
    return math.exp(_log_delta(rho, epsilon))


def rdp_epsilon(order: float, value: float, delta: float) -> float:
    """The epsilon that follows at `delta` from Renyi DP of `value` at one `order` (Canonne, Kamath & Steinke 2020, Prop. 12)."""
    if not (math.isfinite(order) and order > 1):
        raise ValueError(f"an order of Renyi DP must be a finite number above 1, not {order}")
    _check(Rho(value), delta)
    return max(0.0, value - math.log(order * delta) / (order - 1.0) + math.log1p(-1.0 / order))


def largest_rho(epsilon_allowed: float, delta: float, conversion: Conversion = epsilon) -> Rho:
    """The largest rho whose `conversion` at `delta` does not exceed `epsilon_allowed`, in floating point too."""
    if not (math.isfinite(epsilon_allowed) and epsilon_allowed > 0):
        raise ValueError(f"epsilon must be a finite number above 0, not {epsilon_allowed}")
    _check(Rho(0.0), delta)
    low, high = 0.0, 1.0
    while conversion(Rho(high), delta) <= epsilon_allowed:
        low, high = high, 2.0 * high
    while (middle := (low + high) / 2.0) not in (low, high):
        low, high = (middle, high) if conversion(Rho(middle), delta) <= epsilon_allowed else (low, middle)
    return Rho(low)


def _bound(rho: Rho, delta: float, excess: float) -> float:
    """The epsilon that order 1 + `excess` proves."""
    alpha = 1.0 + excess
    return alpha * rho + (-math.log(alpha * delta)) / excess + math.log(excess / alpha)


def _log_delta(rho: Rho, value: float) -> float:
    """ln of the exact delta, in logarithms, because each term may be far smaller than a float.

    With a = epsilon/mu - mu/2, and R the ratio of tail and density of the normal, delta is also phi(a) * (R(a) - R(a + mu)):
    in the tail nothing but R cancels there.
    """
    mu = math.sqrt(2.0 * rho)
    if mu == 0.0:
        return -math.inf
    if (a := value / mu - mu / 2) > 0:
        ratios = scipy.special.erfcx([a / math.sqrt(2.0), (a + mu) / math.sqrt(2.0)])
        left = 0.5 * float(ratios[0] - ratios[1])  # sqrt(pi / 2) of the ratio and sqrt(2 * pi) of the density make 1 / 2
        return -a * a / 2 + math.log(left) if left > 0 else -math.inf
    log_phi = scipy.special.log_ndtr
    first, second = float(log_phi(mu / 2 - value / mu)), value + float(log_phi(-mu / 2 - value / mu))
    return first + math.log(-math.expm1(second - first)) if second < first else -math.inf


def _check(rho: Rho, delta: float) -> None:
    if not (math.isfinite(rho) and rho >= 0):
        raise ValueError(f"rho must be finite and not negative, not {rho}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie strictly between 0 and 1, not {delta}")
