"""What labels have paid: epsilon of a label is the sum over every mechanism that read it, and that of a data set the largest.

    epsilon_total = max over labels of the sum of epsilon of every mechanism that read it

That is adaptive parallel composition (Ghazi et al. 2021, section 4, Observation) where parts are disjoint, and sequential
composition where they are not. There is no amplification in it: not by sampling, not by shuffling, not by epochs, since an answer
is bound to its record by public features. An answer that says nothing (k = 1) costs epsilon like every other.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedrho.privacy.labels.statement import ASSUMPTIONS, LabelStatement, shown
from fedrho.privacy.labels.thresholds import checked_epsilon


class LabelLedger:
    """Charges of n labels; `users`, of shape (n,), says whose each is, by any values that can be told apart."""

    def __init__(self, count: int, users: ArrayLike | None = None) -> None:
        self._spent = np.zeros(count)
        self._charges: list[tuple[str, float, int]] = []
        self._users: NDArray[np.intp] | None = None
        if users is not None:
            whose = np.asarray(users)
            if whose.shape != (count,):
                raise ValueError(f"{count} labels, and users of shape {whose.shape}")
            self._users = np.unique(whose, return_inverse=True)[1]

    def __len__(self) -> int:
        return len(self._spent)

    def charge(self, places: NDArray[np.int64], epsilon: float, mechanism: str) -> None:
        """To be called before labels are read. Raises ValueError where a place is no place here, or given twice."""
        checked_epsilon(epsilon)
        where = checked_places(places, len(self))
        self._spent[where] += epsilon
        self._note(mechanism, epsilon, len(where))

    @property
    def spent(self) -> NDArray[np.float64]:
        """Of shape (n,): each label's sum."""
        return self._spent.copy()

    def most(self, places: NDArray[np.int64]) -> float:
        """The largest sum of these labels."""
        return float(self._spent[places].max(initial=0.0))

    @property
    def total(self) -> float:
        """The largest sum of a label."""
        return float(self._spent.max(initial=0.0))

    @property
    def user_total(self) -> float | None:
        """The largest sum of all labels of one person (group privacy); None where persons are not known."""
        if self._users is None:
            return None
        if not len(self):
            return 0.0
        if np.isinf(self._spent).any():
            return float("inf")
        return max(self.total, float(np.bincount(self._users, weights=self._spent).max()))

    def rows(self) -> list[tuple[str, float, int]]:
        """Mechanism, epsilon of each label, and how many labels it read; in the order of the first reads.

        Charges of one mechanism and epsilon are one row, up to as many reads as there are labels.
        """
        return list(self._charges)

    def statement(self, assumptions: Iterable[str] = ()) -> LabelStatement:
        """What may be claimed now; `assumptions` are added to those that every such claim has."""
        told = tuple(f"{name}, epsilon {shown(epsilon)}, read {count} labels" for name, epsilon, count in self.rows())
        return LabelStatement(
            epsilon=self.total,
            mechanisms=told,
            assumptions=(*ASSUMPTIONS, *self._about_persons(), *assumptions),
            user_epsilon=self.user_total,
        )

    def _note(self, mechanism: str, epsilon: float, count: int) -> None:
        for place, (name, price, before) in enumerate(self._charges):
            if (name, price) == (mechanism, epsilon) and before + count <= len(self):
                self._charges[place] = (name, price, before + count)
                return
        self._charges.append((mechanism, epsilon, count))

    def _about_persons(self) -> tuple[str, ...]:
        if self._users is None:
            return ("the claim is about one label: a person with m labels has m times the epsilon at most",)
        return ("the column of persons is public, and tells truly whose each label is",)


def checked_places(places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Whole numbers from 0 to count - 1, none twice; raises ValueError."""
    where = np.asarray(places)
    if where.ndim != 1 or (where.dtype.kind not in "iu" and where.size):
        raise ValueError("places are one row of whole numbers")
    if where.size and (where.min() < 0 or where.max() >= count):
        raise ValueError(f"a place lies between 0 and {count - 1}")
    if len(np.unique(where)) != len(where):
        raise ValueError("a place was given twice: its label would be read twice")
    return where.astype(np.int64)
