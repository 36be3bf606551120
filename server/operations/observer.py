"""What the services say about what they do, and to whom: one lets it pass, `Metrics` counts it, `Traces` tells when it was."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

from fedrho.protos.messages import Assignment, Receipt, TryLater
from fedrho.server.release import Leg
from fedrho.server.rounds import Phase


@dataclass(frozen=True)
class Place:
    """Where a run stands: at which attempt at which step, and in which phase. `ended` says that no further round will come."""

    task: str
    step: int
    attempt: int
    phase: Phase
    ended: bool


class Observer:
    """Is told answers, never who got them."""

    def checked_in(self, answer: Assignment | TryLater) -> None:
        """A check-in was answered."""

    def uploaded(self, receipt: Receipt) -> None:
        """An upload was answered."""

    def called(self, method: str, code: str, seconds: float) -> None:
        """A call of one of our own methods has ended, or of another, which is `other`; it took `seconds`."""

    def stands(self, place: Place) -> None:
        """A run stands here; told as often as its rounds are looked at."""

    def leg(self, task: str, leg: Leg) -> AbstractContextManager[object]:
        """For as long as a leg of a release takes; entered on another thread than the rest."""
        return nullcontext()

    def released(self, task: str, seconds: float) -> None:
        """A step went through the gate and is durable; it took `seconds`."""


class Observers(Observer):
    """Several, told one after another."""

    def __init__(self, several: Sequence[Observer]) -> None:
        self._several = tuple(several)

    def checked_in(self, answer: Assignment | TryLater) -> None:
        for one in self._several:
            one.checked_in(answer)

    def uploaded(self, receipt: Receipt) -> None:
        for one in self._several:
            one.uploaded(receipt)

    def called(self, method: str, code: str, seconds: float) -> None:
        for one in self._several:
            one.called(method, code, seconds)

    def stands(self, place: Place) -> None:
        for one in self._several:
            one.stands(place)

    def leg(self, task: str, leg: Leg) -> AbstractContextManager[object]:
        entered = ExitStack()
        for one in self._several:
            entered.enter_context(one.leg(task, leg))
        return entered

    def released(self, task: str, seconds: float) -> None:
        for one in self._several:
            one.released(task, seconds)
