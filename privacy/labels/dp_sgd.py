"""What DP-SGD costs when one label, or one whole example, is substituted: the baseline that label privacy is compared with.

Each step takes every record by a coin of its own (probability q), clips its gradient to norm C, sums, and adds Gaussian noise of
standard deviation sigma C. The number of records is public, and a substituted record keeps its coins.

*Guarantee.* The pair P = (1-q) N(0, sigma^2) + q N(1, sigma^2), Q = (1-q) N(0, sigma^2) + q N(-1, sigma^2) dominates a step.
Proof: condition on the other records' coins, and let g and g' be the two clipped gradients over C. For any event E with N(0)(E) =
a = Phi(z), Neyman and Pearson give N(g)(E) <= Phi(z + 1/sigma) and N(g')(E) >= Phi(z - 1/sigma), so that

    P(E) - e^eps Q(E)  <=  (1-q)(1 - e^eps) Phi(z) + q Phi(z + 1/sigma) - q e^eps Phi(z - 1/sigma),

and a half-line attains all of it for g = 1, g' = -1. Dominating pairs compose (Zhu et al. 2022, arXiv 2106.08567, theorem 10);
dp_accounting composes this one, its REPLACE_ONE. The other way to a substitution, by removing and adding, is looser: (2 eps,
(1 + e^eps) delta) of the add-or-remove (eps, delta).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from scipy.optimize import brentq

if TYPE_CHECKING:
    from dp_accounting import DpEvent
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

LEAST_NOISE: Final = 0.3
MOST_NOISE: Final = 1e4
"""Noise multipliers that are priced: losses of less are in the hundreds, and more is of no use."""

INTERVAL: Final = 1e-3
"""Between two privacy losses of a composed distribution. Losses are rounded up, so epsilon is an upper bound whatever it is."""


@dataclass(frozen=True)
class DpSgdCost:
    """`steps` Poisson samples at `rate`, each released with noise of `noise_multiplier` times the clip norm on its sum."""

    noise_multiplier: float
    rate: float
    steps: int

    def __post_init__(self) -> None:
        if not LEAST_NOISE <= self.noise_multiplier <= MOST_NOISE:
            raise ValueError(f"a noise multiplier lies between {LEAST_NOISE} and {MOST_NOISE:g}, not {self.noise_multiplier}")
        if not 0 < self.rate <= 1:
            raise ValueError(f"a sampling rate lies above 0 and is at most 1, not {self.rate}")
        if self.steps < 1:
            raise ValueError(f"there is one step at least, not {self.steps}")

    def event(self) -> DpEvent:
        """What happened, for an accountant of dp_accounting."""
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

        return SelfComposedDpEvent(PoissonSampledDpEvent(self.rate, GaussianDpEvent(self.noise_multiplier)), self.steps)

    def epsilon(self, delta: float) -> float:
        """For neighbours that differ in one label, or in one whole example, at `delta`."""
        _check_delta(delta)
        return float(_composed(self, substitution=True).get_epsilon_for_delta(delta))

    def delta(self, epsilon: float) -> float:
        """For the same neighbours."""
        return float(_composed(self, substitution=True).get_delta_for_epsilon(epsilon))

    def add_or_remove_epsilon(self, delta: float) -> float:
        """For neighbours of which one has a record more: what tables of DP-SGD print."""
        _check_delta(delta)
        return float(_composed(self, substitution=False).get_epsilon_for_delta(delta))

    def converted_epsilon(self, delta: float) -> float:
        """A substitution as a removal and an addition: the least 2 eps whose (1 + e^eps) delta' is at most `delta`."""
        _check_delta(delta)
        composed = _composed(self, substitution=False)

        def excess(epsilon: float) -> float:
            return (1.0 + math.exp(epsilon)) * float(composed.get_delta_for_epsilon(epsilon)) - delta

        high = 1.0
        while excess(high) > 0:
            high *= 2.0
            if high > 512:
                return math.inf
        return 2.0 * float(brentq(excess, 0.0, high, xtol=1e-6)) if excess(0.0) > 0 else 0.0


def least_noise(epsilon: float, delta: float, rate: float, steps: int) -> DpSgdCost:
    """The cost with the least noise, but for one part in a thousand, that keeps `epsilon` at `delta` under substitution.

    Raises ValueError where none that can be priced does.
    """
    _check_delta(delta)
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon is a finite number above 0, not {epsilon}")
    low, high = LEAST_NOISE, 1.0
    while DpSgdCost(high, rate, steps).epsilon(delta) > epsilon:
        low, high = high, 2.0 * high
        if high > MOST_NOISE:
            raise ValueError(f"no noise multiplier up to {MOST_NOISE:g} keeps epsilon = {epsilon:g} over {steps} steps")
    while high > low * 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if DpSgdCost(middle, rate, steps).epsilon(delta) <= epsilon else (middle, high)
    return DpSgdCost(high, rate, steps)


@lru_cache(maxsize=8)
def _composed(cost: DpSgdCost, substitution: bool) -> PrivacyLossDistribution:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    relation = NeighboringRelation.REPLACE_ONE if substitution else NeighboringRelation.ADD_OR_REMOVE_ONE
    one = privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=cost.noise_multiplier,
        value_discretization_interval=_interval(cost),
        sampling_prob=cost.rate,
        neighboring_relation=relation,
    )
    return one.self_compose(cost.steps)


def _interval(cost: DpSgdCost) -> float:
    """Fine beside the losses of one step, about 2 q / sigma: roundings of many steps then stay small beside their sum."""
    return min(INTERVAL, 0.02 * cost.rate / cost.noise_multiplier)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta lies strictly between 0 and 1, not {delta}")
