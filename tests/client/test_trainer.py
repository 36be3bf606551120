"""Local training against a plain numpy loop over the same batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrho.client.examples import ArrayExamples
from fedrho.client.trainer import LocalTrainer
from fedrho.models.base import UnknownModel
from fedrho.privacy.vectors import FloatVector, InvalidVector
from fedrho.protos.messages import RoundPlan
from tests.client.fleet import plan
from tests.models import reference

LOCAL = plan(epochs=2, step=3)
EXAMPLES = ArrayExamples(*reference.made_up(18, seed=1))
TRAINER = LocalTrainer()


def start(size: int) -> FloatVector:
    return np.random.default_rng(2).normal(0.0, 0.2, size).astype(np.float32)


def trained(wanted: RoundPlan, weights: FloatVector, examples: ArrayExamples) -> reference.Floats:
    """What plain SGD changes, in float64."""
    moving = weights.astype(np.float64)
    for batch in examples.batches(wanted):
        moving -= wanted.learning_rate * reference.gradient(wanted.model, moving, batch.features, batch.labels)
    return moving - weights


@pytest.mark.parametrize(("model", "size"), [("digits-logistic", 650), ("digits-mlp", 2410)])
def test_update_is_what_sgd_changed(model: str, size: int) -> None:
    local = replace(LOCAL, model=model, size=size)
    update = TRAINER.train(local, start(size), EXAMPLES)
    assert update.vector.dtype == np.float32
    assert np.abs(update.vector - trained(local, start(size), EXAMPLES)).max() < 1e-5


def test_update_does_not_depend_on_who_trained_before() -> None:
    first = TRAINER.train(LOCAL, start(650), EXAMPLES)
    TRAINER.train(LOCAL, start(650) + 1.0, ArrayExamples(*reference.made_up(7, seed=9)))
    again = TRAINER.train(LOCAL, start(650), EXAMPLES)
    assert first.vector.tobytes() == again.vector.tobytes() == LocalTrainer().train(LOCAL, start(650), EXAMPLES).vector.tobytes()


def test_training_leaves_the_weights_it_was_given() -> None:
    weights = start(650)
    TRAINER.train(LOCAL, weights, EXAMPLES)
    assert (weights == start(650)).all()


@pytest.mark.parametrize("size", [649, 651, 2410])
def test_weights_of_another_size_than_the_model_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="has 650 weights"):
        TRAINER.train(replace(LOCAL, size=size), start(size), EXAMPLES)


def test_unknown_model_is_refused() -> None:
    with pytest.raises(UnknownModel):
        TRAINER.train(replace(LOCAL, model="gpt"), start(650), EXAMPLES)


def test_training_that_diverges_gives_no_update() -> None:
    with pytest.raises(InvalidVector):
        TRAINER.train(replace(LOCAL, learning_rate=1e38, epochs=5), start(650), EXAMPLES)
