"""A shard whose devices are virtual: it keeps the sessions' books, and has the engine train exactly those that are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedrho.privacy.vectors import ClippedSum, FloatVector
from fedrho.protos.messages import SessionStatus
from fedrho.server.intake import AttemptId, Change, Order, Part
from fedrho.server.shard import ShardLost
from fedrho.simulations.engines.base import Engine, Told

NOBODY = np.zeros(0)
TOLD_NOTHING = Told(NOBODY, NOBODY, NOBODY.astype(np.int64), NOBODY.astype(np.bool_))


@dataclass
class Collected:
    """One attempt, as far as it has come."""

    order: Order
    counted: dict[bytes, int] = field(default_factory=dict)
    log: list[Change] = field(default_factory=list)
    heard: int = 0
    part: Part | None = None


class VirtualShard:
    """A `ShardLink`. Nobody sends a vector: a device uploads by being counted, and the sum is made when the attempt is sealed.

    An attempt with fewer than `min_reports` is abandoned by the coordinator whatever it holds, so nothing is trained for it: its
    sum has no coordinates, which no mechanism would release.
    """

    address = ""
    alive = True

    def __init__(self, engine: Engine, min_reports: int) -> None:
        self._engine = engine
        self._min_reports = min_reports
        self._open: Collected | None = None
        self.weights: FloatVector = np.zeros(0, dtype=np.float32)
        """What devices download at the open step; set by whoever knows."""
        self.devices: tuple[int, ...] = ()
        """Those counted in the attempt that was sealed last, in the order in which they came."""
        self.told = TOLD_NOTHING
        """What a simulation sees of them."""

    # -- what a device does ------------------------------------------------------------------------------------------------

    def wanted(self) -> bool:
        """Whether one more upload would be counted: the answer to `begin_upload`."""
        one = self._open
        return one is not None and one.part is None and len(one.counted) < one.order.quota

    def count(self, session: bytes, device: int) -> None:
        """A device's update has arrived."""
        one = self._open
        if one is None or not self.wanted():
            raise ValueError("the session cannot be counted")
        one.counted[session] = device
        one.log.append((session, SessionStatus.COUNTED))

    # -- what a coordinator asks ---------------------------------------------------------------------------------------------

    def open(self, order: Order) -> None:
        if self._open is None or self._open.order != order:
            self._open = Collected(order)

    def ready(self, attempt: AttemptId) -> bool:
        return True

    def grant(self, attempt: AttemptId, quota: int) -> None:
        raise ShardLost("a virtual shard is the only one, and is never lost")

    def changes(self, attempt: AttemptId, now: float) -> Sequence[Change]:
        one = self._collected(attempt)
        heard, one.heard = one.heard, len(one.log)
        return one.log[heard:] if heard < one.heard else ()

    def seal(self, attempt: AttemptId) -> Part:
        """Trains who was counted; raises EngineError, and can then be asked again."""
        one = self._collected(attempt)
        if one.part is None:
            one.part = Part(tuple(one.counted), self._sum(one))
        return one.part

    def drop(self, attempt: AttemptId) -> None:
        self._open = None

    def _sum(self, one: Collected) -> ClippedSum:
        devices = tuple(one.counted.values())
        if len(devices) < self._min_reports:
            return ClippedSum(np.zeros(0, dtype=np.int64), one.order.grid)
        trained = self._engine.train(one.order.attempt.step, self.weights, devices)
        self.devices, self.told = devices, trained.told
        return trained.total

    def _collected(self, attempt: AttemptId) -> Collected:
        one = self._open
        if one is None or (one.order.attempt is not attempt and one.order.attempt != attempt):
            raise ShardLost(f"attempt {attempt.attempt} at step {attempt.step} is not here")
        return one
