"""What may be claimed: the rho of everything that was released, with the unit, the neighbours and every assumption."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from fedrho.privacy.zcdp import Rho, epsilon

if TYPE_CHECKING:
    from dp_accounting import DpEvent


class Unit(Enum):
    """Whose contribution is protected; statements of different units are never added."""

    DEVICE = "device"
    EXAMPLE = "example"
    LABEL = "label"


class Neighbours(Enum):
    """Which two data sets are told apart with difficulty."""

    ZERO_OUT = "zero-out"
    ADD_OR_REMOVE = "add-or-remove"
    REPLACE = "replace"

    @property
    def meaning(self) -> str:
        return {
            Neighbours.ZERO_OUT: "all contributions of one unit replaced by zero; steps and divisor stay the same",
            Neighbours.ADD_OR_REMOVE: "one unit added or removed",
            Neighbours.REPLACE: "one unit's data replaced by any other",
        }[self]


SENSITIVITY = {True: "the exact sensitivity", False: "a proven bound on the sensitivity"}


@dataclass(frozen=True)
class PrivacyStatement:
    """Guarantees: everything released so far satisfies `rho`-zCDP for one `unit`, if every assumption holds.

    `exact` says whether rho is the price of the worst case itself, or of a proven bound above it.
    """

    unit: Unit
    neighbours: Neighbours
    rho: Rho
    assumptions: tuple[str, ...]
    exact: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rho) and self.rho >= 0):
            raise ValueError(f"rho must be finite and not negative, not {self.rho}")

    def epsilon(self, delta: float) -> float:
        """An epsilon such that (epsilon, delta)-DP follows from rho (Canonne, Kamath & Steinke 2020)."""
        return epsilon(self.rho, delta)

    def event(self) -> DpEvent:
        """The same as a `ZCDpEvent` of dp_accounting (0.5 or newer), for whoever composes it with what others released."""
        from dp_accounting import ZCDpEvent  # two seconds to import, and seldom needed

        return ZCDpEvent(self.rho)

    def rows(self, delta: float) -> list[tuple[str, str]]:
        """The claim in words, as names and values; rho and epsilon are rounded upward, never down."""
        return [
            ("unit", f"one {self.unit.value}"),
            ("neighbours", f"{self.neighbours.value}: {self.neighbours.meaning}"),
            ("rho", f"{round_up(self.rho)} (zCDP), from {SENSITIVITY[self.exact]}"),
            ("epsilon", f"{round_up(self.epsilon(delta))} at delta = {delta!r}"),
        ]


def combined(runs: Mapping[str, PrivacyStatement]) -> PrivacyStatement:
    """`compose` for runs with names: an assumption that is not every run's says whose it is."""
    if len(runs) == 1:
        return compose(runs.values())
    shared = set.intersection(*(set(part.assumptions) for part in runs.values())) if runs else set()
    named = [
        replace(part, assumptions=tuple(text if text in shared else f"{name}: {text}" for text in part.assumptions))
        for name, part in runs.items()
    ]
    return compose(named)


def compose(statements: Iterable[PrivacyStatement]) -> PrivacyStatement:
    """The statement about several releases to the same population: rho adds up, assumptions accumulate.

    Raises ValueError when units or neighbours differ, or when there is nothing to compose.
    """
    parts = list(statements)
    if len({(part.unit, part.neighbours) for part in parts}) != 1:
        raise ValueError("only statements of one unit and one neighbour relation can be added")
    assumptions = tuple(dict.fromkeys(text for part in parts for text in part.assumptions))
    rho = Rho(math.fsum(part.rho for part in parts))
    return PrivacyStatement(parts[0].unit, parts[0].neighbours, rho, assumptions, all(part.exact for part in parts))


SMALLEST = 1e-290
"""Below this a power of ten that makes digits whole would leave float64."""


def round_up(value: float, digits: int = 4) -> str:
    """`value` with `digits` significant digits, never below it."""
    if value == 0:
        return "0"
    if abs(value) < SMALLEST:
        return repr(value)
    if float(nearest := f"{value:.{digits}g}") >= value:
        return nearest
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(abs(value))))
    rounded = math.ceil(value * scale) / scale
    while rounded < value:
        rounded = math.nextafter(rounded, math.inf)
    return f"{rounded:.{digits}g}" if float(f"{rounded:.{digits}g}") >= value else repr(rounded)


def round_down(value: float, digits: int = 4) -> str:
    """`value`, not negative, with `digits` significant digits, never above it."""
    if value == 0:
        return "0"
    if value < SMALLEST:
        return repr(value)
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(value)))
    shown = f"{math.floor(value * scale) / scale:.{digits}g}"
    return shown if float(shown) <= value else repr(value)
