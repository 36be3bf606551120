"""The optimizers of local training, by name: Keras's own and LocoProp, each started anew for every step of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

PLAIN = "sgd"
LOCOPROP_S, LOCOPROP_M = "locoprop-s", "locoprop-m"
LOCOPROP = (LOCOPROP_S, LOCOPROP_M)
"""Those of `models/locoprop.py`: of models of Dense layers alone."""
WITH_MOMENTUM = {PLAIN: True, "adagrad": False, "adam": False, "rmsprop": True, LOCOPROP_S: False, LOCOPROP_M: False}
"""Every optimizer there is, and whether it takes a momentum."""


class UnknownOptimizer(ValueError):
    """No local optimizer of that name, or settings that it does not take."""


@dataclass(frozen=True)
class LocalOptimizer:
    """Which optimizer, and how fast; an empty name is `sgd`. Raises UnknownOptimizer for what cannot be run."""

    name: str
    learning_rate: float
    momentum: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or PLAIN)
        if self.name not in WITH_MOMENTUM:
            raise UnknownOptimizer(f"unknown optimizer {self.name[:80]!r}; allowed: {', '.join(sorted(WITH_MOMENTUM))}")
        if not 0 < self.learning_rate < math.inf:
            raise UnknownOptimizer(f"a learning rate must be finite and above 0, not {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise UnknownOptimizer(f"a momentum must lie in [0, 1), not {self.momentum}")
        if self.momentum and not WITH_MOMENTUM[self.name]:
            allowed = ", ".join(sorted(name for name, takes in WITH_MOMENTUM.items() if takes))
            raise UnknownOptimizer(f"{self.name} takes no momentum; allowed with one: {allowed}")
