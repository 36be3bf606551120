"""Assignment -> local steps -> update."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrho.client.examples import ExampleStore, batches, described
from fedrho.client.losses import check_loss
from fedrho.client.participant import BadPlan, TrainingFailed
from fedrho.models.base import ModelSpec
from fedrho.models.flat import FlatModel
from fedrho.models.locoprop import check_trains
from fedrho.models.optimizers import LocalOptimizer, UnknownOptimizer
from fedrho.models.zoo import UnknownModel, lookup
from fedrho.privacy.labels.local import FORWARD
from fedrho.privacy.vectors import InvalidVector, Update
from fedrho.protos.messages import RoundPlan


class LocalTrainer:
    """Trains any device's examples, one after another; keeps one built model a name."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, bool], FlatModel] = {}

    def prepare(self, plan: RoundPlan, spec: ModelSpec | None = None) -> None:
        """Builds what the plan trains, `spec` or the model of its name; raises BadPlan. No example is touched."""
        try:
            LocalOptimizer(plan.optimizer, plan.learning_rate, plan.momentum)
            if _kind(plan) not in self._models:
                self._models[_kind(plan)] = FlatModel(spec or lookup(plan.model), on_likelihoods=_kind(plan)[1])
            check_trains(self._models[_kind(plan)], plan.optimizer)
        except (UnknownModel, UnknownOptimizer) as error:
            raise BadPlan(str(error)) from error
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadPlan(f"model {plan.model!r} cannot be built: {reason}") from error
        size = self._models[_kind(plan)].size
        if size != plan.size:
            raise BadPlan(f"model {plan.model!r} has {size} weights here, {plan.size} in the plan; different versions of fedrho?")

    def train(self, plan: RoundPlan, weights: NDArray[np.float32], examples: ExampleStore) -> Update:
        """Local steps from `weights`, float32 of shape (plan.size,); the update is what they changed.

        Raises BadPlan before it touches an example, and TrainingFailed, whatever the reason, afterwards.
        """
        self.prepare(plan)
        model = self._models[_kind(plan)]
        try:
            model.assign(weights)
            step = model.local_steps(LocalOptimizer(plan.optimizer, plan.learning_rate, plan.momentum))
            for number, batch in enumerate(batches(plan, examples), 1):
                check_loss(number, step(batch.features, batch.labels if batch.likelihoods is None else batch.likelihoods))
            return Update(model.weights() - weights)
        except TrainingFailed:
            raise
        except InvalidVector as error:
            raise TrainingFailed("training diverged: weights are not finite at its end") from error
        except MemoryError as error:
            raise TrainingFailed("training ran out of memory") from error
        except Exception as error:
            raise TrainingFailed(f"training raised {described(error)}") from error


def _kind(plan: RoundPlan) -> tuple[str, bool]:
    """What a built model is kept by: its name, and whether it is trained on likelihoods of answers."""
    return plan.model, plan.labels is not None and plan.labels.correction == FORWARD
