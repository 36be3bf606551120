"""What the devices of a fleet compute: real training, a small model by plain numpy, or for load alone a vector of noise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from fedrho.client.examples import ExampleStore, Labels
from fedrho.client.labels import Answer, answered_by
from fedrho.client.losses import check_loss
from fedrho.client.participant import BadPlan, Train
from fedrho.models.digits import CLASSES, INPUT_SHAPE, LOGISTIC
from fedrho.models.optimizers import PLAIN
from fedrho.privacy.vectors import FloatVector, Update
from fedrho.protos.messages import RoundPlan

Compute = Callable[[RoundPlan, FloatVector, ExampleStore], Update]


@contextmanager
def fleet_training(
    examples: Callable[[int, str], ExampleStore], random: bool = False, answer: Callable[[int], Answer] | None = None
) -> Iterator[Callable[[int], Train]]:
    """Makes the training of each device, given its number's examples for a model, and how it answers for their labels; all take
    turns on one thread.
    """
    compute = noise if random else trained()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="train") as pool:

        def on(number: int) -> Train:
            def work(plan: RoundPlan, weights: FloatVector) -> Update:
                held = examples(number, plan.model)
                if plan.labels is not None:
                    held = answered_by(answer and answer(number))(plan, held)
                return compute(plan, weights, held)

            async def train(plan: RoundPlan, weights: FloatVector) -> Update:
                return await asyncio.get_running_loop().run_in_executor(pool, work, plan, weights)

            return train

        yield on


def trained() -> Compute:
    """Local SGD: of the logistic model of the digits by numpy, of any other by Keras."""
    others: list[Compute] = []

    def compute(plan: RoundPlan, weights: FloatVector, examples: ExampleStore) -> Update:
        if plan.model == LOGISTIC.name and plan.optimizer in ("", PLAIN) and not (plan.momentum or plan.local_steps):
            return logistic(plan, weights, examples)
        if not others:
            from fedrho.client.trainer import LocalTrainer  # TensorFlow

            others.append(LocalTrainer().train)
        return others[0](plan, weights, examples)

    return compute


def logistic(plan: RoundPlan, weights: FloatVector, examples: ExampleStore) -> Update:
    """The same local SGD as `LocalTrainer`'s on `digits-logistic`, but for rounding; raises BadPlan for another size."""
    inputs = INPUT_SHAPE[0]
    if plan.size != (inputs + 1) * CLASSES:
        raise BadPlan(f"model {plan.model!r} has {(inputs + 1) * CLASSES} weights here, {plan.size} in the plan")
    kernel, bias = weights[: inputs * CLASSES].reshape(inputs, CLASSES).copy(), weights[inputs * CLASSES :].copy()
    for number, batch in enumerate(examples.batches(plan), 1):
        logits = batch.features @ kernel + bias
        errors = _softmax(logits)
        if batch.likelihoods is None:
            check_loss(number, _loss(logits, batch.labels))
            errors[np.arange(len(batch.labels)), batch.labels] -= 1.0
        else:
            errors -= _posterior(errors, batch.likelihoods)
        rate = np.float32(plan.learning_rate / len(batch.labels))
        kernel -= rate * (batch.features.T @ errors)
        bias -= rate * errors.sum(axis=0)
    return Update(np.concatenate([kernel.reshape(-1), bias]) - weights)


def _loss(logits: NDArray[np.float32], labels: Labels) -> float:
    """The mean cross-entropy in float32, as Keras has it: it may be infinite though logits and gradients are not."""
    with np.errstate(over="ignore", invalid="ignore"):
        below = logits - logits.max(axis=1, keepdims=True)
        return float((np.log(np.exp(below).sum(axis=1)) - below[np.arange(len(labels)), labels]).mean())


def noise(plan: RoundPlan, weights: FloatVector, examples: ExampleStore) -> Update:
    """No training at all: a load that teaches the model nothing."""
    return Update(np.random.default_rng().standard_normal(plan.size, dtype=np.float32))


def _posterior(predicted: NDArray[np.float32], likelihoods: NDArray[np.float32]) -> NDArray[np.float32]:
    joint = predicted * likelihoods
    scaled: NDArray[np.float32] = joint / joint.sum(axis=1, keepdims=True)
    return scaled


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scaled: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return scaled
