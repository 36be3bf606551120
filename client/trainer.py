"""Assignment -> local steps -> update."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrho.client.examples import ExampleStore
from fedrho.client.participant import BadPlan
from fedrho.models.flat import FlatModel
from fedrho.models.zoo import lookup
from fedrho.privacy.vectors import Update
from fedrho.protos.messages import RoundPlan


class LocalTrainer:
    """Trains any device's examples, one after another; keeps one built model a name."""

    def __init__(self) -> None:
        self._models: dict[str, FlatModel] = {}

    def train(self, plan: RoundPlan, weights: NDArray[np.float32], examples: ExampleStore) -> Update:
        """Local SGD from `weights`, float32 of shape (plan.size,); the update is what it changed.

        Raises UnknownModel, BadPlan when the model has another size, InvalidVector when training diverged.
        """
        model = self._model(plan.model)
        if model.size != plan.size:
            raise BadPlan(
                f"model {plan.model!r} has {model.size} weights here, {plan.size} in the plan; different versions of fedrho?"
            )
        model.assign(weights)
        for batch in examples.batches(plan):
            model.sgd_step(batch.features, batch.labels, plan.learning_rate)
        return Update(model.weights() - weights)

    def _model(self, name: str) -> FlatModel:
        if name not in self._models:
            self._models[name] = FlatModel(lookup(name))
        return self._models[name]
