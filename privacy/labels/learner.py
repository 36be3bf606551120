"""What the multi-stage trainer asks of a model; it knows no framework. `fedrho.models.learner` has one for Keras."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.vectors import FloatVector


class Learner(Protocol):
    """A classifier of K classes with settings of its own: optimizer, schedule, batches, mixup."""

    @property
    def classes(self) -> int: ...

    def fit(self, features: NDArray[Any], likelihoods: NDArray[np.float64], start: FloatVector | None, seed: int) -> FloatVector:
        """The weights after training, from `start` or from fresh ones that `seed` decides, as it decides every order.

        The loss of a record is -log of the sum over classes of predicted probability times likelihood: the cross-entropy where
        one likelihood is 1 and the others 0, the forward-corrected loss (Patrini et al. 2017) where they are a channel's, and
        in its gradient the posterior's cross-entropy of ALIBI (Malek et al. 2021).
        """
        ...

    def probabilities(self, weights: FloatVector, features: NDArray[Any]) -> NDArray[np.float64]:
        """What the model predicts, of shape (n, K); each row adds up to 1."""
        ...
