"""Amplification by Poisson sampling, for DP-FedAvg alone, and only where the sampling is enforced.

When each client joins each step with probability q by a coin of its own, which somebody enforces and keeps secret, independent
Gaussian noise costs less than zCDP says (Abadi et al. 2016, arXiv 1607.00133; McMahan et al. 2018, arXiv 1710.06963). Devices
that check in when they please, cohorts of a fixed size, and first-come rounds are not Poisson samples: nothing may be claimed
there. The curve is not that of one Gaussian, so it has no rho; epsilon comes from dp_accounting, for add-or-remove neighbours.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from fedrho.privacy.progress import Progress, unwatched
from fedrho.privacy.zcdp import gaussian_rho

if TYPE_CHECKING:
    from dp_accounting import DpEvent
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

Accountant = Literal["pld", "rdp"]


class SamplingNotEnforced(ValueError):
    """Amplification was asked for, and nobody enforces the sampling that it needs."""


@dataclass(frozen=True)
class PoissonSampling:
    """Each client joins each step independently with probability `rate`; `enforced_by` says who sees to that."""

    rate: float
    enforced_by: str

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"a sampling rate must lie above 0 and be at most 1, not {self.rate}")
        if not self.enforced_by.strip():
            raise SamplingNotEnforced(
                "amplification by sampling may be claimed only where somebody flips the coins and keeps them secret: say who "
                "enforces it. Devices that check in by themselves are no Poisson sample; price their participations instead"
            )


@dataclass(frozen=True)
class SampledGaussian:
    """DP-FedAvg over `steps` Poisson samples: noise of `noise_multiplier` times the clip norm on the sum of each."""

    noise_multiplier: float
    sampling: PoissonSampling
    steps: int

    def __post_init__(self) -> None:
        gaussian_rho(1.0, self.noise_multiplier)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")

    def event(self) -> DpEvent:
        """What happened, for an accountant of dp_accounting."""
        from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

        return SelfComposedDpEvent(PoissonSampledDpEvent(self.sampling.rate, GaussianDpEvent(self.noise_multiplier)), self.steps)

    @property
    def _interval(self) -> float:
        """Between two privacy losses of the distribution. Whatever it is, epsilon is an upper bound; little noise has losses in
        the hundreds, and an interval that is fine for much noise would make them millions."""
        return 1e-4 * max(1.0, (0.5 / self.noise_multiplier) ** 2)

    def epsilon(self, delta: float, accountant: Accountant = "pld", progress: Progress = unwatched) -> float:
        """Add-or-remove epsilon at `delta`: tight by privacy loss distributions, looser and faster by RDP."""
        if not 0 < delta < 1:
            raise ValueError(f"delta must lie strictly between 0 and 1, not {delta}")
        if accountant == "rdp":
            from dp_accounting.rdp import RdpAccountant

            with _quiet():
                return float(RdpAccountant().compose(self.event()).get_epsilon(delta))
        with _quiet():
            progress("part", 0, 3, "privacy losses of one round")
            one = _one_step(self.noise_multiplier, self.sampling.rate, self._interval)
            progress("part", 1, 3, f"composing those of {self.steps} rounds")
            all_steps = one.self_compose(self.steps)
            progress("part", 2, 3, "reading off epsilon")
            found = float(all_steps.get_epsilon_for_delta(delta))
        return found if not math.isnan(found) else math.inf


@lru_cache(maxsize=4)
def _one_step(noise_multiplier: float, rate: float, interval: float) -> PrivacyLossDistribution:
    """What dp_accounting's `PLDAccountant` composes; kept, because making it is most of the time and every step asks for it."""
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=noise_multiplier, value_discretization_interval=interval, sampling_prob=rate
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of dp_accounting about orders that it leaves out: what it returns is a bound without them."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
