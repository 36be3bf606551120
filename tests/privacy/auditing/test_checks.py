"""The contract as findings: none for honest mechanisms, the right one for each of the broken ones."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from fedrho.privacy.adaptive import AdaptiveGaussian
from fedrho.privacy.auditing.checks import Check, Finding, check_mechanism, noise_audit, replay_audit
from fedrho.privacy.banded import BandedToeplitz
from fedrho.privacy.blt import BufferedToeplitz
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import Grid
from tests.privacy.auditing.gallery import (
    BigZero,
    CheapLater,
    DrawsHalf,
    DrawsThenLooks,
    DrawsTwiceAsOften,
    ForgetsKept,
    ForgetsLargeBlocks,
    ForgetsMiddleBlocks,
    HalvedAfterwards,
    HalvedTree,
    Nosy,
    OwnNoise,
    PairBig,
    PricedOnce,
    RedrawnLeaf,
    RedrawnTree,
    RestoresWide,
    ReusedNoise,
    SilentFallback,
)
from tests.privacy.dense import SeededNoise

GRID = Grid(0.5, 20)
PARTICIPATION = Participation(3, 4)


@cache
def findings(kind: type[Mechanism[Any]], participation: Participation = PARTICIPATION) -> list[Finding]:
    return check_mechanism(kind(GRID, 2.0), 20, participation, SeededNoise("checks"))


HONEST: list[Mechanism[Any]] = [
    IndependentGaussian(GRID, 2.0),
    AdaptiveGaussian(GRID, 2.0, goal=100),
    BinaryTree(GRID, 2.0),
    BinaryTree(GRID, 2.0, restarts=(5, 7)),
    BinaryTree(GRID, 2.0, restarts=(5, 7), completed=True),
    BandedToeplitz(GRID, 2.0, (1.0, 0.5, 0.375, 0.3125)),
    BufferedToeplitz(GRID, 2.0, (0.98, 0.6), (0.2, 0.3)),
]


@pytest.mark.parametrize("participation", [Participation(1), Participation(3, 4), Participation.epochs(2, 10)], ids=str)
@pytest.mark.parametrize("mechanism", HONEST, ids=[f"{i}-{mechanism.name}" for i, mechanism in enumerate(HONEST)])
def test_nothing_is_found_wrong_with_an_honest_mechanism(mechanism: Mechanism[Any], participation: Participation) -> None:
    """The one statistical check, of the covariance, fails once in a million runs; here the noise is fixed besides."""
    assert check_mechanism(mechanism, 20, participation, SeededNoise("honest")) == []


@pytest.mark.parametrize("multiplier", [0.01, 1.0, 1000.0])
@pytest.mark.parametrize("bits", [8, 20, 24])
def test_nothing_is_found_wrong_on_coarse_and_fine_grids(bits: int, multiplier: float) -> None:
    for kind in (IndependentGaussian, BinaryTree):
        mechanism = kind(Grid(3.0, bits), multiplier)
        assert check_mechanism(mechanism, 12, Participation(2, 3), SeededNoise(f"{bits} {multiplier}")) == []


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (HalvedTree, Check.COVARIANCE),
        (HalvedTree, Check.SENSITIVITY),
        (HalvedAfterwards, Check.COVARIANCE),
        (RedrawnTree, Check.REPLAY),
        (PairBig, Check.COVARIANCE),
        (BigZero, Check.COVARIANCE),
        (DrawsHalf, Check.COVARIANCE),
        (ForgetsLargeBlocks, Check.REPLAY),
        (ForgetsMiddleBlocks, Check.REPLAY),
        (ForgetsKept, Check.REPLAY),
        (RestoresWide, Check.REPLAY),
        (RedrawnLeaf, Check.DRAWS),
        (ReusedNoise, Check.COVARIANCE),
        (ReusedNoise, Check.SENSITIVITY),
        (PricedOnce, Check.SENSITIVITY),
        (CheapLater, Check.COST),
        (SilentFallback, Check.REFUSAL),
        (OwnNoise, Check.DRAWS),
        (Nosy, Check.RELEASE),
        (DrawsThenLooks, Check.REFUSAL),
    ],
)
def test_what_is_broken_is_found(kind: type[Mechanism[Any]], check: Check) -> None:
    assert check in {finding.check for finding in findings(kind)}


@pytest.mark.parametrize("bits", [8, 20, 24])
@pytest.mark.parametrize("mechanism", HONEST, ids=[f"{i}-{mechanism.name}" for i, mechanism in enumerate(HONEST)])
def test_rounding_of_many_steps_is_allowed_for_in_every_coordinate(mechanism: Mechanism[Any], bits: int) -> None:
    assert noise_audit(replace(mechanism, grid=Grid(3.0, bits)), 64, SeededNoise(f"rounding {bits}"), 2000) == []


@pytest.mark.parametrize(
    ("kind", "many"),
    [(IndependentGaussian, None), (PairBig, "5000 of 10000"), (BigZero, "5 of 10000"), (DrawsHalf, "10000 of 10000")],
)
def test_coordinates_without_noise_of_their_own_are_counted(kind: type[Mechanism[Any]], many: str | None) -> None:
    """Nothing but the long vectors is wrong, so this is all that is found."""
    found = [str(finding) for finding in findings(kind)]
    assert len(found) == (many is not None)
    assert all(f"{many} coordinates of step 1 are not the noise of their nodes" in text for text in found)


def test_long_vectors_that_draw_other_nodes_than_short_ones_are_found() -> None:
    assert ["more or fewer nodes" in finding.text for finding in findings(DrawsTwiceAsOften)] == [True]


@pytest.mark.parametrize("steps", [24, 100])
@pytest.mark.parametrize("kind", [ForgetsLargeBlocks, ForgetsMiddleBlocks, ForgetsKept, RestoresWide])
def test_what_is_lost_in_a_restart_is_found_however_late_it_shows(kind: type[Mechanism[Any]], steps: int) -> None:
    found = replay_audit(kind(GRID, 2.0), steps, SeededNoise("late"))
    assert {finding.check for finding in found} == {Check.REPLAY}


def test_noise_that_goes_wrong_only_at_a_later_merge_is_found_there() -> None:
    """After step 6 a block of four leaves is lost, which is merged at step 8."""
    found = [finding.text for finding in replay_audit(ForgetsMiddleBlocks(GRID, 2.0), 20, SeededNoise("merge"))]
    assert "restored after step 6, it does not go on with the same noise at step 8" in found


def test_a_server_that_lets_clients_in_too_often_is_found() -> None:
    tree, priced = BinaryTree(GRID, 2.0), Participation(3, 6)
    found = check_mechanism(tree, 20, priced, SeededNoise("dense"), enforced=Participation(3, 1))
    assert [finding.check for finding in found] == [Check.SENSITIVITY]
    assert check_mechanism(tree, 20, priced, SeededNoise("dense"), enforced=priced) == []


def test_fresh_noise_of_the_system_is_the_default() -> None:
    assert check_mechanism(BinaryTree(GRID, 2.0), 8, Participation(1)) == []
    assert check_mechanism(BinaryTree(GRID, 2.0), 8, Participation(1), SystemNoise()) == []


def test_a_finding_says_what_it_is_about() -> None:
    found = findings(PricedOnce)
    assert str(found[0]).startswith("sensitivity: a client in steps ")
    assert "claimed 1" in str(found[0])
