"""What the membership report takes, refuses and says, with the attacks of our own."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from fedrho.privacy.auditing.membership import membership_report, read_predictions
from fedrho.privacy.auditing.membership_tfp import AttacksMissing, tensorflow_privacy_attacks
from fedrho.privacy.zcdp import Rho

CLASSES = 3
TRAINED, OTHERS = 600, 500
Arrays = dict[str, NDArray[Any]]


def predictions(confidence_trained: float, confidence_others: float, kind: str = "logits") -> Arrays:
    """Logits of noise, and so much more for the right class."""
    random = np.random.Generator(np.random.PCG64(61))
    given: Arrays = {}
    for part, count, confidence in (("train", TRAINED, confidence_trained), ("test", OTHERS, confidence_others)):
        labels = random.integers(0, CLASSES, count)
        logits = random.standard_normal((count, CLASSES)) + confidence * np.eye(CLASSES)[labels]
        given[f"{part}_{kind}"] = logits if kind == "logits" else softmax(logits, axis=1)
        given[f"{part}_labels"] = labels
    return given


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_overfitted_model_is_seen_through_and_contradicts_a_claim(kind: str) -> None:
    report = membership_report(predictions(6.0, 1.0, kind), Rho(0.25))
    assert [result.outcome.attack for result in report.results] == ["threshold", "logistic regression"]
    for result in report.results:
        assert result.auc.low < result.outcome.auc < result.auc.high
        assert result.outcome.auc > 0.9
        assert result.outcome.advantage > 0.7
        assert (result.outcome.examples, result.outcome.trained, result.outcome.others) == ("all", TRAINED, OTHERS)
    assert report.contradicts_claim


def test_model_that_generalises_gives_nothing_away() -> None:
    """AUC of equal predictions: .5 with a standard error of .0175, six of which are allowed."""
    report = membership_report(predictions(2.0, 2.0), Rho(0.25))
    assert [result.outcome.auc for result in report.results] == pytest.approx([0.5, 0.5], abs=0.105)
    assert not report.contradicts_claim
    assert report.largest_auc == pytest.approx(0.6915, abs=1e-4)
    assert report.largest_advantage == pytest.approx(2 * 0.6382 - 1, abs=2e-4)


def test_auc_and_advantage_are_those_of_every_threshold_tried() -> None:
    given = predictions(3.0, 2.0)
    trained, others = read_predictions(given)
    thresholds = np.concatenate([[-1.0], np.sort(np.concatenate([trained.losses, others.losses]))])
    rates = np.array([[np.mean(part.losses <= t) for part in (trained, others)] for t in thresholds])
    threshold = membership_report(given).results[0].outcome
    assert threshold.advantage == pytest.approx(np.abs(rates[:, 0] - rates[:, 1]).max())
    assert threshold.auc == pytest.approx(np.sum((rates[1:, 0] + rates[:-1, 0]) / 2 * np.diff(rates[:, 1])))


def test_each_class_is_attacked_where_it_has_enough_examples() -> None:
    given = predictions(6.0, 1.0)
    given["test_labels"] = np.where(given["test_labels"] == 2, 0, given["test_labels"])
    report = membership_report(given, by_class=True)
    assert {result.outcome.examples for result in report.results} == {"all", "class 0", "class 1"}
    assert report.rho is None
    assert not report.contradicts_claim


def test_report_is_plain_json_and_the_same_for_the_same_seed() -> None:
    one, two = (membership_report(predictions(3.0, 2.0), Rho(1.0), seed=3) for _ in range(2))
    assert one == two
    plain = json.loads(json.dumps(one.as_json(), allow_nan=False))
    assert plain["contradicts_claim"] is False
    assert [result["attack"] for result in plain["results"]] == ["threshold", "logistic regression"]
    assert plain["results"][0]["auc_low"] < plain["results"][0]["auc"] < plain["results"][0]["auc_high"]


def arrays(kind: str = "logits") -> Arrays:
    random = np.random.Generator(np.random.PCG64(51))
    given: Arrays = {}
    for part, count in (("train", 30), ("test", 25)):
        logits = random.standard_normal((count, CLASSES)).astype(np.float32)
        given[f"{part}_{kind}"] = logits if kind == "logits" else softmax(logits, axis=1)
        given[f"{part}_labels"] = random.integers(0, CLASSES, count)
    return given


def test_logits_and_their_probabilities_have_the_same_losses() -> None:
    trained, others = read_predictions(arrays("logits"))
    trained_too, others_too = read_predictions(arrays("probabilities"))
    assert (trained.kind, others_too.kind) == ("logits", "probabilities")
    assert trained.losses == pytest.approx(trained_too.losses, rel=1e-5)
    assert others.losses == pytest.approx(others_too.losses, rel=1e-5)
    assert trained.losses[0] == pytest.approx(-np.log(trained_too.scores[0, trained.labels[0]]), rel=1e-5)


def test_a_certain_model_has_finite_losses_that_still_differ() -> None:
    given = arrays()
    given["train_logits"][:2] = [[800.0, 0.0, 0.0], [600.0, 0.0, 0.0]]
    given["train_labels"][:2] = 1
    trained, _ = read_predictions(given)
    assert trained.losses[:2].tolist() == [800.0, 600.0]


def changed(**changes: Any) -> Arrays:
    given = arrays() | {name: value for name, value in changes.items() if value is not None}
    return {name: value for name, value in given.items() if changes.get(name, value) is not None}


NAN = np.full((30, CLASSES), np.nan)
WRONG = {
    "either train_logits or train_probabilities": changed(train_logits=None),
    "and not both": changed(train_probabilities=np.ones((30, CLASSES)) / CLASSES),
    "test_logits is missing": changed(test_logits=None),
    "test_labels is missing": changed(test_labels=None),
    "train_logits must be numbers": changed(train_logits=np.zeros(30)),
    "test_logits must be numbers": changed(test_logits=np.full((25, CLASSES), "1")),
    "train_logits must have at least": changed(train_logits=np.zeros((0, CLASSES)), train_labels=np.zeros(0, int)),
    "test_logits must have at least": changed(test_logits=np.zeros((25, 1))),
    "train_logits has NaN": changed(train_logits=NAN),
    "same number of classes": changed(test_logits=np.zeros((25, CLASSES + 1))),
    "train_labels must be integers": changed(train_labels=np.zeros(30)),
    "test_labels must be integers": changed(test_labels=np.zeros(24, int)),
    "train_labels must lie between 0 and 2": changed(train_labels=np.full(30, CLASSES)),
    "test_labels must lie between 0 and 2": changed(test_labels=np.full(25, -1)),
}


@pytest.mark.parametrize("message", WRONG)
def test_arrays_that_are_wrong_are_refused_by_name(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        membership_report(WRONG[message])


@pytest.mark.parametrize("factor", [2.0, -1.0])
def test_probabilities_that_are_none_are_refused(factor: float) -> None:
    given = arrays("probabilities")
    given["test_probabilities"] = given["test_probabilities"] * factor
    with pytest.raises(ValueError, match="test_probabilities must be probabilities"):
        membership_report(given)


def test_confidence_and_false_alarm_are_shares() -> None:
    with pytest.raises(ValueError, match="confidence"):
        membership_report(arrays(), confidence=95.0)
    with pytest.raises(ValueError, match="false_alarm"):
        membership_report(arrays(), false_alarm=0.0)


def test_without_the_attacks_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_privacy", None)
    with pytest.raises(AttacksMissing, match="the tff extra brings them"):
        membership_report(arrays(), attacks=tensorflow_privacy_attacks)
