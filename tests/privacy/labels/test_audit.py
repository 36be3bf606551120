"""An auditor of draws finds mechanisms that are not what they say, lets right ones pass, and bounds no epsilon from above it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy
from numpy.typing import NDArray

from fedrho.privacy.labels import attacks
from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.audit import Settings, audit, audit_channel, hard_priors
from fedrho.privacy.labels.chance import Chance
from fedrho.privacy.labels.channels import exact_loss, largest_share, share_right
from fedrho.privacy.labels.randomizers import RandomizedResponse, TopK, WithPrior
from tests.privacy.labels.drawn import Drawn, Seeded, always

FLAT = np.full((1, 10), 0.1)


def response(epsilon: float, classes: int = 10) -> NDArray[np.float64]:
    odds = 1 + np.eye(classes) * math.expm1(epsilon)
    matrix: NDArray[np.float64] = odds / odds.sum(axis=1, keepdims=True)
    return matrix


def right(epsilon: float, classes: int = 10) -> Drawn:
    return Drawn(epsilon, always(response(epsilon, classes)), always(response(epsilon, classes)))


def wrong(claimed: float, true: float) -> Drawn:
    return Drawn(claimed, always(response(claimed)), always(response(true)))


def test_a_right_mechanism_passes_every_check_and_the_bounds_come_close() -> None:
    found = audit("response", right(1.0), FLAT[0].tolist(), Seeded(1), Settings(8000, 30_000))
    assert found.failed == ()
    by_check = {finding.check: finding for finding in found.findings}
    assert by_check["exact matrix"].found == pytest.approx(1.0)
    assert 0.7 < by_check["likelihood ratio"].found < 1.0
    assert 0.8 < by_check["one run"].found < 1.0


def test_draws_that_are_not_the_matrix_are_found_by_each_kind_of_check() -> None:
    found = audit("mutant", wrong(1.0, 2.0), FLAT[0].tolist(), Seeded(2), Settings(4000, 20_000))
    assert found.failed == ("sampler, one batch", "likelihood ratio", "one run")


def test_a_matrix_beyond_its_claim_and_an_impossible_output_are_found() -> None:
    few = Settings(2000, 2000)
    assert (
        "exact matrix"
        in audit("over", Drawn(0.9, always(response(1)), always(response(1))), FLAT[0].tolist(), Seeded(3), few).failed
    )
    identity = Drawn(1.0, always(response(1)), always(np.eye(10)))
    assert set(audit("told as is", identity, FLAT[0].tolist(), Seeded(4), few).failed) >= {"sampler, one batch", "one run"}
    half = Drawn(1.0, always(response(1) / 2), always(response(1)))
    (exact, *_) = audit("rows of one half", half, FLAT[0].tolist(), Seeded(5), few).findings
    assert not exact.holds
    assert "adds up to 0.5" in exact.detail


def test_a_mechanism_that_tells_the_truth_too_seldom_is_not_the_best() -> None:
    """As the reference code's k, one too small: private, and seen by the check of optimality alone."""
    constant = always(np.eye(10)[[0] * 10])
    found = audit("constant", Drawn(0.5, constant, constant), FLAT[0].tolist(), Seeded(6), Settings(1000, 1000), best=True)
    assert found.failed == ("true label told",)


def test_likelihoods_that_are_not_the_matrix_s_are_found() -> None:
    class Boasting(Drawn):
        def matrix(self, priors: NDArray[np.float64]) -> NDArray[np.float64]:
            return always(response(1))(priors)

    found = attacks.agreement(Boasting(1.0, always(response(3)), always(response(1))), FLAT, 500, Seeded(7))
    assert found.p_value > 1e-6
    assert not found.likelihoods_agree


def bits(epsilon: float, classes: int) -> NDArray[np.float64]:
    """Each bit of the one-hot label is flipped with 1 / (1 + e^(eps / 2)); outputs are all patterns."""
    keep = 1 / (1 + math.exp(-epsilon / 2))
    patterns = (np.arange(2**classes)[:, None] >> np.arange(classes)) & 1
    same = patterns[None] == np.eye(classes, dtype=int)[:, None]
    matrix: NDArray[np.float64] = np.where(same, keep, 1 - keep).prod(axis=2)
    return matrix


def test_outputs_that_are_no_labels_are_told_apart_by_their_likelihoods() -> None:
    good, bad = (Drawn(2.0, always(bits(2, 5)), always(bits(epsilon, 5))) for epsilon in (2.0, 2.5))
    prior = np.full((1, 5), 0.2)
    assert attacks.agreement(good, prior, 20_000, Seeded(8)).p_value > 1e-3
    assert attacks.agreement(good, prior, 20_000, Seeded(8)).likelihoods_agree
    assert attacks.agreement(bad, prior, 20_000, Seeded(9)).p_value < 1e-6


def test_rare_outputs_raise_no_alarm_and_impossible_ones_do() -> None:
    for seed in range(10):
        assert attacks.agreement(right(12.0), FLAT, 1000, Seeded(seed)).p_value > 1e-5
    assert attacks.agreement(Drawn(99.0, always(np.eye(10)), always(response(9))), FLAT, 20_000, Seeded(0)).p_value == 0


@pytest.mark.parametrize(("right_guesses", "epsilon"), [(800, 1.2543), (900, 2.0212), (500, 0.0)])
def test_one_run_s_bound_is_the_known_one(right_guesses: int, epsilon: float) -> None:
    found = attacks.one_run_bound(5000, 1000, right_guesses)
    assert found.epsilon_low == pytest.approx(epsilon, abs=5e-5)
    if epsilon:
        quantile = float(scipy.stats.beta.ppf(0.05, right_guesses, 1001 - right_guesses))
        assert found.epsilon_low == pytest.approx(math.log(quantile / (1 - quantile)), abs=1e-6)


def test_one_run_guesses_as_often_and_as_well_as_it_should() -> None:
    """31.7 % and 73.1 % for randomized response of 10 classes at epsilon 1; four deviations of 1e5."""
    found = attacks.one_run_attack(right(1.0), FLAT, 100_000, Seeded(10), 0.95)
    assert found.guesses / 1e5 == pytest.approx((math.e + 1) / (math.e + 9), abs=0.006)
    assert found.right / found.guesses == pytest.approx(math.e / (1 + math.e), abs=0.01)
    assert attacks.one_run_attack(right(1.0, 1), np.ones((1, 1)), 100, Seeded(0), 0.95).guesses == 0


@pytest.mark.parametrize(
    ("true", "draws", "power"),
    [(1.1, 2000, 0.068), (1.1, 10_000, 0.52), (1.1, 50_000, 1.0), (1.25, 2000, 0.675), (1.25, 10_000, 1.0), (1.5, 2000, 0.998)],
)
def test_the_likelihood_ratio_attack_has_the_power_that_was_computed_and_seldom_a_false_alarm(
    true: float, draws: int, power: float
) -> None:
    """At a claim of 1 and K = 10, of 4000 binomial draws: five deviations are at most 4 %."""
    generator = np.random.default_rng(0)

    def alarms(epsilon: float, count: int) -> float:
        keep, other = response(epsilon)[0, :2]
        hits, false = generator.binomial(draws, keep, count), generator.binomial(draws, other, count)
        low = scipy.special.betaincinv(hits, draws - hits + 1, 0.025)
        high = scipy.special.betaincinv(false + 1, draws - false, 0.975)
        assert attacks.ratio_bound(int(hits[0]), draws, int(false[0]), draws) == pytest.approx(math.log(low[0] / high[0]))
        return float((np.log(low / high) > 1.0).mean())

    assert alarms(true, 4000) == pytest.approx(power, abs=0.04)
    assert alarms(1.0, 4000) <= 0.02


def test_a_matrix_of_anybody_s_is_told_its_epsilon_and_how_far_it_is_from_the_best() -> None:
    found = audit_channel(response(1.0, 3), epsilon=0.5, prior=[0.5, 0.3, 0.2])
    exact, told = found.findings
    assert exact.found == pytest.approx(1.0)
    assert not exact.holds
    assert told.found == pytest.approx(math.e / (math.e + 2))
    assert told.claimed is None
    assert f"{0.8 * math.e / (math.e + 1):.6g} is the most" in told.detail
    assert audit_channel(np.eye(2)).as_json()["claimed_epsilon"] is None
    assert audit_channel(np.eye(2)).failed == ()


def test_hard_priors_are_priors_for_any_number_of_classes() -> None:
    for classes in (1, 2, 10, 1500):
        priors = hard_priors(classes)
        assert priors.shape[1] == classes
        np.testing.assert_allclose(priors.sum(axis=1), 1)


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.1, 1.0, 5.0, 15.0, 17.0, 20.0, 37.0, 40.0, 700.0, 1000.0, math.inf])
def test_no_matrix_of_ours_exceeds_its_claim_and_with_prior_is_the_best_at_hard_priors(epsilon: float) -> None:
    priors = hard_priors(6)
    for mechanism in (RandomizedResponse(epsilon), TopK(epsilon, 3), WithPrior(epsilon)):
        assert exact_loss(mechanism.matrix(priors)).epsilon <= epsilon + 1e-9
    told = share_right(WithPrior(epsilon).matrix(priors), priors)
    np.testing.assert_allclose(told, largest_share(priors, epsilon), atol=1e-9)


def test_outputs_that_are_as_many_as_labels_and_yet_none_are_told_apart() -> None:
    """As numbers may be: here output o speaks for label 2 - o."""

    class Numbers(Drawn):
        outputs = (7.0, 8.0, 9.0)

        def answer(self, labels: NDArray[np.int64], priors: NDArray[np.float64], chance: Chance) -> Answers:
            answers = super().answer(labels, priors, chance)
            return Answers(answers.likelihoods.argmax(axis=1), answers.likelihoods, answers.sizes)

    turned = always(response(1.0, 3)[:, ::-1])
    found = attacks.agreement(Numbers(1.0, turned, turned), np.full((1, 3), 1 / 3), 2000, Seeded(11))
    assert (found.p_value > 1e-5, found.likelihoods_agree) == (True, True)
