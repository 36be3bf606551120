"""Labels that are numbers: bins against exhaustive cuts and check values, unbiased ones against theirs; both private exactly."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest

from fedrho.privacy.labels.private import AlreadyAnswered, PrivateLabels
from fedrho.privacy.labels.randomizers import RandomizedResponse
from fedrho.privacy.labels.regression import bins, unbiased
from tests.privacy.labels.chances import Seeded, Untouched
from tests.privacy.labels.test_other_mechanisms import assert_ratios

VALUES = np.arange(1.0, 6.0)
PRIOR = (0.056, 0.108, 0.261, 0.349, 0.226)


@pytest.mark.parametrize(
    ("epsilon", "error", "outputs"),
    [(1.0, 1.060306071, (3.117310, 3.984573)), (2.0, 0.734924031, (2.778058, 4.219296)), (4.0, 0.219215499, None)],
)
def test_bins_of_ratings(epsilon: float, error: float, outputs: tuple[float, ...] | None) -> None:
    """Values that an exhaustive search of cuts gives."""
    randomizer = bins(VALUES, PRIOR, epsilon)
    assert randomizer.error(PRIOR) == pytest.approx(error, abs=1e-9)
    assert_ratios(randomizer.table, epsilon)
    own = randomizer.table.matrix.argmax(axis=1).tolist()
    assert own == ([0, 0, 0, 1, 1] if outputs else [0, 0, 1, 2, 3])
    if outputs:
        assert randomizer.outputs == pytest.approx(outputs, abs=1e-6)


def cut_error(values: np.ndarray, prior: np.ndarray, cuts: tuple[int, ...], epsilon: float) -> float:
    """The least error of randomized response on these bins, by its definition."""
    edges = [0, *cuts, len(values)]
    total = 0.0
    for low, high in pairwise(edges):
        weights = prior * np.where((np.arange(len(values)) >= low) & (np.arange(len(values)) < high), math.exp(epsilon), 1.0)
        output = weights @ values / weights.sum()
        total += weights @ (values - output) ** 2
    return total / (math.exp(epsilon) + len(edges) - 2)


def test_bins_are_the_best_of_all_cuts() -> None:
    generator = np.random.default_rng(1)
    for _ in range(20):
        values, prior = np.sort(generator.normal(size=6)), generator.dirichlet(np.ones(6))
        epsilon = float(generator.uniform(0.1, 5))
        best = min(cut_error(values, prior, cuts, epsilon) for d in range(6) for cuts in combinations(range(1, 6), d))
        assert bins(values, prior, epsilon).error(prior) == pytest.approx(best, rel=1e-9)


def test_unbiased_ratings() -> None:
    """15.5106 on 61 outputs, below the 27.3668 of debiased randomized response; at most 2 |Y| outputs."""
    randomizer = unbiased(VALUES, PRIOR, 1.0)
    assert randomizer.error(PRIOR) == pytest.approx(15.5106, abs=1e-4)
    assert len(randomizer.outputs) <= 10
    assert randomizer.table.matrix @ randomizer.outputs == pytest.approx(VALUES, abs=1e-6)
    assert_ratios(randomizer.table, 1.0)
    with pytest.raises(ValueError, match="wider grid"):
        unbiased(VALUES, PRIOR, 1.0, outputs=VALUES)


def test_numbers_are_told_as_the_table_says() -> None:
    """The mean of what is told about the value 4, within five standard errors, with a fixed seed; likelihoods are columns."""
    randomizer = unbiased(VALUES, PRIOR, 1.0)
    told = randomizer.estimates(np.full(100_000, 3), Seeded(1))
    assert told.mean() == pytest.approx(4.0, abs=5 * told.std() / math.sqrt(len(told)))
    answers = bins(VALUES, PRIOR, 1.0).answer(np.array([0, 4]), np.ones((2, 5)), Seeded(2))
    assert all(row.tolist() in bins(VALUES, PRIOR, 1.0).table.matrix.T.tolist() for row in answers.likelihoods)


def test_numbers_are_paid_for_and_told_once_by_whoever_holds_the_labels() -> None:
    randomizer, private = unbiased(VALUES, PRIOR, 1.0), PrivateLabels(np.full(20_000, 3), 5, budget=1.0)
    told = private.estimates(np.arange(20_000), randomizer, Seeded(1))
    assert told.mean() == pytest.approx(4.0, abs=5 * told.std() / math.sqrt(len(told)))
    assert set(told.tolist()) <= set(randomizer.outputs.tolist())
    assert (private.ledger.total, private.reads.max()) == (1.0, 1)
    assert private.ledger.rows() == [("unbiased randomizer", 1.0, 20_000)]
    with pytest.raises(AlreadyAnswered):
        private.estimates(np.array([0]), randomizer, Untouched())
    fresh = PrivateLabels([0], 5, budget=1.0)
    with pytest.raises(TypeError, match="tells classes"):
        fresh.estimates(np.array([0]), RandomizedResponse(1.0), Untouched())  # type: ignore[arg-type]
    assert fresh.ledger.total == 0
    with pytest.raises(ValueError, match="5 values"):
        PrivateLabels([0], 4, budget=1.0).estimates(np.array([0]), randomizer, Untouched())


def test_an_unbiased_randomizer_is_unbiased_or_refused() -> None:
    for epsilon in (0.1, 0.02, 1e-2, 1e-3):
        randomizer = unbiased(VALUES, PRIOR, epsilon)
        assert randomizer.table.matrix @ randomizer.outputs == pytest.approx(VALUES, abs=1e-5)
    for epsilon in (1e-4, 1e-5, 1e-9, 1e-12):
        with pytest.raises(ValueError, match="too small"):
            unbiased(VALUES, PRIOR, epsilon)


def test_what_cannot_be_randomized_is_refused() -> None:
    for values, prior, epsilon in (
        ([1.0], [1.0], 1.0),
        ([2.0, 1.0], [0.5, 0.5], 1.0),
        ([1.0, math.inf], [0.5, 0.5], 1.0),
        ([1.0, 2.0], [0.5, math.nan], 1.0),
        ([1.0, 2.0], [1.5, -0.5], 1.0),
        ([1.0, 2.0], [0.0, 0.0], 1.0),
        ([1.0, 2.0], [0.5, 0.5], 0.0),
        ([1.0, 2.0], [0.5, 0.5], math.inf),
    ):
        for make in (bins, unbiased):
            with pytest.raises(ValueError, match=r"rise|prior|epsilon"):
                make(values, prior, epsilon)
    with pytest.raises(ValueError, match="5 values"):
        bins(VALUES, PRIOR, 1.0).answer(np.array([0]), np.ones((1, 4)), Untouched())
