"""A histogram of words moves by no more than it says, its price is dp_accounting's, and nothing but the noisy counts chooses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from dp_accounting import ComposedDpEvent, GaussianDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.noise import expand
from fedrho.privacy.participation import Participation
from fedrho.privacy.statement import Neighbours, PrivacyStatement, Unit, compose
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import Clipped, Grid, IntVector
from fedrho.privacy.vocabulary import WordHistogram, most_named
from fedrho.privacy.zcdp import Rho, epsilon, gaussian_epsilon


class Seeded:
    """The product's noise, from a seed that the test knows."""

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, object]:
        return expand(name, bytes(32), size, stddev)


def given(histogram: WordHistogram, *devices: list[int]) -> list[Clipped]:
    return [histogram.contribution(np.array(device, dtype=np.int64)) for device in devices]


def counts(histogram: WordHistogram, *devices: list[int]) -> np.ndarray:
    return histogram.counts(given(histogram, *devices), Seeded())  # type: ignore[arg-type]


def test_no_device_whatever_it_names_moves_the_histogram_by_more_than_the_clip_norm_and_some_do() -> None:
    """All that a device can name of five candidates, also twice and also too many: a device replaced by zeros, or taken away."""
    histogram = WordHistogram(5, 2, Rho(0.5))
    limit = math.sqrt(2)
    others: tuple[list[int], ...] = ([0], [1, 2], [])
    without = counts(histogram, *others)
    moved = [
        float(np.linalg.norm(counts(histogram, *others, list(named)) - without))
        for length in range(7)
        for named in itertools.combinations_with_replacement(range(5), length)
    ]
    assert len(moved) == 462
    assert limit * (1 - 1e-5) < max(moved) <= limit * (1 + 1e-12)
    assert min(moved) == 0.0


def test_a_word_said_a_million_times_is_named_once_and_a_million_words_weigh_no_more_than_a_few() -> None:
    histogram = WordHistogram(10_000, 4, Rho(0.5))
    once, often, all_words = given(histogram, [7], [7] * 1_000_000, list(range(10_000)))
    assert np.array_equal(once.vector, often.vector)
    for one in (once, all_words):
        assert np.linalg.norm(one.vector.astype(float)) <= one.grid.radius
    few = given(histogram, [1, 2, 3, 4])[0].vector
    assert np.array_equal(few[[1, 2, 3, 4]], np.full(4, few.max()))
    assert few.max() == once.vector.max()
    assert np.linalg.norm(few) == pytest.approx(all_words.grid.radius, rel=1e-5)


def test_counts_are_how_many_devices_name_each_word_and_the_noise_that_was_priced() -> None:
    histogram = WordHistogram(20_000, 50, Rho(0.02))
    assert histogram.stddev == pytest.approx(math.sqrt(50 / (2 * 0.02)))
    noise = counts(histogram)
    assert abs(noise.std() / histogram.stddev - 1) < 5 / math.sqrt(2 * 20_000)  # five standard errors of a standard deviation
    devices = [[1, 2, 3], [2, 3], [3, 3]]
    found = counts(histogram, *devices) - noise
    assert found[:5].tolist() == pytest.approx([0, 1, 2, 3, 0], abs=3 * histogram.mechanism.grid.unit)


def test_the_statement_is_what_dp_accounting_says_of_histogram_and_training_together() -> None:
    histogram = WordHistogram(9998, 200, Rho(0.1))
    mechanism, participation = BinaryTree(Grid(0.5), 4.0), Participation(3, 8)
    training = PrivacyStatement(Unit.DEVICE, Neighbours.ZERO_OUT, mechanism.cost(24, participation), ("kept",))
    whole = compose([histogram.statement("a public list"), training])
    assert histogram.rho <= 0.1
    assert whole.rho == pytest.approx(0.1 + training.rho)
    squared = mechanism.sensitivity(24, participation).squared
    events = ComposedDpEvent(
        [GaussianDpEvent(histogram.stddev / math.sqrt(200)), GaussianDpEvent(mechanism.noise_multiplier / math.sqrt(squared))]
    )
    for delta in (1e-5, 1e-8):
        exact = PLDAccountant().compose(events).get_epsilon(delta)
        assert gaussian_epsilon(whole.rho, delta) == pytest.approx(exact, rel=1e-3)
        orders = np.linspace(1.5, 40, 3000).tolist()
        assert whole.epsilon(delta) == pytest.approx(RdpAccountant(orders).compose(events).get_epsilon(delta), rel=1e-4)
    assert epsilon(whole.rho, 1e-5) == whole.epsilon(1e-5)


def test_the_price_is_that_of_one_step_of_dp_fedavg() -> None:
    histogram = WordHistogram(100, 9, Rho(0.3))
    assert isinstance(histogram.mechanism, IndependentGaussian)
    assert histogram.mechanism.grid.clip_norm == 3.0
    assert histogram.rho == histogram.mechanism.cost(1, Participation(1)) == pytest.approx(0.3)
    said = " ".join(histogram.statement("the list 'x'").assumptions)
    for expected in ("at most once", "at most 9 of the 100 words of the list 'x'", "public", "noise multiplier 1.29"):
        assert expected in said


def test_ties_are_in_the_public_order_whoever_named_them() -> None:
    assert most_named(np.array([1.0, 3.0, 3.0, 0.5, 3.0]), 4).tolist() == [1, 2, 4, 0]
    assert most_named(np.zeros(3), 9).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("words", "budget"), [(0, 0.1), (6, 0.1), (2, 0.0), (2, math.nan), (2, math.inf), (2, 1e-30)])
def test_histograms_that_cannot_be_priced_are_refused(words: int, budget: float) -> None:
    with pytest.raises(ValueError, match=r"words_per_device must be 1 to 5|rho|noise_multiplier"):
        WordHistogram(5, words, Rho(budget))


def test_contributions_for_another_histogram_are_refused() -> None:
    histogram = WordHistogram(5, 2, Rho(0.5))
    for other in (WordHistogram(5, 3, Rho(0.5)), WordHistogram(6, 2, Rho(0.5))):
        contributions = given(other, [1])
        with pytest.raises(ValueError, match="made for another histogram"):
            histogram.counts(contributions, Seeded())  # type: ignore[arg-type]
    for number in (-1, 5):
        with pytest.raises(ValueError, match="candidates are 0 to 4"):
            histogram.contribution(np.array([number]))
