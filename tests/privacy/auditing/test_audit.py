"""Honest mechanisms are not contradicted, broken ones are.

Every run is fixed: noise from a name, directions and coins from a seed. An honest mechanism is contradicted with probability 1e-4
(`Settings.false_alarm`), so another seed would do as well.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from fedrho.privacy.auditing.attacker import information, noise_table
from fedrho.privacy.auditing.audit import AuditReport, Settings, audit
from fedrho.privacy.auditing.stream import Stripes, run_with_canaries, whitened_scores
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import Grid, InvalidVector, Update
from tests.privacy.auditing.gallery import (
    HalvedAfterwards,
    HalvedTree,
    PricedOnce,
    ReusedNoise,
    unclipped,
    weighted_by_examples,
)
from tests.privacy.dense import SeededNoise

GRID = Grid(0.5, 20)
STEPS, PARTICIPATION, DELTA = 32, Participation(4, 8), 1e-6
SMALL = Settings(canaries=600, size=2000)


def priced_at(kind: type[Mechanism[Any]], rho: float) -> Mechanism[Any]:
    """With the noise that costs `rho` for STEPS and PARTICIPATION."""
    squared = kind(GRID, 1.0).sensitivity(STEPS, PARTICIPATION).squared
    return kind(GRID, math.sqrt(squared / (2 * rho)))


def attacked(mechanism: Mechanism[Any], seed: str = "audit", **changes: Any) -> AuditReport:
    return audit(mechanism, STEPS, PARTICIPATION, DELTA, SeededNoise(seed), SMALL, **changes)


@pytest.mark.parametrize("rho", [0.25, 0.81, 2.63])
@pytest.mark.parametrize("kind", [IndependentGaussian, BinaryTree])
def test_honest_mechanism_is_not_contradicted_and_attacks_come_close(kind: type[Mechanism[Any]], rho: float) -> None:
    report = attacked(priced_at(kind, rho))
    assert report.contradictions == ()
    assert report.claim.rho == pytest.approx(rho)
    assert 0.85 * report.claim.separation <= report.planned_separation <= report.claim.separation * (1 + 1e-6)
    # 600 scores: a standard error of the separation of about .09 to .11, four of which are allowed.
    assert report.separation.interval.estimate == pytest.approx(report.planned_separation, abs=0.44)
    assert report.one_run.low < report.claim.epsilon
    assert report.separation.interval.low < report.separation.interval.estimate < report.separation.interval.high


def test_one_run_bound_of_an_honest_mechanism_is_far_from_nothing() -> None:
    assert attacked(priced_at(IndependentGaussian, 2.63)).one_run.low > 2.0


@pytest.mark.slow
def test_verdict_on_a_claim_without_room_is_wrong_no_more_often_than_said() -> None:
    """60 runs at a false alarm of one in five: Binomial(60, .2) has mean 12 and deviation 3.1; five more are allowed."""
    mechanism, wrong = IndependentGaussian(GRID, 0.5), 0
    for seed in range(60):
        settings = Settings(canaries=200, size=1000, false_alarm=0.2, seed=seed)
        wrong += audit(mechanism, 1, Participation(1), DELTA, SeededNoise(f"run {seed}"), settings).contradicts_claim
    assert wrong <= 27


@pytest.mark.parametrize("kind", [HalvedTree, HalvedAfterwards, ReusedNoise, PricedOnce])
def test_broken_mechanism_is_contradicted(kind: type[Mechanism[Any]]) -> None:
    report = attacked(kind(GRID, 2.0))
    assert report.contradicts_claim
    assert "separation" in report.contradictions


def test_client_who_takes_part_more_densely_than_priced_is_found() -> None:
    mechanism = priced_at(IndependentGaussian, 0.81)
    assert attacked(mechanism, enforced=Participation(12, 2)).contradicts_claim
    assert not attacked(mechanism, enforced=PARTICIPATION).contradicts_claim


@pytest.mark.parametrize("contribute", [unclipped, weighted_by_examples])
def test_server_that_adds_more_than_a_clipped_update_is_found(contribute: Any) -> None:
    assert attacked(priced_at(BinaryTree, 0.81), contribute=contribute).contradicts_claim


def test_a_canary_with_nan_does_not_get_as_far_as_the_clip() -> None:
    with pytest.raises(InvalidVector, match="NaN"):
        Update(np.array([1.0, math.nan], dtype=np.float32))
    with pytest.raises(InvalidVector, match="NaN"):
        run_with_canaries(IndependentGaussian(GRID, 1.0), np.ones(2), [np.full(4, math.nan)], 4, SeededNoise("nan"))


def test_scores_are_standard_normal_without_and_separated_with_the_canary() -> None:
    """2,000 scores a kind: means within 5 / sqrt(2000), variances within 5 * sqrt(2 / 2000); once in two million each."""
    tree, signal = BinaryTree(GRID, 3.0), np.zeros(12)
    signal[[0, 5, 11]] = 1.0
    inverse = information(noise_table(tree, 12))
    stripes = Stripes(4000, 8000, np.random.Generator(np.random.PCG64(41)))
    directions = [stripes.direction(canary) for canary in range(2000)]
    released = run_with_canaries(tree, signal, directions, 8000, SeededNoise("scores"))
    scores = whitened_scores(stripes.project(released), signal, inverse, 3.0)
    separation = math.sqrt(signal @ inverse @ signal) / 3.0
    for found, mean in ((scores[:2000], separation), (scores[2000:], 0.0)):
        assert found.mean() == pytest.approx(mean, abs=5 / math.sqrt(2000))
        assert found.var() == pytest.approx(1.0, abs=5 * math.sqrt(2 / 2000))


def test_stripes_are_orthonormal_and_project_as_dense_directions_do() -> None:
    stripes = Stripes(7, 50, np.random.Generator(np.random.PCG64(42)))
    dense = np.array([stripes.direction(canary) for canary in range(7)])
    released = np.random.Generator(np.random.PCG64(43)).standard_normal((3, 50))
    assert np.allclose(dense @ dense.T, np.eye(7))
    assert np.allclose(stripes.project(released), released @ dense.T)
    with pytest.raises(ValueError, match="fit"):
        Stripes(51, 50, np.random.Generator(np.random.PCG64(42)))


def test_report_is_plain_json_with_everything_that_it_rests_on() -> None:
    report = attacked(priced_at(BinaryTree, 0.81))
    plain = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert plain["claim"]["rho"] == pytest.approx(0.81)
    assert plain["contradicts_claim"] is False
    assert plain["settings"] == {"canaries": 600, "size": 2000, "confidence": 0.95, "false_alarm": 1e-4, "seed": 0}
    assert plain["priced"]["max_times"] == 4
    assert len(plain["worst_steps"]) == 4


def test_the_same_noise_and_seed_give_the_same_report() -> None:
    mechanism = priced_at(IndependentGaussian, 0.81)
    assert attacked(mechanism) == attacked(mechanism)
    assert attacked(mechanism) != attacked(mechanism, "other")


def test_settings_that_prove_nothing_are_refused() -> None:
    for wrong in ({"canaries": 99}, {"size": 999}, {"size": 2000, "canaries": 3000}, {"confidence": 1.0}, {"false_alarm": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings(**wrong)
    for steps in (0, 257):
        with pytest.raises(ValueError, match="steps"):
            audit(IndependentGaussian(GRID, 1.0), steps, PARTICIPATION, DELTA, SeededNoise("steps"), SMALL)
