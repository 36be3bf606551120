"""The only holder of true labels: they are read through a randomizer, counted, and paid for before they are read.

    answer ─── checks ──> charge ──> read ──> Answers         once for each label: this,
    estimates ─ checks ─> charge ──> read ──> noisy numbers   or this
    histogram ─ checks ─> charge ──> read ──> noisy counts

Nothing else comes out: no attribute, no text, no pickle, no error has a label, and none depends on one.
"""

from __future__ import annotations

import os
import threading
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.chance import Chance
from fedrho.privacy.labels.histogram import checked_histogram_epsilon, noisy_histogram
from fedrho.privacy.labels.ledger import LabelLedger, checked_places
from fedrho.privacy.labels.randomizers import Randomizer, checked_labels
from fedrho.privacy.labels.regression import NumberRandomizer
from fedrho.privacy.labels.statement import shown
from fedrho.privacy.labels.thresholds import checked_epsilon
from fedrho.privacy.ledger import BudgetExhausted

ROUNDING = 1e-12
"""Sums of epsilons whose parts were divided out of a budget may be above it by that share; the ledger tells the sum as it is."""


class AlreadyAnswered(RuntimeError):
    """A label was answered before. A second answer costs its epsilon again, and answers can be averaged: keep the first one."""


class LabelBudgetExhausted(BudgetExhausted):
    """A label would pay more than the budget; nothing was read."""


class PrivateLabels:
    """Labels of n records, whole numbers in [0, classes); `users` of shape (n,) says whose each is.

    *Guarantees* that what comes out of `answer`, `estimates` and `histogram` together is `ledger.total`-DP under the replacement
    of one label, and that the total is never above `budget`, but for `ROUNDING`; that `reads` counts each read of each label; all
    that with several threads, too.
    *Assumes* that nobody else holds the labels, or uses them.
    """

    __slots__ = ("__answered", "__budget", "__classes", "__labels", "__ledger", "__paying", "__process", "__reads")

    def __init__(self, labels: ArrayLike, classes: int, budget: float, users: ArrayLike | None = None) -> None:
        """Raises ValueError where a label is none of the classes, without saying which."""
        checked_epsilon(budget)
        if classes < 1:
            raise ValueError(f"there is at least one class, and not {classes}; the list of classes is public knowledge")
        given = np.asarray(labels)
        if given.ndim != 1:
            raise ValueError(f"labels have the shape (n,), not {given.shape}")
        self.__labels = checked_labels(given, (len(given), classes))  # a copy: nobody outside can change it
        self.__reads = np.zeros(len(given), dtype=np.int64)
        self.__answered = np.zeros(len(given), dtype=bool)
        self.__paying, self.__process = threading.Lock(), os.getpid()
        self.__classes, self.__budget = classes, budget
        self.__ledger = LabelLedger(len(given), users)

    def __len__(self) -> int:
        return len(self.__reads)

    def __repr__(self) -> str:
        return f"PrivateLabels({len(self)} labels, {self.classes} classes, epsilon {self.ledger.total:g} of {self.budget:g})"

    def __getstate__(self) -> NoReturn:
        """Refused like every way to a copy: the one that Python gives to every class shows what its slots hold."""
        raise TypeError("private labels are neither pickled nor copied: nobody could count the reads of a copy")

    def __reduce__(self) -> NoReturn:
        self.__getstate__()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self.__getstate__()

    @property
    def classes(self) -> int:
        return self.__classes

    @property
    def budget(self) -> float:
        """Epsilon of a label at most."""
        return self.__budget

    @property
    def ledger(self) -> LabelLedger:
        """To look at, and to charge for what others did with these labels."""
        return self.__ledger

    @property
    def reads(self) -> NDArray[np.int64]:
        """Of shape (n,): how often each label was read, in this process."""
        return self.__reads.copy()

    def answer(self, places: NDArray[np.int64], randomizer: Randomizer, priors: ArrayLike, chance: Chance) -> Answers:
        """Of the labels at `places`, with one row of priors for each, in that order.

        Raises AlreadyAnswered, LabelBudgetExhausted, and ValueError for places or priors that cannot be; nothing was read then.
        """
        where = checked_places(places, len(self))
        if np.shape(priors) != (len(where), self.classes):
            raise ValueError(f"priors of shape {np.shape(priors)} for {len(where)} labels of {self.classes} classes")
        admitted = randomizer.admit(priors)
        with self.__paying:
            self.__pay_once(where, randomizer)
            self.__reads[where] += 1
        return randomizer.answer(self.__labels[where], admitted, chance)

    def estimates(self, places: NDArray[np.int64], randomizer: NumberRandomizer, chance: Chance) -> NDArray[np.float64]:
        """As `answer`, where classes are the values of a randomizer of numbers: of each label the noisy number, (n,)."""
        where = checked_places(places, len(self))
        if not isinstance(randomizer, NumberRandomizer):
            raise TypeError(f"{randomizer.name} tells classes and no numbers; ask `answer`")
        randomizer.admit(np.ones((len(where), self.classes)))
        with self.__paying:
            self.__pay_once(where, randomizer)
            self.__reads[where] += 1
        return randomizer.estimates(self.__labels[where], chance)

    def histogram(
        self, places: NDArray[np.int64], groups: NDArray[np.int64], group_count: int, epsilon: float, chance: Chance
    ) -> NDArray[np.int64]:
        """How many labels of each class each group has, (group_count, K), with discrete Laplace noise of a = epsilon / 2.

        `groups` has one for each place, and is public. A replaced label moves two counts by 1; a record is in one group.
        """
        where = checked_places(places, len(self))
        public = checked_groups(groups, len(where), group_count)
        checked_histogram_epsilon(epsilon)
        with self.__paying:
            self.__pay(where, epsilon, "histogram")
            self.__reads[where] += 1
        cells = public * self.classes + self.__labels[where]
        counts = np.bincount(cells, minlength=group_count * self.classes).reshape(group_count, self.classes)
        return noisy_histogram(counts, epsilon, chance)

    def recall(self, places: NDArray[np.int64], randomizer: Randomizer) -> None:
        """These labels were answered in an earlier process, and the answers kept: they are paid for, and nothing is read."""
        with self.__paying:
            self.__pay_once(checked_places(places, len(self)), randomizer)

    def recall_histogram(self, places: NDArray[np.int64], epsilon: float) -> None:
        """As `recall`, of a histogram."""
        with self.__paying:
            self.__pay(checked_places(places, len(self)), epsilon, "histogram")

    def __pay_once(self, where: NDArray[np.int64], randomizer: Randomizer) -> None:
        again = int(self.__answered[where].sum())
        if again:
            raise AlreadyAnswered(f"{again} of {len(where)} labels were answered before; use the answers that they were given")
        self.__pay(where, randomizer.epsilon, randomizer.name)
        self.__answered[where] = True

    def __pay(self, where: NDArray[np.int64], epsilon: float, mechanism: str) -> None:
        checked_epsilon(epsilon)
        if os.getpid() != self.__process:
            raise TypeError(
                "private labels are answered in the process that read them: nobody could count the reads of a forked one"
            )
        after = self.ledger.most(where) + epsilon
        if len(where) and after > self.budget * (1 + ROUNDING):
            raise LabelBudgetExhausted(f"{mechanism} would bring a label to epsilon {shown(after)}, above {shown(self.budget)}")
        self.ledger.charge(where, epsilon, mechanism)


def checked_groups(groups: NDArray[np.int64], count: int, group_count: int) -> NDArray[np.int64]:
    """One whole number from 0 to group_count - 1 for each place; raises ValueError."""
    given = np.asarray(groups)
    if given.shape != (count,) or given.dtype.kind not in "iu":
        raise ValueError(f"groups are one whole number for each of {count} places")
    if group_count < 1 or (given.size and (given.min() < 0 or given.max() >= group_count)):
        raise ValueError(f"a group lies between 0 and {group_count - 1}")
    return given.astype(np.int64)
