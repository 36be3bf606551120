"""How far predictions of several trainings lie apart, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fedrho.models.reproducibility import differences, disagreement, prediction_difference, relative_prediction_difference

TWO = np.array([[[0.8, 0.2], [0.5, 0.5]], [[0.6, 0.4], [0.3, 0.7]]])
"""Of two models, on two examples of two classes; means (0.7, 0.3) and (0.4, 0.6)."""


def test_measures_by_hand() -> None:
    told = differences(TWO, [0, 1])
    assert told.absolute == pytest.approx((0.2 + 0.2) / 2)
    assert told.relative == pytest.approx(((0.1 / 0.7 + 0.1 / 0.3) + (0.1 / 0.4 + 0.1 / 0.6)) / 2)
    assert told.relative_true == pytest.approx((0.1 / 0.7 + 0.1 / 0.6) / 2)
    assert told.disagreement == 0.5
    assert list(told.as_dict()) == ["absolute", "relative", "relative_true", "disagreement"]


def test_measures_are_the_plain_loops_of_three_models() -> None:
    found = np.random.default_rng(3).dirichlet(np.ones(4), size=(3, 5))
    mean = found.mean(axis=0)
    absolute = relative = 0.0
    for m in range(3):
        for n in range(5):
            for k in range(4):
                absolute += abs(found[m, n, k] - mean[n, k]) / 15
                relative += abs(found[m, n, k] - mean[n, k]) / mean[n, k] / 15
    assert prediction_difference(found) == pytest.approx(absolute)
    assert relative_prediction_difference(found) == pytest.approx(relative)


def test_equal_models_differ_by_nothing_and_opposite_ones_by_all() -> None:
    same = np.stack([np.eye(3), np.eye(3)])
    assert (prediction_difference(same), relative_prediction_difference(same), disagreement(same)) == (0, 0, 0)
    opposite = np.stack([np.eye(2), np.eye(2)[::-1]])
    assert (prediction_difference(opposite), relative_prediction_difference(opposite, [0, 1])) == (1, 1)


@pytest.mark.parametrize("wrong", [TWO[:1], TWO[0], np.log(TWO), TWO * 2, TWO * np.nan, np.zeros((2, 0, 2))])
def test_what_are_no_probabilities_of_two_models_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        relative_prediction_difference(wrong)


@pytest.mark.parametrize("labels", [[0], [0, 2], [0.0, 1.0], [-1, 0]])
def test_wrong_labels_are_refused(labels: list[float]) -> None:
    with pytest.raises(ValueError, match="labels"):
        relative_prediction_difference(TWO, labels)
