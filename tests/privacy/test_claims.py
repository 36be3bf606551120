"""What is said about a run: every condition it needs, and figures rounded against us."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from scipy.special import ndtr, ndtri

from fedrho.privacy.auditing.limits import largest_separation
from fedrho.privacy.banded import BandedToeplitz
from fedrho.privacy.blt import BufferedToeplitz
from fedrho.privacy.claims import COMMON, HARDLY, LARGE_DELTA, LITTLE, MUCH, claim, in_words, sampled_assumptions, verdict
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.participation import Participation
from fedrho.privacy.sampling import PoissonSampling, SampledGaussian
from fedrho.privacy.statement import Neighbours, PrivacyStatement, Unit
from fedrho.privacy.toeplitz import square_root_coefficients
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import Grid
from fedrho.privacy.zcdp import Rho, epsilon, gaussian_epsilon

GRID = Grid(1.0)


def square_root(bands: int) -> tuple[float, ...]:
    return tuple(map(float, square_root_coefficients(bands)))


def of(rho: float) -> PrivacyStatement:
    return PrivacyStatement(Unit.DEVICE, Neighbours.ZERO_OUT, Rho(rho), ())


def test_a_claim_has_the_price_of_the_mechanism_and_its_unit() -> None:
    statement = claim(BinaryTree(GRID, 7.0), 2000, Participation(6, 314))
    assert statement.rho == 79 / 98
    assert (statement.unit, statement.neighbours, statement.exact) == (Unit.DEVICE, Neighbours.ZERO_OUT, True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((BinaryTree(GRID, 7.0), 2000), (BinaryTree(GRID, 7.0), 1000)),
        ((BinaryTree(GRID, 7.0), 2000), (BinaryTree(GRID, 7.0, (500, 500)), 2000)),
        ((BinaryTree(GRID, 7.0, (500, 600)), 2000), (BinaryTree(GRID, 7.0, (500, 600), True), 2000)),
        ((BinaryTree(GRID, 7.0), 2000), (BinaryTree(GRID, 7.0000001), 2000)),
        ((BufferedToeplitz(GRID, 7.0, (0.9,), (0.01,)), 2000), (BufferedToeplitz(GRID, 7.0, (0.99,), (0.9,)), 2000)),
        ((BandedToeplitz(GRID, 7.0, square_root(30)), 2000), (BandedToeplitz(GRID, 7.0, square_root(29)), 2000)),
    ],
)
def test_a_statement_says_all_that_its_price_depends_on(one: tuple[Any, int], other: tuple[Any, int]) -> None:
    statements = [claim(mechanism, rounds, Participation(2, 314)) for mechanism, rounds in (one, other)]
    assert statements[0].rho != statements[1].rho
    assert statements[0].assumptions != statements[1].assumptions


def test_a_long_strategy_is_told_by_its_digest() -> None:
    (said,) = [
        text
        for text in claim(BandedToeplitz(GRID, 7.0, square_root(30)), 100, Participation(2, 50)).assumptions
        if "(banded-toeplitz)" in text
    ]
    assert "(1.0, 0.5, 0.375, " in said
    assert "... 30 in all, SHA-256 " in said
    assert len(said) < 300


@pytest.mark.parametrize(
    ("participation", "said"),
    [
        (
            Participation(6, 314),
            "at most 6 of the rounds, any two of them at least 314 apart (difference of their numbers), and somebody enforces",
        ),
        (Participation.epochs(5, 20), "at most 5 of the rounds, any two of them whole multiples of 20 apart"),
        (Participation.single(), "at most 1 of the rounds, and somebody enforces that"),
    ],
)
def test_the_participation_that_was_priced_is_the_one_that_is_assumed(participation: Participation, said: str) -> None:
    assumptions = claim(IndependentGaussian(GRID, 2.0), 2000, participation).assumptions
    assert said in assumptions[0]
    assert "multiplier 2" in assumptions[1]
    assert assumptions[2:] == COMMON


def test_what_cannot_be_priced_is_not_claimed() -> None:
    from fedrho.privacy.banded import BandedToeplitz

    overlapping = BandedToeplitz(GRID, 1.0, tuple(map(float, square_root_coefficients(5))))
    with pytest.raises(ValueError, match="bands"):
        claim(overlapping, 20, Participation(3, 4))


def test_amplification_names_who_enforces_it_and_covers_no_groups() -> None:
    said = sampled_assumptions(SampledGaussian(1.5, PoissonSampling(0.01, "the simulation"), 70))
    assert "70 rounds" in said[0]
    assert "probability 0.01" in said[0]
    assert "the simulation" in said[0]
    assert "secret" in said[0]
    assert not any("several devices rho" in text for text in said)


@pytest.mark.parametrize("rho", [1e-6, 0.01, 0.1, 0.806122, 2.63, 40.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-10])
def test_every_figure_in_words_is_rounded_against_us(rho: float, delta: float) -> None:
    text = "\n".join(in_words(of(rho), delta))
    (percent,) = re.findall(r"at most (\S+) %", text)
    (said_rho,) = re.findall(r"rho = (\S+) zCDP", text)
    by_rho, exactly = re.findall(r"epsilon\s=\s(\S+?)\.? ", text.replace("\n", " "))[:2]
    assert float(percent) >= 100 * float(ndtr((2 * rho) ** 0.5 / 2))
    assert float(said_rho) >= rho
    assert float(by_rho) >= epsilon(Rho(rho), delta)
    assert float(exactly) >= gaussian_epsilon(Rho(rho), delta)
    assert float(percent) <= 1.01 * 100 * float(ndtr((2 * rho) ** 0.5 / 2))
    assert repr(delta) in text


def test_words_say_what_is_not_protected() -> None:
    text = " ".join(in_words(of(0.5), 1e-6))
    for part in ("does not hide that the device takes part", "before the noise is added", "Guessing gives 50 %"):
        assert part in text


@pytest.mark.parametrize(
    ("rho", "said"),
    [
        (LITTLE, "strong"),
        (math.nextafter(LITTLE, 1), "moderate"),
        (MUCH, "moderate"),
        (math.nextafter(MUCH, 9), "weak"),
        (HARDLY, "weak"),
        (math.nextafter(HARDLY, 9), "weak"),
        (1e6, "weak"),
    ],
)
def test_every_claim_gets_its_verdict_with_unit_and_neighbours(rho: float, said: str) -> None:
    words = verdict(of(rho))
    assert words.startswith(f"This guarantee is {said}: at rho = ")
    assert "zCDP, one device, zero-out" in words
    assert in_words(of(rho), 1e-6).count(words) == 1
    (shown,) = re.findall(r"rho = (\S+) ", words)
    assert float(shown) >= rho


def test_the_limits_are_those_of_the_page() -> None:
    page = " ".join((Path(__file__).parents[2] / "docs" / "read-a-statement.md").read_text(encoding="utf-8").split())
    assert f"Below rho {LITTLE:g} or so an attacker who guesses gains little. Above rho {HARDLY:g} " in page
    assert ndtr(ndtri(0.01) + largest_separation(Rho(MUCH))) > 1 / 3
    assert f"up to {LITTLE:g} strong, one above {MUCH:g} weak" in page
    assert f"From {LARGE_DELTA:.0e} on".replace("e-03", "e-3") in page


@pytest.mark.parametrize(("delta", "large"), [(0.5, True), (1e-3, True), (9.99e-4, False), (1e-10, False)])
def test_a_large_delta_is_called_one(delta: float, large: bool) -> None:
    text = " ".join(in_words(of(0.5), delta))
    assert (f"A delta of {delta!r} is large" in text) == large
    assert ("well below one over the number of devices" in text) == large
