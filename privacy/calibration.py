"""The least noise that fits a budget."""

from __future__ import annotations

import math

from fedrho.privacy.zcdp import Rho, gaussian_rho


def least_noise_multiplier(sensitivity_squared: float, budget: Rho) -> float:
    """The smallest noise multiplier whose `gaussian_rho` does not exceed `budget`, in floating point too."""
    if not (math.isfinite(budget) and budget > 0):
        raise ValueError(f"a budget must be a finite rho above 0, not {budget}")
    multiplier = math.sqrt(sensitivity_squared / (2.0 * budget))
    while gaussian_rho(sensitivity_squared, multiplier) > budget:
        multiplier = math.nextafter(multiplier, math.inf)
    return multiplier
