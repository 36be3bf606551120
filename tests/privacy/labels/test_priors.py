"""Priors are functions of public data whose rows add up to 1, and what no prior may be is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedrho.privacy.labels import priors
from fedrho.privacy.labels.priors import BadPriors
from fedrho.privacy.vectors import FloatVector

SOME = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])


def channel(epsilon: float, classes: int) -> NDArray[np.float64]:
    """Of randomized response, rows are true labels; from its definition."""
    odds = np.ones((classes, classes)) + np.eye(classes) * math.expm1(epsilon)
    rows: NDArray[np.float64] = odds / odds.sum(axis=1, keepdims=True)
    return rows


@given(
    st.lists(
        st.lists(st.floats(0, 1e308, allow_subnormal=True), min_size=4, max_size=4),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_is_finite_and_not_negative_becomes_rows_that_add_up_to_one(rows: list[list[float]]) -> None:
    checked = priors.checked(rows)
    assert checked.dtype == np.float64
    assert checked.shape == (len(rows), 4)
    assert (checked >= 0).all()
    np.testing.assert_allclose(checked.sum(axis=1), 1, atol=1e-12)


def test_scaling_a_row_changes_nothing_and_a_row_of_zeros_becomes_uniform() -> None:
    np.testing.assert_allclose(priors.checked(SOME * 1e300), SOME, atol=1e-15)
    np.testing.assert_array_equal(priors.checked([[0, 0, 0, 0]]), [[0.25] * 4])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([[0.5, math.nan]], "row 0 .* is no number"),
        ([[0.5, 0.5], [math.inf, 0.5]], "class 0 in row 1 .* is infinite"),
        ([[0.5, -1e-9]], "class 1 in row 0 .* is negative"),
        ([0.5, 0.5], "shape"),
        (np.ones((3, 0)), "shape"),
        ([["a", "b"]], "numbers"),
    ],
)
def test_bad_priors_are_refused_with_the_place(bad: object, said: str) -> None:
    with pytest.raises(BadPriors, match=said):
        priors.checked(bad)  # type: ignore[arg-type]


def test_a_caller_s_array_is_left_as_it_was() -> None:
    given_rows = SOME * 2
    priors.checked(given_rows)[:] = 7
    np.testing.assert_array_equal(given_rows, SOME * 2)


def test_a_tempered_prior_is_the_softmax_of_logits_over_the_temperature() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (5, 7))

    def softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
        odds = np.exp(values)
        rows: NDArray[np.float64] = odds / odds.sum(axis=1, keepdims=True)
        return rows

    np.testing.assert_allclose(priors.tempered(softmax(logits), 0.3), softmax(logits / 0.3), rtol=1e-9)
    np.testing.assert_allclose(priors.tempered([[0.5, 0.3, 0.2]], 1e-9), [[1, 0, 0]])
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(BadPriors, match="temperature"):
            priors.tempered(SOME, temperature)


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 4.0, 40.0, 1000.0])
def test_denoising_undoes_the_channel_of_randomized_response(epsilon: float) -> None:
    answered = SOME @ channel(min(epsilon, 300.0), 3)
    np.testing.assert_allclose(priors.denoised(answered, epsilon), SOME, atol=1e-12)


def test_denoising_clips_what_no_answers_could_have_caused_and_knows_nothing_at_epsilon_zero() -> None:
    keep = math.e / (math.e + 2)
    inverted = (np.array([0.8, 0.19, 0.01]) - keep / math.e) / (keep * (1 - 1 / math.e))
    assert inverted[1] < 0
    np.testing.assert_allclose(priors.denoised([[0.8, 0.19, 0.01]], 1.0), [[1, 0, 0]])
    np.testing.assert_array_equal(priors.denoised(SOME, 0.0), priors.uniform(3, 3))
    np.testing.assert_allclose(priors.denoised(SOME, math.inf), SOME)
    for epsilon in (-1.0, math.nan):
        with pytest.raises(BadPriors, match="epsilon"):
            priors.denoised(SOME, epsilon)


def test_a_histogram_is_clipped_and_normalised_and_nothing_in_it_means_uniform() -> None:
    counts = np.array([[30, 10, -5], [-3, -2, 0], [0, 0, 4]])
    np.testing.assert_allclose(priors.histogram_prior(counts), np.array([[0.75, 0.25, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0, 1]]))


def test_mixed_priors_keep_their_sums() -> None:
    np.testing.assert_allclose(priors.mixed(SOME, priors.uniform(3, 3), 0.4), 0.4 * SOME + 0.2)
    with pytest.raises(BadPriors, match="shapes"):
        priors.mixed(SOME, priors.uniform(3, 4), 0.4)
    with pytest.raises(BadPriors, match="weight"):
        priors.mixed(SOME, SOME, 1.5)


class Remembered:
    """A learner whose prediction is its weights' softmax, whatever the features."""

    classes = 3

    def fit(
        self, features: NDArray[np.float64], likelihoods: NDArray[np.float64], start: FloatVector | None, seed: int
    ) -> FloatVector:
        return np.zeros(3, np.float32)

    def probabilities(self, weights: FloatVector, features: NDArray[np.float64]) -> NDArray[np.float64]:
        odds = np.exp(weights.astype(np.float64))
        return np.tile(odds / odds.sum(), (len(features), 1))


def test_a_model_s_prior_is_denoised_before_it_is_tempered() -> None:
    label_odds = np.array([[0.6, 0.3, 0.1]])
    weights = np.log(label_odds @ channel(1.0, 3))[0].astype(np.float32)
    found = priors.predicted(Remembered(), weights, np.zeros((4, 2)), temperature=0.5, epsilon=1.0)
    np.testing.assert_allclose(found, np.tile([[0.36, 0.09, 0.01]], (4, 1)) / 0.46, rtol=1e-5)


def test_a_function_of_features_must_answer_for_every_record_and_class() -> None:
    features = np.arange(6.0).reshape(3, 2)
    assert priors.from_function(lambda rows: np.ones((len(rows), 5)), features, 5).tolist() == [[0.2] * 5] * 3
    with pytest.raises(BadPriors, match="3 records and 5 classes"):
        priors.from_function(lambda rows: np.ones((len(rows), 4)), features, 5)
