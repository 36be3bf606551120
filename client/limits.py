"""What the owner of a device allows, whatever a population announces: "never weaker than these privacy terms".

A task whose terms are weaker is not joined. What adds up over tasks, rho and groups, is kept by the device's history, and what
labels have cost by its memo of answers.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedrho.protos.messages import PrivacyTerms, TaskSpec

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Key = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]


class LimitsError(ValueError):
    """The owner's limits cannot be read; the device then takes part in nothing."""


@dataclass(frozen=True)
class Group:
    """Tasks, by patterns of their names, that share a limit of the owner's."""

    name: str
    tasks: tuple[str, ...]
    max_participations: int | None = None
    min_period_seconds: float = 0.0

    def holds(self, task: str) -> bool:
        return any(fnmatchcase(task, pattern) for pattern in self.tasks)


@dataclass(frozen=True)
class Limits:
    """None limits nothing, an empty list allows nothing; a rho is zCDP of one device, as the terms of a task announce it."""

    max_rho_per_run: float | None = None
    max_rho: float | None = None
    max_participations: int | None = None
    min_separation: int = 1
    min_period_seconds: float = 0.0
    populations: tuple[bytes, ...] | None = None
    models: tuple[str, ...] | None = None
    groups: tuple[Group, ...] = ()
    max_label_epsilon_per_run: float | None = None
    max_label_epsilon: float | None = None

    def objection(self, population: bytes, task: TaskSpec) -> str | None:
        """Why the owner does not want this task, from what it announces alone."""
        terms = task.terms
        if self.populations is not None and population not in self.populations:
            return f"the owner has not allowed the population {population.hex()}"
        if self.models is not None and task.model not in self.models:
            return f"the owner has not allowed the model {task.model!r}"
        if self.max_rho_per_run is not None and not terms.rho_budget <= self.max_rho_per_run:
            return f"rho {terms.rho_budget:g} is above the owner's max_rho_per_run {self.max_rho_per_run:g}"
        if self.max_participations is not None and terms.max_participations > self.max_participations:
            return f"{terms.max_participations} participations are above the owner's max_participations {self.max_participations}"
        if terms.min_separation < self.min_separation:
            return f"a separation of {terms.min_separation} is below the owner's min_separation {self.min_separation}"
        if not terms.min_period_seconds >= self.min_period_seconds:
            return f"a period of {terms.min_period_seconds:g} s is below the owner's {self.min_period_seconds:g} s"
        return self._objection_to_labels(terms)

    def _objection_to_labels(self, terms: PrivacyTerms) -> str | None:
        """A task that trains on labels as they are costs them any epsilon."""
        for name in ("max_label_epsilon_per_run", "max_label_epsilon"):
            most = getattr(self, name)
            if most is None:
                continue
            if terms.labels is None:
                return f"it trains on labels as they are, and the owner's {name} {most:g} asks for label privacy"
            if not terms.labels.epsilon <= most:
                return f"a label epsilon of {terms.labels.epsilon:g} is above the owner's {name} {most:g}"
        return None

    def too_much_of_labels(self, asked_elsewhere: float, epsilon: float) -> str | None:
        """Why labels whose answers to other terms have cost up to that much may not be asked under these.

        Without a limit of the owner's a label is asked under one set of terms alone.
        """
        if asked_elsewhere == 0:
            return None
        total = asked_elsewhere + epsilon
        if self.max_label_epsilon is None:
            return (
                f"labels were answered under other terms already, and with these may cost epsilon {total:g}; "
                "the owner has set no max_label_epsilon that allows it"
            )
        if total <= self.max_label_epsilon:
            return None
        return f"with it a label may cost epsilon {total:g}, above the owner's max_label_epsilon {self.max_label_epsilon:g}"

    def too_much(self, spent: Mapping[bytes, float], run: bytes, rho: float) -> str | None:
        """Why the runs that this device contributed to, with what each may cost, leave no room for this one."""
        total = sum(price for other, price in spent.items() if other != run) + rho
        if self.max_rho is None or total <= self.max_rho:
            return None
        return f"with it all runs of this device may cost rho {total:g}, above the owner's max_rho {self.max_rho:g}"


NO_LIMITS = Limits()


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class GroupTable(_Table):
    """One group in the file."""

    tasks: Annotated[list[str], Field(min_length=1)]
    max_participations: Count | None = None
    min_period_seconds: Amount = 0.0


class LimitsFile(_Table):
    """The file, key by key; `docs/device.md` says what each means."""

    max_rho_per_run: Amount | None = None
    max_rho: Amount | None = None
    max_participations: Count | None = None
    min_separation: Count = 1
    min_period_seconds: Amount = 0.0
    populations: list[Key] | None = None
    models: list[str] | None = None
    groups: dict[str, GroupTable] = {}
    max_label_epsilon_per_run: Amount | None = None
    max_label_epsilon: Amount | None = None


def parse_limits(text: str, source: str) -> Limits:
    """The owner's limits from TOML; raises LimitsError, one line that names `source` and the key."""
    try:
        file = LimitsFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise LimitsError(f"{source}: not TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise LimitsError(f"{source}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return Limits(
        file.max_rho_per_run,
        file.max_rho,
        file.max_participations,
        file.min_separation,
        file.min_period_seconds,
        None if file.populations is None else tuple(bytes.fromhex(key) for key in file.populations),
        None if file.models is None else tuple(file.models),
        _groups(file.groups),
        file.max_label_epsilon_per_run,
        file.max_label_epsilon,
    )


def _groups(tables: Mapping[str, GroupTable]) -> tuple[Group, ...]:
    return tuple(
        Group(name, tuple(table.tasks), table.max_participations, table.min_period_seconds) for name, table in tables.items()
    )
