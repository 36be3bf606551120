"""One attempt, divided among the shards: each collects a share of the goal, and the parts that they seal are one sum.

A share only ever grows, so all of them together never count more than the goal. What a lost shard had counted is gone; what is
missing goes to the others, or to the first that is there again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from fedrho.privacy.vectors import ClippedSum, merge
from fedrho.server.intake import AttemptId, Order, Part
from fedrho.server.rounds import Round
from fedrho.server.shard import ShardLink, ShardLost


@dataclass
class Share:
    """One shard's share. `order` is None while the shard is away, `part` while it has not been sealed."""

    link: ShardLink
    quota: int = 0
    order: Order | None = None
    part: Part | None = None


class Shares:
    """`whole` is what one shard would be told; each gets a quota, and a key for tickets, of its own."""

    def __init__(self, links: Sequence[ShardLink], whole: Order, new_key: Callable[[], bytes]) -> None:
        self.attempt: AttemptId = whole.attempt
        self.shares = [Share(link) for link in links]
        self._whole = whole
        self._new_key = new_key
        self._missing = whole.quota

    def open(self) -> None:
        """Divides the goal among the shards that are there; it waits for one where there is none."""
        there = [share for share in self.shares if share.link.alive]
        for share, quota in zip(there, _divided(self._missing, len(there)), strict=True):
            self._order(share, quota)
        self._missing = 0 if there else self._missing

    def hear(self, round_: Round, now: float) -> None:
        """Notes what shards say about sessions, and what is lost with them."""
        for number, share in enumerate(self.shares):
            if share.order is None:
                self._reopen(share)
                continue
            try:
                for session, status in share.link.changes(self.attempt, now):
                    round_.note(session, status, now)
            except ShardLost:
                round_.lose(number)
                self._lose(share)

    def seal(self, round_: Round) -> bool:
        """Whether all parts are in; a shard that is lost by now has none."""
        for number, share in enumerate(self.shares):
            if share.order is not None and share.part is None:
                try:
                    share.part = share.link.seal(self.attempt)
                except ShardLost:
                    share.order = None
                    round_.lose(number)
        return all(share.order is None or share.part is not None for share in self.shares)

    @property
    def counted(self) -> tuple[bytes, ...]:
        """The sessions in the sealed parts."""
        return tuple(session for share in self.shares if share.part for session in share.part.counted)

    def take(self) -> ClippedSum:
        """The sum of the sealed parts, which are then empty."""
        return merge([share.part.total for share in self.shares if share.part])

    def drop(self) -> None:
        """Forgets everything that was collected, at shards that are away too: they may come back with what they hold."""
        for share in self.shares:
            with suppress(ShardLost):  # then it has dropped everything by itself
                share.link.drop(self.attempt)
            share.part = None

    def with_room(self, round_: Round) -> int | None:
        """The shard that has the fewest devices for each report that it is to collect."""
        there = [
            (round_.held_by(number) / share.quota, number)
            for number, share in enumerate(self.shares)
            if share.order is not None and share.quota > 0 and share.link.ready(self.attempt)
        ]
        return min(there)[1] if there else None

    def way_in(self, number: int, session: bytes) -> tuple[bytes, str] | None:
        """Ticket and address for a session that was sent to a shard; None while that is away."""
        share = self.shares[number]
        return None if share.order is None else (share.order.ticket(session), share.link.address)

    def _order(self, share: Share, quota: int) -> None:
        share.quota, share.order = quota, replace(self._whole, key=self._new_key(), quota=quota)
        share.link.open(share.order)

    def _reopen(self, share: Share) -> None:
        """A shard that is back helps again where something is missing, else from the next attempt on."""
        if self._missing and share.link.alive:
            quota, self._missing = self._missing, 0
            self._order(share, quota)

    def _lose(self, share: Share) -> None:
        self._missing += share.quota
        share.quota, share.order = 0, None
        there = [other for other in self.shares if other.order is not None]
        for other, more in zip(there, _divided(self._missing, len(there)), strict=True):
            other.quota += more
            with suppress(ShardLost):  # heard of at the next tick
                other.link.grant(self.attempt, other.quota)
        self._missing = 0 if there else self._missing


def _divided(goal: int, count: int) -> list[int]:
    """`goal` in `count` whole parts that differ by one at most."""
    return [len(range(place, goal, count)) for place in range(count)]
