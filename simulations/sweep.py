"""Sweeps: many studies from one, by every combination of some values or by draws at random, each with several seeds.

Choosing among them by the data of real devices would tell something about those devices: it is a release of its own, that no
statement of a single point counts. Every point knows how many it is chosen from, and its statement says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedrho.simulations.seeded import generator
from fedrho.simulations.study import StudyError, SweepSection, set_value

MOST_POINTS = 10_000
DRAWS = 10
WARNING = (
    "choosing one of these points by results on data of devices is itself a release, which no statement here counts: "
    "choose on public or made-up data"
)


@dataclass(frozen=True)
class Point:
    """One study of a sweep: its number, what it changes, its seed, and all its values."""

    number: int
    settings: Mapping[str, Any]
    seed: int
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.number:04d}"


def points(values: Mapping[str, Any], sweep: SweepSection) -> list[Point]:
    """Raises StudyError where the sweep makes no sense."""
    if bool(sweep.grid) == bool(sweep.random):
        raise StudyError("sweep: needs either [sweep.grid] or [sweep.random]; a grid of one value is allowed")
    if sweep.grid and sweep.count is not None:
        raise StudyError("sweep.count: belongs to [sweep.random]; leave it out")
    settings = list(_grid(sweep)) if sweep.grid else list(_random(sweep))
    for kind in ("grid", "random"):
        if "seed" in getattr(sweep, kind):
            raise StudyError(f"sweep.{kind}.seed: seeds are listed in sweep.seeds; leave it out")
    seeds = sweep.seeds or [int(values.get("seed", 0))]
    if len(settings) * len(seeds) > MOST_POINTS:
        raise StudyError(f"sweep: has {len(settings) * len(seeds)} points; allowed: up to {MOST_POINTS}")
    pairs = itertools.product(settings, seeds)
    total = len(settings) * len(seeds)
    return [Point(number, chosen, seed, _with(values, chosen, seed, total)) for number, (chosen, seed) in enumerate(pairs)]


def _with(values: Mapping[str, Any], settings: Mapping[str, Any], seed: int, total: int) -> dict[str, Any]:
    point = deepcopy({key: value for key, value in values.items() if key != "sweep"})
    for key, value in settings.items():
        set_value(point, key, value)
    return {**point, "seed": seed, "chosen_from": total}


def _grid(sweep: SweepSection) -> Iterator[dict[str, Any]]:
    lists = dict(_leaves(sweep.grid, "", lambda value: isinstance(value, list)))
    for key, value in lists.items():
        if not isinstance(value, list) or not value:
            raise StudyError(f"sweep.grid.{key}: must be a list of values, not {value!r}")
    for chosen in itertools.product(*lists.values()):
        yield dict(zip(lists, chosen, strict=True))


def _random(sweep: SweepSection) -> Iterator[dict[str, Any]]:
    kinds = dict(
        _leaves(sweep.random, "", lambda value: not isinstance(value, dict) or bool(value.keys() & DISTRIBUTIONS.keys()))
    )
    for key, value in kinds.items():
        _check_distribution(key, value)
    for number in range(sweep.count or DRAWS):
        yield {key: _drawn(value, generator(sweep.seed, "sweep", number, key)) for key, value in kinds.items()}


def _leaves(values: Mapping[str, Any], prefix: str, is_leaf: Callable[[Any], bool]) -> Iterator[tuple[str, Any]]:
    """By dotted key, whether it was written as a quoted key or as sections."""
    for key, value in values.items():
        if isinstance(value, dict) and not is_leaf(value):
            yield from _leaves(value, f"{prefix}{key}.", is_leaf)
        else:
            yield f"{prefix}{key}", value


def _check_distribution(key: str, value: Any) -> None:
    if not isinstance(value, dict) or len(value) != 1 or not value.keys() <= DISTRIBUTIONS.keys():
        allowed = ", ".join(f"{{{name} = [...]}}" for name in DISTRIBUTIONS)
        raise StudyError(f"sweep.random.{key}: must be one of {allowed}, not {value!r}")
    ((kind, bounds),) = value.items()
    if not isinstance(bounds, list) or not bounds:
        raise StudyError(f"sweep.random.{key}: {kind} needs a list, not {bounds!r}")
    if kind == "choice":
        return
    plain = all(isinstance(bound, (int, float)) and not isinstance(bound, bool) and math.isfinite(bound) for bound in bounds)
    if len(bounds) != 2 or not plain or not bounds[0] <= bounds[1] or (kind == "log_uniform" and bounds[0] <= 0):
        above = ", both above 0" if kind == "log_uniform" else ""
        raise StudyError(f"sweep.random.{key}: {kind} needs [least, most]{above}, not {bounds!r}")
    if kind == "integers" and not all(isinstance(bound, int) for bound in bounds):
        raise StudyError(f"sweep.random.{key}: integers needs two integers, not {bounds!r}")


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, list[Any]], Any]] = {
    "choice": lambda random, values: values[int(random.integers(len(values)))],
    "uniform": lambda random, values: float(random.uniform(*values)),
    "log_uniform": lambda random, values: math.exp(random.uniform(math.log(values[0]), math.log(values[1]))),
    "integers": lambda random, values: int(random.integers(values[0], values[1], endpoint=True)),
}


def _drawn(distribution: Mapping[str, list[Any]], random: np.random.Generator) -> Any:
    """Numbers in four digits, as one would write them down."""
    ((kind, values),) = distribution.items()
    drawn = DISTRIBUTIONS[kind](random, values)
    return float(f"{drawn:.4g}") if isinstance(drawn, float) and kind != "choice" else drawn
