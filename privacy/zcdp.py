"""Zero-concentrated differential privacy: rho, its price for a Gaussian release, and its meaning as (epsilon, delta).

    rho = sensitivity**2 / (2 * noise_multiplier**2)                              Bun & Steinke 2016, Prop. 1.6
    epsilon = min over alpha > 1 of  alpha*rho + ln(1/(alpha*delta))/(alpha-1) + ln(1 - 1/alpha)
                                                                                  Canonne, Kamath & Steinke 2020, Cor. 13

rho adds up under adaptive composition; epsilon does not add usefully.
"""

from __future__ import annotations

import math
from typing import NewType

from scipy.optimize import minimize_scalar

Rho = NewType("Rho", float)


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
    if not (math.isfinite(rho) and rho >= 0):
        raise ValueError(f"rho must be finite and not negative, not {rho}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie strictly between 0 and 1, not {delta}")
    if float(rho) == 0.0:
        return 0.0

    def bound(log_excess: float) -> float:
        excess = math.exp(log_excess)
        alpha = 1.0 + excess
        return alpha * rho + (-math.log(alpha * delta)) / excess + math.log(excess / alpha)

    best = minimize_scalar(bound, bounds=(-12.0, 40.0), method="bounded", options={"xatol": 1e-10})
    return max(0.0, float(best.fun))
