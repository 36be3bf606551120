"""The other way round: the least noise, the most steps, the least cohort that a budget allows.

A budget is a rho. One that is meant as (epsilon, delta) becomes a rho with `zcdp.largest_rho`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.participation import Participation
from fedrho.privacy.progress import Progress, unwatched
from fedrho.privacy.sampling import Accountant, PoissonSampling, SampledGaussian
from fedrho.privacy.zcdp import Rho, gaussian_rho

MOST_SAMPLED_NOISE = 1e4
LEAST_SAMPLED_NOISE = 0.05
"""Noise multipliers between which sampling is priced: accountants take long for less, and more is of no use."""

LEAST_SAMPLED_DELTA = 1e-13
"""Below, the accountant's own truncation of tails, 1e-15, is no longer small beside delta, and the noise found far too large."""

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


def least_sampled_noise_multiplier(rate: float, steps: int, epsilon: float, delta: float) -> float:
    """The smallest noise multiplier, but for one part in a thousand, for which `steps` Poisson samples keep `epsilon` at `delta`.

    The result keeps it by the tight accountant; the looser one, much faster, says where to begin. Raises ValueError where no
    multiplier that can be priced keeps it, or each does.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"epsilon must be a finite number above 0, not {epsilon}")
    if delta < LEAST_SAMPLED_DELTA:
        raise ValueError(f"delta = {delta:g} is too small for sampling to be priced; allowed: {LEAST_SAMPLED_DELTA:g} or more")

    def price(multiplier: float, accountant: Accountant = "pld") -> float:
        sampled = SampledGaussian(multiplier, PoissonSampling(rate, "whoever asks for this price"), steps)
        return sampled.epsilon(delta, accountant)

    high = 1.0
    while price(high, "rdp") > epsilon:
        high *= 1.1
        if high > MOST_SAMPLED_NOISE:
            raise ValueError(f"epsilon = {epsilon:g} at delta = {delta:g} needs a noise multiplier above {MOST_SAMPLED_NOISE:g}")
    while high > LEAST_SAMPLED_NOISE and price(high / 1.1, "rdp") <= epsilon:
        high /= 1.1
    while (found := price(high)) > epsilon:  # nearly always at once, for the looser accountant is an upper bound
        high *= 1.01
    low, above = high / 1.1, found
    while (below := price(low)) <= epsilon:
        high, above, low = low, below, low / 1.1
        if low < LEAST_SAMPLED_NOISE:
            raise ValueError(f"epsilon = {epsilon:g} is kept by a noise multiplier of {high:.3g}; nothing less can be priced")
    return _narrowed(low, high, below, above, epsilon, price)


def _narrowed(low: float, high: float, below: float, above: float, epsilon: float, price: Callable[[float], float]) -> float:
    """The least multiplier that keeps `epsilon`, one part in a thousand above it at most.

    `low` costs `below`, too much; `high` costs `above`. Logarithms of multiplier and epsilon lie nearly on a line.
    """
    while high > low * 1.001:
        part = math.log(epsilon / above) / math.log(below / above) if above > 0 and math.isfinite(below) else 0.5
        guess = high * (low / high) ** part * 1.0004
        guess = min(max(guess, low * 1.0005), high / 1.0009)
        if (found := price(guess)) <= epsilon:
            high, above = guess, found
        else:
            low, below = guess, found
    return high


def most_steps(
    mechanism: Mechanism[Any],
    participation: Participation,
    budget: Rho,
    limit: int = 100_000,
    progress: Progress = unwatched,
) -> int:
    """The largest number of steps, up to `limit`, that cost no more than `budget`; 0 when not even one does."""
    _check(budget)
    prices = 0

    def kept(steps: int, left: int | None) -> bool:
        """`left`: prices that will be asked for after this one, once that is known."""
        nonlocal prices
        cost = mechanism.cost(steps, participation)
        prices += 1
        progress("price", prices, None if left is None else prices + left, f"{steps} rounds cost rho {cost:.4g} of {budget:.4g}")
        return cost <= budget

    low, high = 0, 1
    while high <= limit and kept(high, None):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        left = (high - low - 1).bit_length() - 1
        low, high = (middle, high) if kept(middle, left) else (low, middle)
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
