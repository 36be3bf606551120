"""What may be claimed about labels: an epsilon for one label, with the neighbours and every assumption in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from fedrho.privacy.statement import Neighbours, Unit, round_up

ASSUMPTIONS: Final = (
    "features, the number and the order of the records, and the list of classes are public, and none of them depends on labels",
    "which records are asked, when and for what was decided without these labels: by ids, public features or earlier answers",
    "priors are functions of public data and of earlier answers",
    "answers were drawn with the operating system's generator, and no state of it was kept",
    "no true label was read in any other way: for metrics, for choosing settings or models, for class weights, or to look at",
)
MEANING: Final = "the label of one record replaced by any other class; everything else stays the same"


@dataclass(frozen=True)
class LabelStatement:
    """Guarantees: everything released is (epsilon, delta)-DP for one label under replacement, if every assumption holds.

    It says nothing about features, and it is never added to a statement about devices or examples: another unit, another
    relation, another accountant. `user_epsilon` is about all labels of one person; None where persons are not known.
    """

    epsilon: float
    delta: float = 0.0
    mechanisms: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ASSUMPTIONS
    user_epsilon: float | None = None

    def __post_init__(self) -> None:
        if not self.epsilon >= 0 or not (self.user_epsilon is None or self.user_epsilon >= self.epsilon):
            raise ValueError(f"epsilon is not negative, and that of a person no less: {self.epsilon}, {self.user_epsilon}")
        if not 0 <= self.delta < 1:
            raise ValueError(f"delta lies in [0, 1), not at {self.delta}")

    @property
    def unit(self) -> Unit:
        return Unit.LABEL

    @property
    def neighbours(self) -> Neighbours:
        return Neighbours.REPLACE

    @property
    def rho(self) -> NoReturn:
        """For whoever takes this for a `PrivacyStatement`."""
        raise ValueError("a statement about labels is in epsilon, and never added to others; a LabelLedger adds up charges")

    def rows(self) -> list[tuple[str, str]]:
        """The claim in words, as names and values; epsilon is rounded upward, never down."""
        kind = "pure" if self.delta == 0 else f"at delta = {self.delta!r}"
        rows = [
            ("unit", f"one {self.unit.value}"),
            ("neighbours", f"{self.neighbours.value}: {MEANING}"),
            ("epsilon", f"{shown(self.epsilon)} ({kind})"),
        ]
        if self.user_epsilon is not None:
            rows.append(("epsilon of a person", f"{shown(self.user_epsilon)}, for all labels of one person together"))
        return [*rows, *(("mechanism", text) for text in self.mechanisms)]

    def to_json(self) -> Mapping[str, Any]:
        """For scripts. JSON has no infinity: an epsilon without a bound is null."""
        return {
            "unit": self.unit.value,
            "neighbours": self.neighbours.value,
            "epsilon": _number(self.epsilon),
            "delta": self.delta,
            "user_epsilon": None if self.user_epsilon is None else _number(self.user_epsilon),
            "mechanisms": list(self.mechanisms),
            "assumptions": list(self.assumptions),
        }


def shown(epsilon: float) -> str:
    """With four digits, never below it."""
    return "infinite: no privacy" if math.isinf(epsilon) else round_up(epsilon)


def _number(epsilon: float) -> float | None:
    return None if math.isinf(epsilon) else epsilon
