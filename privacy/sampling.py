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
from typing import TYPE_CHECKING, Literal

from fedrho.privacy.zcdp import gaussian_rho

if TYPE_CHECKING:
    from dp_accounting import DpEvent

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

    def epsilon(self, delta: float, accountant: Accountant = "pld") -> float:
        """Add-or-remove epsilon at `delta`: tight by privacy loss distributions, looser and faster by RDP."""
        if not 0 < delta < 1:
            raise ValueError(f"delta must lie strictly between 0 and 1, not {delta}")
        if accountant == "rdp":
            from dp_accounting.rdp import RdpAccountant

            with _quiet():
                return float(RdpAccountant().compose(self.event()).get_epsilon(delta))
        from dp_accounting.pld import PLDAccountant

        with _quiet():
            found = float(PLDAccountant().compose(self.event()).get_epsilon(delta))
        return found if not math.isnan(found) else math.inf


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
