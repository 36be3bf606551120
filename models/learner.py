"""A Keras classifier that learns from likelihoods: what the multi-stage trainer of label privacy asks of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.models.backend import tf
from fedrho.models.classifier import AnyModel, KerasClassifier, Progress
from fedrho.models.fit_settings import FitError, FitSettings
from fedrho.models.fitting import Fitting, Plan
from fedrho.models.likelihoods import scaled_logs
from fedrho.models.pauses import Pauses
from fedrho.models.whole import FloatVector

__all__ = ["FitError", "FitSettings", "KerasLearner"]


class KerasLearner(KerasClassifier):
    """Trains with settings of its own; the same seed gives the same bits on a machine, with the same number of threads.

    Running statistics, as of batch normalisation, are part of the weights; dropout follows the seed. Telling progress changes
    no bit. Raises UnknownModel and FitError.
    """

    def __init__(self, model: AnyModel, settings: FitSettings, progress: Progress | None = None) -> None:
        super().__init__(model)
        self.settings = settings
        self.progress = progress
        self._fitting = Fitting(self.model, settings)

    def fit(self, features: NDArray[Any], likelihoods: NDArray[np.float64], start: FloatVector | None, seed: int) -> FloatVector:
        """The weights after training, from `start` or from fresh ones of this seed, at least 0 and below 2**31.

        The loss of a record is -log of the sum over classes of predicted probability times likelihood.
        """
        if not len(features) == len(likelihoods) > 0:
            raise FitError(f"{len(features)} records with features and {len(likelihoods)} with likelihoods")
        logs = tf.constant(scaled_logs(likelihoods, self.classes))
        inputs = self.inputs(features)
        plan = Plan.drawn(self.settings, len(features), seed)
        self._fitting.begin(self.fresh(seed) if start is None else start, seed)
        pauses = Pauses(len(plan) if self.progress is None else 1)
        first = 0
        while first < len(plan):
            last = min(first + pauses.steps, len(plan))
            loss = self._fitting.run(inputs, logs, *plan.cut(first, last), tf.constant([first, seed], tf.int32))
            if self.progress:
                self.progress(last, len(plan), float(loss))
                pauses.told()
            first = last
        return self.model.weights()
