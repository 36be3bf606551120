"""Who trains which unit of a round, and what has come back: the part that `processes` and `ray` share, without a process.

A member is a worker, by a number that is never used again. It trains unit after unit and keeps one running sum of them; when no
unit is left it hands the sum over. What a member held when it ended is lost, so its units wait again.

| a member that is        | is told next                    |
|-------------------------|---------------------------------|
| free, a unit waits      | train it                        |
| free, holds a sum       | hand it over                    |
| free, holds nothing     | nothing, until a unit waits again |
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.vectors import ClippedSum, FloatVector, merge
from fedrho.protos.messages import RoundPlan
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.engines.base import EngineError, Tested, Told, Trained, Workload, cut, joined, tested_units

PATIENCE: Final = 5
"""Workers that may end while they train one and the same unit, or while they start, one after another."""


@dataclass(frozen=True)
class Unit:
    """Places in the cohort, and the devices that sit there; or places of held-out examples, and no devices."""

    places: Sequence[int]
    devices: tuple[int, ...]

    @property
    def span(self) -> range:
        """Places that follow one another, as those of held-out examples do."""
        return range(self.places[0], self.places[-1] + 1)

    def __str__(self) -> str:
        if not self.devices:
            return f"held-out examples {self.places[0]} to {self.places[-1]}"
        shown = ", ".join(str(device) for device in self.devices[:8])
        return f"device {shown}" if len(self.devices) == 1 else f"devices {shown}{', …' if len(self.devices) > 8 else ''}"


@dataclass(frozen=True)
class HandOver:
    """The order to send the sum and to hold nothing afterwards."""


def units(work: Workload, dataset: FederatedDataset, devices: Sequence[int], members: int) -> list[Unit]:
    """The cohort in units, the longest first.

    Vectorised, they are those of `cut`, because devices of a unit are computed together. Otherwise every device is computed by
    itself, so that any units give the same bits: they get smaller toward the end, and no member waits long for the last one.
    """
    cost = np.array([_batches(work.plan, dataset.count(device)) for device in devices])
    if work.vectorised:
        pieces = [np.array(piece) for piece in cut(len(devices), work.units_of)]
    else:
        pieces = _tapered(np.argsort(-cost, kind="stable"), work.units_of, members)
    pieces.sort(key=lambda piece: -int(cost[piece].sum()))
    return [Unit(tuple(piece.tolist()), tuple(devices[place] for place in piece)) for piece in pieces]


def held_out_units(dataset: FederatedDataset) -> list[Unit]:
    return [Unit(places, ()) for places in tested_units(dataset)]


def empty_sum(work: Workload) -> ClippedSum:
    return ClippedSum(np.zeros(work.plan.size, dtype=np.int64), work.grid)


def checked(weights: FloatVector, work: Workload) -> FloatVector:
    """Raises ValueError for weights of another model."""
    if weights.dtype != np.float32 or weights.shape != (work.plan.size,):
        raise ValueError(f"weights are float32 of shape ({work.plan.size},), not {weights.dtype} {weights.shape}")
    return weights


def _batches(plan: RoundPlan, count: int) -> int:
    """Local steps of a device that holds `count` examples, which is what its training takes time for."""
    used = min(count, plan.max_examples) if plan.max_examples else count
    return plan.local_steps or plan.epochs * -(-used // plan.batch_size)


def _tapered(order: NDArray[np.int64], at_most: int, members: int) -> list[NDArray[np.int64]]:
    """Each piece a half of every member's share of what is left."""
    pieces = []
    while len(order):
        size = min(at_most, -(-len(order) // (2 * members)))
        pieces.append(order[:size])
        order = order[size:]
    return pieces


class Dispatch:
    """Units that go to whoever is free. Methods are called as things happen; `turn` says what a free member does next."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = units
        self._waiting = deque(range(len(units)))
        self._at_work: dict[int, int] = {}
        self._answers: dict[int, Told | Tested] = {}
        self._ended: Counter[int] = Counter()

    @property
    def open(self) -> bool:
        return bool(self._waiting or self._at_work)

    def turn(self, member: int) -> Unit | HandOver | None:
        """What this member is told now; nothing while it is at work."""
        if member in self._at_work or not self._waiting:
            return None
        self._at_work[member] = self._waiting.popleft()
        return self.units[self._at_work[member]]

    def done(self, member: int, answer: Told | Tested) -> int:
        """The number of the unit that this member was given last."""
        number = self._at_work.pop(member)
        self._answers[number] = answer
        return number

    def ended(self, member: int, how: str) -> None:
        """All that this member had trained or held waits again; raises EngineError where one unit has ended too many."""
        self._again([self._at_work.pop(member)] if member in self._at_work else [], how)

    def _again(self, at_work: list[int], how: str, held: Sequence[int] = ()) -> None:
        self._waiting.extendleft(sorted([*at_work, *held], reverse=True))
        for number in at_work:
            self._ended[number] += 1
            if self._ended[number] >= PATIENCE:
                raise EngineError(
                    f"{self._ended[number]} workers ended, one after another, at {self.units[number]}: the last {how}"
                )


class Measurement(Dispatch):
    """One call of `test`."""

    def result(self) -> Tested:
        answers = [self._answers[number] for number in range(len(self.units))]
        return joined([answer for answer in answers if isinstance(answer, Tested)])


class Round(Dispatch):
    """One call of `train`: beside the answers, the members' sums come back."""

    def __init__(self, units: Sequence[Unit], nothing: ClippedSum) -> None:
        """`nothing` is a sum of no device."""
        super().__init__(units)
        self._held: dict[int, list[int]] = {}
        self._asked: set[int] = set()
        self._total = nothing

    @property
    def open(self) -> bool:
        return bool(self._held) or super().open

    def turn(self, member: int) -> Unit | HandOver | None:
        if member in self._asked:
            return None
        order = super().turn(member)
        if order is None and member in self._held and member not in self._at_work:
            self._asked.add(member)
            return HandOver()
        return order

    def done(self, member: int, answer: Told | Tested) -> int:
        number = super().done(member, answer)
        self._held.setdefault(member, []).append(number)
        return number

    def handed_over(self, member: int, part: ClippedSum) -> None:
        self._asked.remove(member)
        del self._held[member]
        self._total = merge([self._total, part])

    def ended(self, member: int, how: str) -> None:
        self._asked.discard(member)
        at_work = [self._at_work.pop(member)] if member in self._at_work else []
        self._again(at_work, how, self._held.pop(member, []))

    def result(self) -> Trained:
        answers = [self._answers[number] for number in range(len(self.units))]
        return Trained(self._total, in_places(self.units, [answer for answer in answers if isinstance(answer, Told)]))


def in_places(units: Sequence[Unit], told: Sequence[Told]) -> Told:
    """What was told of each unit, in the order of the cohort."""
    if not told:
        return Told(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_))
    places = np.concatenate([np.array(unit.places, dtype=np.int64) for unit in units])
    order = np.argsort(places)
    return Told(
        np.concatenate([one.loss for one in told])[order],
        np.concatenate([one.norm for one in told])[order],
        np.concatenate([one.examples for one in told])[order],
        np.concatenate([one.failed for one in told])[order],
    )
