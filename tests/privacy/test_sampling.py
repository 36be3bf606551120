"""Amplification by Poisson sampling: claimed only where somebody enforces it, and then what Google's accountants say."""

from __future__ import annotations

import math

import pytest

from fedrho.privacy.sampling import PoissonSampling, SampledGaussian, SamplingNotEnforced

TABLE = [  # PRIVACY, section 2: devices, cohort, noise, steps, delta, RDP, PLD
    (763430, 5000, 1.0, 5000, 1e-9, 4.1833, 3.9025),
    (10000, 100, 0.8, 500, 1e-5, 2.9790, 2.3997),
    (3400, 100, 1.0, 1000, 1e-4, 5.7636, 5.1495),
    (3400, 50, 1.0, 100, 1e-4, 1.1618, 0.79129),
]


def sampled(noise: float, rate: float, steps: int) -> SampledGaussian:
    return SampledGaussian(noise, PoissonSampling(rate, "the simulation"), steps)


@pytest.mark.parametrize(("devices", "cohort", "noise", "steps", "delta", "by_rdp", "by_pld"), TABLE)
def test_the_table_of_published_settings(
    devices: int, cohort: int, noise: float, steps: int, delta: float, by_rdp: float, by_pld: float
) -> None:
    """The PLD column was rid of its discretisation's rounding; 0.5 % is what that makes at these numbers of steps."""
    run = sampled(noise, cohort / devices, steps)
    assert run.epsilon(delta, "rdp") == pytest.approx(by_rdp, abs=5e-5)
    assert run.epsilon(delta) == pytest.approx(by_pld, rel=5e-3)


def test_without_sampling_it_is_one_gaussian() -> None:
    """At rate 1 neighbours that add or remove a device are told apart as in zero-out: mu = sqrt(steps) / noise."""
    from fedrho.privacy.zcdp import Rho, gaussian_epsilon

    assert sampled(4.0, 1.0, 9).epsilon(1e-6) == pytest.approx(gaussian_epsilon(Rho(9 / 32), 1e-6), rel=2e-3)


@pytest.mark.parametrize("enforcer", ["", " ", "\t\n"])
def test_nobody_who_enforces_it_means_no_claim(enforcer: str) -> None:
    with pytest.raises(SamplingNotEnforced, match="say who"):
        PoissonSampling(0.01, enforcer)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0001, math.nan, math.inf])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        PoissonSampling(rate, "the simulation")


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, math.inf])
def test_noise_that_means_nothing_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match="noise_multiplier"):
        sampled(noise, 0.1, 1)


def test_steps_and_deltas_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="steps"):
        sampled(1.0, 0.1, 0)
    for delta in (0.0, 1.0, -1.0, math.nan):
        for accountant in ("pld", "rdp"):
            with pytest.raises(ValueError, match="delta"):
                sampled(1.0, 0.1, 1).epsilon(delta, accountant)
