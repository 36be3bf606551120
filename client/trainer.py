"""Assignment -> local steps -> update."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from fedrho.client.examples import Batch, ExampleStore, described
from fedrho.client.participant import BadPlan, TrainingFailed
from fedrho.models.base import ModelSpec
from fedrho.models.flat import FlatModel
from fedrho.models.optimizers import LocalOptimizer, UnknownOptimizer
from fedrho.models.zoo import UnknownModel, lookup
from fedrho.privacy.vectors import InvalidVector, Update
from fedrho.protos.messages import RoundPlan


class LocalTrainer:
    """Trains any device's examples, one after another; keeps one built model a name."""

    def __init__(self) -> None:
        self._models: dict[str, FlatModel] = {}

    def prepare(self, plan: RoundPlan, spec: ModelSpec | None = None) -> None:
        """Builds what the plan trains, `spec` or the model of its name; raises BadPlan. No example is touched."""
        try:
            LocalOptimizer(plan.optimizer, plan.learning_rate, plan.momentum)
            if plan.model not in self._models:
                self._models[plan.model] = FlatModel(spec or lookup(plan.model))
        except (UnknownModel, UnknownOptimizer) as error:
            raise BadPlan(str(error)) from error
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadPlan(f"model {plan.model!r} cannot be built: {reason}") from error
        size = self._models[plan.model].size
        if size != plan.size:
            raise BadPlan(f"model {plan.model!r} has {size} weights here, {plan.size} in the plan; different versions of fedrho?")

    def train(self, plan: RoundPlan, weights: NDArray[np.float32], examples: ExampleStore) -> Update:
        """Local steps from `weights`, float32 of shape (plan.size,); the update is what they changed.

        Raises BadPlan before it touches an example, and TrainingFailed, whatever the reason, afterwards.
        """
        self.prepare(plan)
        model = self._models[plan.model]
        try:
            model.assign(weights)
            step = model.local_steps(LocalOptimizer(plan.optimizer, plan.learning_rate, plan.momentum))
            for batch in batches(plan, examples):
                step(batch.features, batch.labels)
            return Update(model.weights() - weights)
        except InvalidVector as error:
            raise TrainingFailed("training diverged") from error
        except MemoryError as error:
            raise TrainingFailed("training ran out of memory") from error
        except Exception as error:
            raise TrainingFailed(f"training raised {described(error)}") from error


def batches(plan: RoundPlan, examples: ExampleStore) -> Iterator[Batch]:
    """What a plan trains on: all batches of its epochs; or exactly `local_steps` of them, where epochs follow one another."""
    if not plan.local_steps:
        return iter(examples.batches(plan))
    return islice(_epoch_after_epoch(replace(plan, epochs=plan.local_steps), examples), plan.local_steps)


def _epoch_after_epoch(plan: RoundPlan, examples: ExampleStore) -> Iterator[Batch]:
    """Without end, even of a store that gives fewer epochs than it is asked for; nothing of one that is empty."""
    found = True
    while found:
        found = False
        for batch in examples.batches(plan):
            found = True
            yield batch
