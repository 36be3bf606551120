"""Local training against a plain numpy loop over the same batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from fedrho.client.examples import ArrayExamples, Batch, ExampleStore, batches
from fedrho.client.fleet_training import logistic
from fedrho.client.participant import BadPlan, TrainingFailed
from fedrho.client.trainer import LocalTrainer
from fedrho.privacy.vectors import FloatVector
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
    with pytest.raises(BadPlan, match="has 650 weights"):
        TRAINER.train(replace(LOCAL, size=size), start(size), EXAMPLES)


def test_unknown_model_is_refused() -> None:
    with pytest.raises(BadPlan, match="unknown model 'gpt'"):
        TRAINER.train(replace(LOCAL, model="gpt"), start(650), EXAMPLES)


def test_training_that_diverges_gives_no_update() -> None:
    with pytest.raises(TrainingFailed, match="diverged"):
        TRAINER.train(replace(LOCAL, learning_rate=1e38, epochs=5), start(650), EXAMPLES)


class Watched:
    """Examples that note how many batches were taken of them."""

    def __init__(self, examples: list[Batch]) -> None:
        self.examples, self.taken = examples, 0

    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        for batch in self.examples:
            self.taken += 1
            yield batch


@pytest.mark.parametrize(("value", "found"), [(1e38, "infinite"), (np.inf, "not a number"), (np.nan, "not a number")])
def test_training_ends_at_the_first_loss_that_is_not_finite(value: float, found: str) -> None:
    """With 1e38 all logits, gradients and weights stay finite: nothing but the loss shows it."""
    features, labels = reference.made_up(12, seed=1)
    batches = [Batch(features[at : at + 4].copy(), labels[at : at + 4]) for at in (0, 4, 8)]
    batches[1].features[:, 0], batches[1].labels[:] = value, 0
    weights = start(650)
    weights[:2] = (-1.5, 1.5)
    watched = Watched(batches)
    with pytest.raises(TrainingFailed, match=f"^the loss of batch 2 is {found}: training diverged"):
        TRAINER.train(replace(LOCAL, learning_rate=1e-30), weights, watched)
    assert watched.taken == 2


def test_a_device_of_a_fleet_ends_there_too() -> None:
    """It trains the logistic model by numpy; one that went on would send an update where a real one sends zeros."""
    features, labels = reference.made_up(4, seed=1)
    features[:, 0], labels[:] = 1e38, 0
    weights = start(650)
    weights[:2] = (-1.5, 1.5)
    with pytest.raises(TrainingFailed, match=r"^the loss of batch 1 is infinite: training diverged"):
        logistic(replace(LOCAL, learning_rate=1e-30), weights, Watched([Batch(features, labels)]))


# -- a fixed number of local steps -------------------------------------------------------------------------------------------


def sizes(wanted: RoundPlan, examples: ExampleStore) -> list[int]:
    return [len(batch.labels) for batch in batches(wanted, examples)]


@pytest.mark.parametrize("steps", [1, 4, 5, 6, 23])
def test_every_device_trains_on_as_many_batches_as_the_plan_says(steps: int) -> None:
    """18 examples in batches of 4 are 5 batches an epoch: a small device begins again, a large one stops early."""
    assert sizes(plan(local_steps=steps, epochs=1), EXAMPLES) == ([4, 4, 4, 4, 2] * 5)[:steps]
    assert sizes(plan(local_steps=steps, epochs=1), ArrayExamples(*reference.made_up(1000, seed=1))) == [4] * steps
    assert sizes(plan(local_steps=steps, epochs=0), ArrayExamples(*reference.made_up(1, seed=1))) == [1] * steps


def test_epochs_of_fixed_steps_are_shuffled_anew() -> None:
    features = [batch.features for batch in batches(plan(local_steps=10), EXAMPLES)]
    first, second = np.concatenate(features[:5]), np.concatenate(features[5:])
    assert first.shape == second.shape == (18, 64)
    assert (first != second).any()
    assert sorted(first.tolist()) == sorted(second.tolist())


class OneEpoch:
    """A store that does not care how many epochs it is asked for."""

    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        return EXAMPLES.batches(replace(plan, epochs=1))


class Nothing:
    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        return iter(())


def test_store_that_gives_one_epoch_at_a_time_is_asked_again() -> None:
    assert sizes(plan(local_steps=12), OneEpoch()) == ([4, 4, 4, 4, 2] * 3)[:12]


def test_store_without_examples_changes_nothing() -> None:
    assert not TRAINER.train(plan(local_steps=12), start(650), Nothing()).vector.any()
    assert not TRAINER.train(plan(), start(650), Nothing()).vector.any()


class Raises:
    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        raise BadPlan("a diagnosis")


class WrongShape:
    def batches(self, plan: RoundPlan) -> Iterator[Batch]:
        yield Batch(np.zeros((3, 5), np.float32), np.zeros(3, np.int32))


@pytest.mark.parametrize("store", [Raises(), WrongShape()])
def test_whatever_examples_do_is_a_failure_of_training_and_tells_nothing_of_them(store: ExampleStore) -> None:
    with pytest.raises(TrainingFailed, match=r"^training raised \w+ \(\w+\.py:\d+\)$"):
        TRAINER.train(LOCAL, start(650), store)


def test_local_training_that_the_model_cannot_have_is_refused_before_any_example() -> None:
    class Untouched(ArrayExamples):
        def __len__(self) -> int:
            raise AssertionError("an example was touched")

    wanted = replace(LOCAL, model="words", size=215_104, optimizer="locoprop-s")
    with pytest.raises(BadPlan, match="locoprop-s cannot train model 'words': it trains Sequential models of Dense layers alone"):
        TRAINER.train(wanted, start(215_104), Untouched(*reference.made_up(2, seed=1)))
    assert np.any(TRAINER.train(replace(LOCAL, optimizer="locoprop-s"), start(650), EXAMPLES).vector)
