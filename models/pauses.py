"""How many steps a training takes before it tells how far it is: as many as take about a second, on any machine."""

from __future__ import annotations

import time

APART = 0.5
"""Seconds; where steps took less, twice as many come before the next word."""


class Pauses:
    """Begins with so many `steps` and at most `most`."""

    def __init__(self, steps: int, most: int = 2**31 - 1) -> None:
        self.steps = steps
        self._most = most
        self._told = time.monotonic()

    def told(self) -> None:
        now = time.monotonic()
        if now - self._told < APART:
            self.steps = min(2 * self.steps, self._most)
        self._told = now
