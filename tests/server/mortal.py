"""A shard that can die, and a link to it that answers as slowly as it is told."""

from __future__ import annotations

from fedrho.server.intake import AttemptId, Order, Part
from fedrho.server.shard import LocalShard, Shard


class MortalShard(LocalShard):
    """A link that outlives its shard: whatever it is asked after a death is ShardLost, until an attempt is opened anew.

    `alive` is False from a death until `revive`; `life` counts the deaths. With `slow`, a part arrives at the second asking.
    """

    def __init__(self, address: str, slow: bool = False) -> None:
        super().__init__(Shard())
        self.address = address
        self.alive = True
        self.slow = slow
        self.life = 0
        self.handed: set[AttemptId] = set()
        self._asked: set[AttemptId] = set()

    @property
    def shard(self) -> Shard:
        """What devices reach at the address."""
        return self._shard

    def die(self) -> None:
        self._shard = Shard()
        self._heard.clear()
        self.alive = False
        self.life += 1

    def revive(self) -> None:
        self.alive = True

    def open(self, order: Order) -> None:
        self.handed.discard(order.attempt)
        self._asked.discard(order.attempt)
        super().open(order)

    def seal(self, attempt: AttemptId) -> Part | None:
        part = super().seal(attempt)
        if self.slow and attempt not in self._asked:
            self._asked.add(attempt)
            return None
        self.handed.add(attempt)
        return part
