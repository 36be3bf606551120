"""What the services say about what they do, and to whom: this one lets it pass, `Metrics` counts it."""

from __future__ import annotations

from fedrho.protos.messages import Assignment, Receipt, TryLater


class Observer:
    """Is told answers, never who got them."""

    def checked_in(self, answer: Assignment | TryLater) -> None:
        """A check-in was answered."""

    def uploaded(self, receipt: Receipt) -> None:
        """An upload was answered."""

    def released(self, seconds: float) -> None:
        """A step went through the gate and is durable; it took `seconds`."""
