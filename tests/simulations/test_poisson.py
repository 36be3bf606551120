"""Enforced Poisson samples: the coins, the price, the divisor, and what is refused because it has no price."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant

from fedrho.privacy.calibration import least_sampled_noise_multiplier
from fedrho.privacy.sampling import PoissonSampling, SampledGaussian
from fedrho.privacy.statement import Neighbours, PrivacyStatement, Unit, compose
from fedrho.privacy.zcdp import Rho, gaussian_epsilon
from fedrho.server.tasks import TaskError
from fedrho.simulations.availability import AvailabilitySection
from fedrho.simulations.claim import PROTECTS_NOBODY, SampledStatement
from fedrho.simulations.poisson import SampledTask, SamplingSection, sample, sampled_task
from fedrho.simulations.seeded import SeededNoise, generator
from fedrho.simulations.virtual import Plan, Simulation
from tests.simulations.toy import FreeEngine, ToyEngine, poisson_values, sent, toy_values, zeros

BY_NOISE = SamplingSection(kind="poisson")
WILLING = AvailabilitySection()
ONCE_IN_A_THOUSAND = 1e-3


def made(**changes: Any) -> SampledTask:
    return sampled_task(poisson_values(**{"privacy": {"noise_multiplier": 1.0}, **changes}), BY_NOISE, WILLING)


@pytest.fixture(scope="module")
def plain() -> SampledTask:
    return made()


def test_every_device_has_a_coin_of_its_own() -> None:
    """Sizes are binomial, and two devices come together as often as independent coins would have them."""
    drawn = [sample(50, 0.2, generator(3, "poisson", step)) for step in range(4000)]
    sizes = np.bincount([len(one) for one in drawn], minlength=51)
    wanted = 4000 * scipy.stats.binom.pmf(np.arange(51), 50, 0.2)
    common = wanted > 5
    observed = np.append(sizes[common], sizes[~common].sum())
    expected = np.append(wanted[common], wanted[~common].sum())
    assert scipy.stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > ONCE_IN_A_THOUSAND
    here = np.zeros((4000, 50))
    for step, devices in enumerate(drawn):
        here[step, list(devices)] = 1.0
    assert np.abs(here.mean(axis=0) - 0.2).max() < 4.5 * math.sqrt(0.2 * 0.8 / 4000)
    table: Any = np.corrcoef(here.T)
    correlations = table[np.triu_indices(50, 1)]
    assert np.abs(correlations).max() < 5.0 / math.sqrt(4000)
    assert abs(np.corrcoef(here[1:, 0], here[:-1, 0])[0, 1]) < 5.0 / math.sqrt(4000)


def test_a_sample_of_everybody_is_everybody_and_a_sample_of_hardly_anybody_is_often_nobody() -> None:
    assert sample(20, 1.0, generator(1, "x")) == tuple(range(20))
    assert () in [sample(20, 0.01, generator(1, "x", step)) for step in range(20)]


def test_a_sample_of_a_billion_costs_what_it_holds() -> None:
    drawn = sample(10**9, 1e-7, generator(1, "x"))
    assert 60 <= len(drawn) <= 150
    assert len(set(drawn)) == len(drawn)


def test_epsilon_is_that_of_dp_accounting_and_below_the_looser_bound(plain: SampledTask) -> None:
    event = SelfComposedDpEvent(PoissonSampledDpEvent(10 / 200, GaussianDpEvent(1.0)), 8)
    assert plain.epsilon == pytest.approx(PLDAccountant().compose(event).get_epsilon(1e-7), rel=1e-6)
    assert plain.epsilon <= plain.priced(8).epsilon(1e-7, "rdp")


def test_after_each_step_the_claim_is_that_of_the_steps_so_far(plain: SampledTask) -> None:
    simulation = Simulation(Plan(plain, 1), ToyEngine(plain.task.mechanism.grid), zeros())
    claim = simulation.statement().claim
    assert claim.epsilon(1e-7) == 0.0
    for _ in range(3):
        simulation.step()
    assert simulation.statement().claim.epsilon(1e-7) == plain.priced(3).epsilon(1e-7) < plain.epsilon


def test_everybody_at_every_step_is_the_gaussian_without_amplification() -> None:
    """The founding argument: with as many wanted as there are, sampling gives nothing."""
    task = made(population=50, round={"goal": 50}, steps=20, privacy={"noise_multiplier": 5.0})
    assert task.rate == 1.0
    assert task.epsilon == pytest.approx(gaussian_epsilon(Rho(20 / (2 * 5.0**2)), 1e-7), abs=2e-3)
    assert task.epsilon >= gaussian_epsilon(Rho(20 / (2 * 5.0**2)), 1e-7)


@pytest.mark.parametrize(("rate", "steps", "epsilon", "delta"), [(1.0, 20, 5.0, 1e-5)])
def test_calibrated_noise_keeps_epsilon_and_hardly_less_noise_would(
    rate: float, steps: int, epsilon: float, delta: float
) -> None:
    def price(multiplier: float) -> float:
        return SampledGaussian(multiplier, PoissonSampling(rate, "a test"), steps).epsilon(delta)

    least = least_sampled_noise_multiplier(rate, steps, epsilon, delta)
    assert price(least) <= epsilon < price(least / 1.0011)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "steps", "epsilon", "delta", "known"), [(100 / 3400, 1000, 5.1495, 1e-4, 1.0), (50 / 3400, 100, 0.79129, 1e-4, 1.0)]
)
def test_calibrated_noise_is_that_of_a_published_run(rate: float, steps: int, epsilon: float, delta: float, known: float) -> None:
    assert least_sampled_noise_multiplier(rate, steps, epsilon, delta) == pytest.approx(known, rel=2e-3)


@pytest.mark.slow
def test_noise_follows_from_epsilon() -> None:
    task = sampled_task(poisson_values(), SamplingSection(kind="poisson", epsilon=1.0), WILLING)
    assert 0.99 < task.epsilon <= 1.0
    assert task.task.file.privacy.noise_multiplier == task.task.mechanism.noise_multiplier


@pytest.mark.parametrize(
    ("steps", "epsilon", "delta", "message"),
    [(10_000, 1e-3, 1e-12, "needs a noise multiplier above 10000"), (1, 1e4, 1e-5, "nothing less can be priced")],
)
def test_an_epsilon_that_no_noise_reaches_is_refused(steps: int, epsilon: float, delta: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        least_sampled_noise_multiplier(1.0, steps, epsilon, delta)


@pytest.mark.slow
def test_little_noise_is_priced_closely_and_never_below_the_truth() -> None:
    """Everybody sampled: the truth is the Gaussian's."""
    for multiplier in (0.05, 0.2, 0.45):
        priced = SampledGaussian(multiplier, PoissonSampling(1.0, "a test"), 10).epsilon(1e-6)
        exact = gaussian_epsilon(Rho(10 / (2 * multiplier**2)), 1e-6)
        assert exact <= priced <= 1.01 * exact


def test_weights_are_the_noisy_sums_over_the_goal_whatever_number_came(plain: SampledTask) -> None:
    """Step by step from the vectors that the drawn devices send, by the arithmetic of DP-FedAvg alone."""
    task, engine = plain.task, ToyEngine(plain.task.mechanism.grid)
    simulation = Simulation(Plan(plain, 4), engine, zeros())
    weights, velocity, grid = zeros(), np.zeros(12), task.mechanism.grid
    numbers = set()
    while not simulation.finished:
        record = simulation.step()
        devices = simulation.counted
        numbers.add(record.counted)
        total = np.zeros(12, dtype=np.int64)
        for device in devices:
            total += sent(record.step, weights, device, grid).vector
        total += SeededNoise(4, "toy").draw(f"row.{record.step}", 12, task.mechanism.stddev)[0]
        velocity = 0.9 * velocity + total * (grid.unit / 10)
        weights = (weights + 0.5 * velocity).astype(np.float32)
        assert np.array_equal(weights, simulation.weights)
    assert len(numbers) > 3


def test_where_nobody_came_the_step_releases_noise_alone() -> None:
    task = made(population=10_000, round={"goal": 1}, steps=12)
    engine = FreeEngine(task.task.mechanism.grid)
    simulation = Simulation(Plan(task, 8), engine, zeros(5000))
    empty = [
        record for record in iter(lambda: simulation.step() if not simulation.finished else None, None) if not record.counted
    ]
    assert empty
    for record in empty:
        assert record.mean_norm == pytest.approx(record.node_stddev * math.sqrt(5000), rel=5.0 / math.sqrt(2 * 5000))
        assert record.simulation_only.loss is None
    assert record.step not in [step for step, _ in engine.cohorts]


def test_records_have_no_rho_and_no_time(plain: SampledTask) -> None:
    record = Simulation(Plan(plain, 1), ToyEngine(plain.task.mechanism.grid), zeros()).step()
    assert (record.rho, record.seconds, record.abandoned, record.dropped) == (None, None, 0, 0)


def test_the_statement_is_of_its_own_kind_and_says_who_flips_the_coins(plain: SampledTask) -> None:
    statement = Simulation(Plan(plain, 1), ToyEngine(plain.task.mechanism.grid), zeros()).statement()
    claim = statement.claim
    assert isinstance(claim, SampledStatement)
    assert not isinstance(claim, PrivacyStatement)
    assert (claim.unit, claim.neighbours) == (Unit.DEVICE, Neighbours.ADD_OR_REMOVE)
    assert statement.assumptions[0] == PROTECTS_NOBODY
    assert "by a coin of its own, with probability 0.05; that is enforced" in claim.assumptions[0]
    with pytest.raises(AttributeError):
        compose([claim])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "dp-ftrl"}, "algorithm: Poisson sampling is priced for dp-fedavg alone, not for 'dp-ftrl'"),
        (
            {"participation": {"max_times": 3}},
            "participation: the coins of Poisson sampling know no limits; leave the section out",
        ),
        ({"privacy": {"rho": 1.0}}, "privacy.rho: Poisson sampling has no rho; leave it out, and give sampling.epsilon"),
        ({"privacy": {"mechanism": "tree"}}, "privacy.mechanism: dp-fedavg has independent noise"),
        ({"privacy": {"restarts": [3]}}, "privacy.restarts: does not belong to dp-fedavg"),
        ({"round": {"overselect": 1.3}}, "round.overselect: everybody who is drawn by Poisson sampling is counted; leave it out"),
        ({"round": {"min_reports": 3}}, "round.min_reports: everybody who is drawn"),
        ({"round": {"deadline_seconds": 3.0}}, "round.deadline_seconds: everybody who is drawn"),
        ({"round": {"goal": 300}}, "round.goal: 300 is above population = 200; allowed: 1 to 200"),
        ({"privacy": {"noise_multiplier": None}}, "sampling.epsilon: give either this or privacy.noise_multiplier"),
    ],
)
def test_what_the_price_does_not_cover_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    values = {**poisson_values(privacy={"noise_multiplier": 1.0}), "participation": {}}
    del values["participation"]
    for key, change in changes.items():
        values[key] = {**values.get(key, {}), **change} if isinstance(change, dict) else change
    with pytest.raises(TaskError) as caught:
        sampled_task(values, BY_NOISE, WILLING)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "section",
    [{"drop_out": 0.1}, {"slow_share": 0.1}, {"model": "diurnal"}, {"model": "shuffled"}, {"checkins_per_second": 1.0}],
)
def test_devices_that_choose_or_drop_out_are_refused(section: dict[str, Any]) -> None:
    values = poisson_values(privacy={"noise_multiplier": 1.0})
    with pytest.raises(
        TaskError, match=f"availability.{next(iter(section))}: devices of a Poisson sample neither choose nor drop"
    ):
        sampled_task(values, BY_NOISE, AvailabilitySection.model_validate(section))


def test_both_epsilon_and_noise_are_refused() -> None:
    values = poisson_values(privacy={"noise_multiplier": 1.0})
    with pytest.raises(TaskError, match="give either this or"):
        sampled_task(values, SamplingSection(kind="poisson", epsilon=1.0), WILLING)


def test_a_whole_task_file_is_not_silently_taken_for_a_sampled_one() -> None:
    with pytest.raises(TaskError, match="participation: the coins"):
        sampled_task(toy_values(algorithm="dp-fedavg"), BY_NOISE, WILLING)


def test_the_claim_assumes_that_not_even_the_size_of_a_sample_is_told(plain: SampledTask) -> None:
    """One device more or less moves the size, which no noise hides; and no server of this product enforces such samples."""
    first = Simulation(Plan(plain, 3), FreeEngine(plain.task.mechanism.grid), zeros()).statement().claim.assumptions[0]
    assert "nobody learns who came or how many" in first
    assert "no fedrho server does" in first


def test_a_delta_beside_which_the_accountant_is_coarse_is_refused() -> None:
    with pytest.raises(ValueError, match="delta = 1e-15 is too small"):
        least_sampled_noise_multiplier(0.2, 3, 5.0, 1e-15)
