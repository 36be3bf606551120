"""The other way round: the least noise, the most steps, the least cohort that a budget allows.

A budget is a rho. One that is meant as (epsilon, delta) becomes a rho with `zcdp.largest_rho`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar

from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.participation import Participation
from fedrho.privacy.zcdp import Rho, gaussian_rho

AnyMechanism = TypeVar("AnyMechanism", bound=Mechanism[Any])


def least_noise_multiplier(sensitivity_squared: float, budget: Rho) -> float:
    """The smallest noise multiplier whose `gaussian_rho` does not exceed `budget`, in floating point too."""
    _check(budget)
    multiplier = math.sqrt(sensitivity_squared / (2.0 * budget))
    while multiplier > 0 and gaussian_rho(sensitivity_squared, math.nextafter(multiplier, 0.0)) <= budget:
        multiplier = math.nextafter(multiplier, 0.0)
    while gaussian_rho(sensitivity_squared, multiplier) > budget:
        multiplier = math.nextafter(multiplier, math.inf)
    return multiplier


def calibrated(mechanism: AnyMechanism, steps: int, participation: Participation, budget: Rho) -> AnyMechanism:
    """The same mechanism with the least noise for which `steps` releases cost no more than `budget`."""
    squared = mechanism.sensitivity(steps, participation).squared
    return replace(mechanism, noise_multiplier=least_noise_multiplier(squared, budget))


def most_steps(mechanism: Mechanism[Any], participation: Participation, budget: Rho, limit: int = 100_000) -> int:
    """The largest number of steps, up to `limit`, that cost no more than `budget`; 0 when not even one does."""
    _check(budget)
    low, high = 0, 1
    while high <= limit and mechanism.cost(high, participation) <= budget:
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if mechanism.cost(middle, participation) <= budget else (low, middle)
    return low


def least_cohort(mechanism: Mechanism[Any], steps: int, participation: Participation, budget: Rho, mean_noise: float) -> int:
    """The fewest reports a step for which the budget is kept and the mean of a step is no noisier than `mean_noise`.

    `mean_noise` is the standard deviation of one node's noise in the mean, in units of the clip norm: noise_multiplier / cohort,
    as a small simulation may have found it to be bearable (Kairouz et al. 2021, arXiv 2103.00039, section 5).
    """
    if not (math.isfinite(mean_noise) and mean_noise > 0):
        raise ValueError(f"mean_noise must be a finite number above 0, not {mean_noise}")
    least = calibrated(mechanism, steps, participation, budget).noise_multiplier
    cohort = max(1, math.floor(least / mean_noise) - 1)
    while cohort * mean_noise < least:
        cohort += 1
    return cohort


def _check(budget: Rho) -> None:
    if not (math.isfinite(budget) and budget > 0):
        raise ValueError(f"a budget must be a finite rho above 0, not {budget}")
