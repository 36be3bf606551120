"""Labels that are answered where they are, by the device that holds them, once and for every task with the same terms.

The server then learns functions of (x, noisy y) alone, in however many rounds: one query of each label, and post-processing of
its answer. It needs no trust in a server, and nothing makes it stronger either: the answer is bound to
its record by public features and kept, so neither drawing devices at random nor shuffling what they send amplifies it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from fedrho.privacy.labels.randomizers import Priors, Randomizer, WithPrior
from fedrho.privacy.labels.statement import ASSUMPTIONS, LabelStatement, shown

WITH_PRIOR: Final = "rr-with-prior"
"""The mechanism, as terms name it; with a uniform prior it is randomized response."""
MECHANISMS: Final = {WITH_PRIOR: WithPrior}
FORWARD: Final = "forward"
"""Train on the likelihood of the answer under each label."""
PLAIN: Final = "none"
"""Train on the noisy label as if it were the true one."""
CORRECTIONS: Final = (FORWARD, PLAIN)
MOST_CLASSES: Final = 2000
"""With the forward correction every record has a likelihood for each class."""
ROUNDING: Final = 1e-6
"""By so much a prior that was written down may miss a sum of 1."""

LOCAL: Final = (
    "each label is answered once, by the device that holds it and before anything of it leaves, and the answer is kept: every "
    "round and every task with the same terms has the same one, whatever a server asks; no device's history was copied, restored "
    "or deleted",
    "nobody but the device has to be trusted for it; and nothing amplifies it: no choice of devices, no shuffling, no rounds",
    "a person with m labels has m times the epsilon at most, and a label that other tasks ask for under other terms pays the "
    "sum, which each device's ledger keeps",
    "no other task trains on these labels as they are, and no device shares them in another way",
    "about features nothing is claimed here; the statement about devices is another one, and the two are never added",
    "each label is one of the classes, and the features of a record stay the same to the bit",
)


def check_terms(mechanism: str, epsilon: float, prior: Sequence[float], correction: str) -> None:
    """Raises ValueError, which begins with the name of what is wrong, for terms that make no sense or are not known here."""
    if mechanism not in MECHANISMS:
        raise ValueError(f"mechanism: unknown, {mechanism!r}; known: {', '.join(MECHANISMS)}")
    if correction not in CORRECTIONS:
        raise ValueError(f"correction: unknown, {correction!r}; allowed: {', '.join(CORRECTIONS)}")
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"epsilon: must be finite and above 0, not {epsilon:g}")
    if not prior:
        return
    if not all(math.isfinite(one) and one >= 0 for one in prior):
        raise ValueError("prior: each probability must be finite and not negative")
    if abs(math.fsum(prior) - 1.0) > ROUNDING:
        raise ValueError(f"prior: probabilities must add up to 1, not {math.fsum(prior):g}")


def check_classes(name: str, classes: int, correction: str) -> None:
    """Raises ValueError for a model `name` of more classes than likelihoods are kept for."""
    if correction == FORWARD and classes > MOST_CLASSES:
        allowed = f"allowed with correction {FORWARD!r}: {MOST_CLASSES}; take {PLAIN!r}, or a model of fewer classes"
        raise ValueError(f"correction: model {name!r} has {classes} classes; {allowed}")


def randomizer(mechanism: str, epsilon: float) -> Randomizer:
    return MECHANISMS[mechanism](epsilon)


def rows_of(prior: Sequence[float], count: int, classes: int) -> Priors:
    """The same prior for `count` records; an empty one is uniform. Raises ValueError where it is one of other classes."""
    if prior and len(prior) != classes:
        raise ValueError(f"prior: has {len(prior)} probabilities, for {classes} classes")
    row = np.array(prior, dtype=np.float64) if prior else np.full(classes, 1.0 / classes)
    return np.tile(row, (count, 1))


def local_statement(mechanism: str, epsilon: float, prior: Sequence[float]) -> LabelStatement:
    """What may be claimed of a run whose devices answered under these terms, after any number of steps."""
    about = "a uniform prior" if not prior else "one public prior for all"
    name = randomizer(mechanism, epsilon).name
    told = f"{name}, epsilon {shown(epsilon)}, on the device, once for each label; {about}"
    return LabelStatement(epsilon, mechanisms=(told,), assumptions=(*ASSUMPTIONS, *LOCAL))
