"""One line for work of several parts, each counted in units of its own; nothing of it stays, because a result follows.

    canary 120/500 ━━━━━━━━━━━━━━ 88 canaries/s ETA 0:04 adding them up, claimed rho 0.51
    part 2/3 ━━━━━━━━━━━━ for 0:12 composing 100000 rounds, at delta 1e-06
    iteration 34 12 iterations/s for 0:03 finding the best coefficients of 314 bands

The time left is that of the part at hand. What is unlike one another has no rate, and no time left: it says for how long it
goes on.
"""

from __future__ import annotations

from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult

from fedrho.console import Since
from fedrho.progress import MIB, Bar, Pace, clock, rate_text

UNLIKE: Final = ("part", "plan", "check", "attack")
"""Units of which one says nothing about the time of another."""
BYTES: Final = "byte"


class Work(Bar):
    """As `fedrho.privacy.progress` tells it. `about` is of all parts: what is claimed, spent or looked for."""

    def __init__(self, doing: str, about: str = "", quiet: bool = False) -> None:
        super().__init__("", None, doing, quiet, transient=True)
        self._about = about
        self._since = Since(self._with_about(doing))

    def progress(self, unit: str, done: int, total: int | None, doing: str) -> None:
        with self._lock:
            if (unit, total) != (self._unit, self._total) or done < self._done:
                self._unit, self._total, self._pace = unit, total, Pace(total)
                self.skip_to(done)
            self.reach(done, self._with_about(doing))

    def _with_about(self, doing: str) -> str:
        return ", ".join(part for part in (doing, self._about) if part)

    def __rich_console__(self, terminal: Console, options: ConsoleOptions) -> RenderResult:
        if not self._unit:
            yield from self._since.__rich_console__(terminal, options)
            return
        yield from super().__rich_console__(terminal, options)

    def _head(self) -> str:
        if self._unit != BYTES:
            return super()._head()
        return f"{self._done / MIB:.1f}/{(self._total or 0) / MIB:.1f} MiB"

    def _rate(self, now: float) -> str:
        rate = self._pace.rate(now)
        if rate is None or self._done == self._total or self._unit in UNLIKE:
            return ""
        return f"{rate / MIB:.1f} MiB/s" if self._unit == BYTES else rate_text(rate, self._unit)

    def _time(self, now: float) -> str:
        left = None if self._unit in UNLIKE else self._pace.left(now)
        return f"for {clock(now - self._began)}" if left is None or self._done == self._total else f"ETA {clock(left)}"
