"""Answers of virtual devices: the same everywhere, what a device would train on, and void as a claim."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tomllib
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrho.client.examples import AnsweredExamples
from fedrho.models.flat import FlatModel
from fedrho.models.zoo import lookup
from fedrho.privacy.clipping import clip
from fedrho.privacy.labels.local import CORRECTIONS, FORWARD
from fedrho.protos.messages import LabelTerms
from fedrho.simulations.data.base import Answered, Examples
from fedrho.simulations.labels import answered
from fedrho.simulations.study import StudyError, make_study
from fedrho.simulations.toml_text import toml_text
from fedrho.simulations.training import AllAtOnce, OneByOne
from tests.simulations.held import DEVICES, GRID, LOGISTIC, MLP, digits_like, some_weights, trainer
from tests.simulations.toy_study import parts, run_toy, study_values, toy_study

TERMS = LabelTerms("rr-with-prior", 1.5)
CLASSES = 10


def told(plan: Any, examples: Examples, device: int, seed: int = 3) -> Answered:
    return answered(examples, device, plan.labels, CLASSES, seed)


def model_of(plan: Any) -> FlatModel:
    return FlatModel(lookup(plan.model), on_likelihoods=plan.labels.correction == FORWARD)


def test_answers_are_a_function_of_seed_device_and_labels() -> None:
    examples = digits_like(500, 0)
    plain = replace(TERMS, correction="none")
    first = answered(examples, 4, plain, CLASSES, 0)
    assert (answered(examples, 4, plain, CLASSES, 0).labels == first.labels).all()
    assert np.mean(answered(examples, 5, plain, CLASSES, 0).labels == first.labels) < 0.6
    assert np.mean(answered(examples, 4, plain, CLASSES, 1).labels == first.labels) < 0.6
    keep = np.exp(1.5) / (np.exp(1.5) + 9)
    right = np.mean([np.mean(answered(examples, 0, plain, CLASSES, seed).labels == examples.labels) for seed in range(40)])
    assert right == pytest.approx(keep, abs=5 * np.sqrt(keep * (1 - keep) / 20_000))
    likelihoods = answered(examples, 4, TERMS, CLASSES, 0).labels
    assert (likelihoods.argmax(axis=1) == first.labels).all()  # one answer, for both corrections
    assert likelihoods.max() == pytest.approx(keep)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_a_virtual_device_has_the_bits_of_a_device_with_the_same_answers(correction: str) -> None:
    plan = replace(LOGISTIC, labels=replace(TERMS, correction=correction), epochs=2)
    weights, clients = some_weights(plan.size), [told(plan, one, number) for number, one in enumerate(DEVICES)]
    found = OneByOne(model_of(plan), plan, GRID)(plan.step, weights, clients)
    for client, outcome in zip(clients, found, strict=True):
        device = AnsweredExamples(client.features, client.labels)
        assert (outcome.rows[0] == clip(trainer().train(plan, weights, device), GRID).vector).all()
        assert np.isfinite(outcome.loss).all()


@pytest.mark.slow
@pytest.mark.parametrize("plan", [LOGISTIC, MLP], ids=["logistic", "mlp"])
def test_many_at_once_agree_with_one_by_one(plan: Any) -> None:
    plan = replace(plan, labels=TERMS)
    clients = [told(plan, one, number) for number, one in enumerate(DEVICES)]
    model, weights = model_of(plan), some_weights(plan.size)
    single = np.concatenate([one.rows for one in OneByOne(model, plan, GRID)(1, weights, clients)])
    (stacked,) = AllAtOnce(model, plan, GRID)(1, weights, clients)
    assert np.abs(stacked.rows - single).max() <= 2  # grid units


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_a_device_with_a_label_outside_the_classes_sends_zeros_whichever_it_is(correction: str) -> None:
    plan = replace(LOGISTIC, labels=replace(TERMS, correction=correction))
    examples = digits_like(6, 0)
    training = OneByOne(model_of(plan), plan, GRID)
    for wrong in (-1, 10, 2**31 - 1):
        labels = examples.labels.copy()
        labels[2] = wrong
        (outcome,) = training(1, some_weights(plan.size), [told(plan, Examples(examples.features, labels), 0)])
        assert outcome.failed.all()
        assert not outcome.rows.any()


def test_likelihood_loss_has_the_gradient_of_the_posterior() -> None:
    """softmax - posterior (Malek et al. 2021), by numpy; and plain cross-entropy where one likelihood is 1."""
    plan = replace(LOGISTIC, labels=TERMS, batch_size=100, learning_rate=1.0)
    client, weights = told(plan, DEVICES[1], 1), some_weights(plan.size)
    features, likelihoods = client.features.astype(np.float64), client.labels.astype(np.float64)
    kernel, bias = weights[:640].reshape(64, 10).astype(np.float64), weights[640:].astype(np.float64)
    predicted = np.exp(features @ kernel + bias)
    predicted /= predicted.sum(axis=1, keepdims=True)
    posterior = predicted * likelihoods / (predicted * likelihoods).sum(axis=1, keepdims=True)
    errors = (predicted - posterior) / len(client)
    expected = -np.concatenate([(features.T @ errors).reshape(-1), errors.sum(axis=0)])
    device = AnsweredExamples(client.features, client.labels)
    assert np.allclose(trainer().train(plan, weights, device).vector, expected, atol=2e-6)


# -- studies ---------------------------------------------------------------------------------------------------------------------


def test_the_claim_about_labels_stands_beside_the_other_and_is_one_of_a_deployed_run(tmp_path: Path) -> None:
    values = study_values()
    values["task"]["labels"] = {"epsilon": 1.5}
    study, dataset = make_study(values, "study.toml", Path())
    assert make_study(tomllib.loads(study.text()), "again.toml", Path())[0].text() == study.text()
    run_toy(tmp_path / "run", study, dataset)
    said = json.loads((tmp_path / "run" / "statement.json").read_text())
    assert "its answers for labels grew from a published seed" in said["labels"]["simulation"]
    claim = said["labels"]["if_deployed"]
    assert (claim["unit"], claim["neighbours"], claim["epsilon"], claim["delta"]) == ("label", "replace", 1.5, 0.0)
    assert said["if_deployed"]["unit"] == "device"
    assert "epsilon, if deployed: 1.5 (pure)" in (tmp_path / "run" / "statement.txt").read_text()
    plain, other = toy_study()
    run_toy(tmp_path / "plain", plain, other)
    assert "labels" not in json.loads((tmp_path / "plain" / "statement.json").read_text())


def test_devices_that_come_by_their_labels_break_the_claim_about_labels() -> None:
    values = study_values(availability={"model": "correlated", "by": "label", "strength": 1.0})
    values["task"]["labels"] = {"epsilon": 1.5}
    labels = parts(*make_study(values, "study.toml", Path())).start(None).statement().labels
    assert labels is not None
    assert labels.assumptions[0].startswith("in this study who comes depends on what a device holds")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"epsilon": -1.0}, "task.labels.epsilon: input should be greater than 0"),
        ({"epsilon": 1.0, "prior": [0.5, 0.5]}, "task.labels.prior: has 2 probabilities, for 10 classes"),
        ({"epsilon": 1.0, "prior": [math.nan] * 10}, "task.labels.prior: each probability must be finite"),
        (
            {"epsilon": 1.0, "prior": [-0.1, 0.3] + [0.1] * 8},
            "task.labels.prior: each probability must be finite",
        ),
        ({"epsilon": 1.0, "prior": [0.2] * 10}, "task.labels.prior: probabilities must add up to 1, not 2"),
        ({"epsilon": 1.0, "prior": "learned"}, 'allowed: "uniform", or a list with the probability of each class'),
        ({"epsilon": 1.0, "correction": "backward"}, "task.labels.correction: unknown, 'backward'; allowed: forward, none"),
        ({"epsilon": 1.0, "seed": 3}, "task.labels.seed: unknown key"),
        ({}, "task.labels.epsilon: missing"),
    ],
)
def test_wrong_terms_are_refused_with_the_key_and_what_is_allowed(section: dict[str, Any], expected: str) -> None:
    values = study_values()
    values["task"]["labels"] = section
    with pytest.raises(StudyError, match=re.escape(expected)):
        make_study(values, "study.toml", Path())


@pytest.mark.slow
def test_the_ready_study_runs_and_tells_both_claims(tmp_path: Path) -> None:
    values = tomllib.loads((Path(__file__).parents[2] / "examples" / "studies" / "labels-digits.toml").read_text())
    del values["sweep"]
    values["task"] |= {"steps": 2, "round": {"goal": 10}}
    (tmp_path / "study.toml").write_text(toml_text(values))
    command = [sys.executable, "-m", "fedrho", "simulate", str(tmp_path / "study.toml"), "--output", str(tmp_path / "run")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=500)
    assert "about labels, of a deployed run; never added to the other" in done.stdout
    said = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert said["labels"]["if_deployed"]["epsilon"] == 2.0
    assert said["if_deployed"]["unit"] == "device"


@pytest.mark.slow
def test_processes_give_the_bits_of_the_serial_engine() -> None:
    from fedrho.simulations.engines.processes import Processes
    from tests.simulations.engines import small

    work = small.workload(vectorised=True, seed=5)
    work = replace(work, plan=replace(work.plan, labels=TERMS))
    with closing(Processes(work, 2, open_data=small.open_made)) as engine:
        results = small.rounds(engine, work, range(2))
    assert results == small.serial(work, range(2))
