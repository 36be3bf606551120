"""How far a long command is: on a terminal one line that stays in its place, of one look for all; elsewhere plain lines, or none.

    step 12/30 ━━━━━━━━━━━━━━━━━━━━ 2.1 steps/s ETA 0:08 rho 4.1 of 10, accuracy 0.88

Unit, done of all, bar, rate, time left, and what else is worth a look. Narrow terminals lose the end of the last part first, then
the bar; the line never wraps. Standard output is never written to.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from fedrho import console
from fedrho.console import err

KEPT: Final = 20
"""Moments that a rate is computed from: what was slow long ago, such as the first step, is forgotten."""
APART: Final = 0.25
"""Seconds between them, so that a rate of thousands a second is no flicker."""
WIDEST_BAR, NARROWEST_BAR, LEAST_FIGURES = 20, 6, 14
"""Columns."""
MIB: Final = 2**20


class Pace:
    """How fast units are done, and how long the rest takes. Told the time in seconds, of any clock that only goes forward."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._moments: deque[tuple[float, float]] = deque(maxlen=KEPT + 1)

    def reached(self, done: float, now: float) -> None:
        if self._moments and done <= self._moments[-1][1]:
            return
        if len(self._moments) > 2 and now - self._moments[-2][0] < APART:
            self._moments.pop()
        self._moments.append((now, done))

    def skipped_to(self, done: int, now: float) -> None:
        """What was done before says nothing about now."""
        self._moments.clear()
        self._moments.append((now, done))

    def rate(self, now: float) -> float | None:
        """Units a second; falls while the next one is overdue. None before anything was done."""
        if len(self._moments) < 2:
            return None
        (first, start), (last, done) = self._moments[0], self._moments[-1]
        usual, overdue = last - first, now - first
        units = done - start
        each = max(usual / units, overdue / (units + 1))
        return 1 / each if each > 0 else None

    def left(self, now: float) -> float | None:
        """Seconds."""
        rate = self.rate(now)
        if rate is None or self._total is None:
            return None
        last, done = self._moments[-1]
        return max(0.0, (self._total - done) / rate - (now - last))


class Bar:
    """One line about units of one kind. Nothing is shown where there is no terminal, or where it cannot move its cursor."""

    def __init__(
        self, unit: str, total: int | None, starting: str = "starting", quiet: bool = False, transient: bool = False
    ) -> None:
        self._unit = unit
        self._total = total
        self._quiet = not console.said(quiet)
        self._done: float = 0
        self._figures = starting
        self._pace = Pace(total)
        self._began = time.monotonic()
        self._lock = threading.RLock()  # a thread draws while another one counts
        drawn = console.lively() and not self._quiet
        self._live = Live(self, console=err, refresh_per_second=4, transient=transient) if drawn else None

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._live:
            try:
                self._live.start(refresh=True)
            except BaseException:  # a signal while it starts
                self._live.stop()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """Nothing moves any more; what comes next may say so itself."""
        if self._live:
            self._live.stop()

    def reach(self, done: float, figures: str | None = None) -> None:
        """So many are done, and perhaps a part of the next; what stands at the end of the line, if that is another."""
        with self._lock:
            self._done = done
            self._pace.reached(done, time.monotonic())
            self.say(figures)

    def skip_to(self, done: int) -> None:
        """So many were done before."""
        with self._lock:
            self._done = done
            self._pace.skipped_to(done, time.monotonic())

    def say(self, figures: str | None) -> None:
        if figures is not None:
            self._figures = figures

    def note(self, text: str) -> None:
        """A line above, which stays."""
        if not self._quiet:
            err.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    # -- the line --------------------------------------------------------------------------------------------------------------

    def __rich_console__(self, terminal: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            line = self.line(options.max_width, time.monotonic(), plain=not options.encoding.startswith("utf"))
        yield line

    def line(self, width: int, now: float, plain: bool = False) -> Text:
        """At most `width` columns; `plain`: of ASCII alone, for all that is ours."""
        head = self._head()
        middle = " ".join(part for part in (self._rate(now), self._time(now)) if part)
        room = width - len(head) - len(middle) - 1
        most = room if self._done == self._total else room - NARROWEST_BAR - 2
        figures = min(len(self._figures), max(LEAST_FIGURES, most))
        bar = min(WIDEST_BAR, room - figures - 2)
        line = Text(head, no_wrap=True, end="")
        if bar >= NARROWEST_BAR and self._total:
            line.append(" ").append_text(self._drawn(bar, "-" if plain else "━"))
        for part, style in ((middle, "progress.elapsed"), (self._figures, "")):
            line.append(f" {part}" if part else "", style)
        line.truncate(width, overflow="crop" if plain else "ellipsis")
        return line

    def _head(self) -> str:
        done = int(self._done)
        return f"{self._unit} {done}" if self._total is None else f"{self._unit} {done}/{self._total}"

    def _drawn(self, width: int, dash: str) -> Text:
        """Without colours what is left is empty, or it would look done."""
        assert self._total
        full = min(width, int(width * self._done / self._total))
        rest = dash if err.color_system and not err.no_color else " "
        return Text.assemble(
            (dash * full, "bar.finished" if full == width else "bar.complete"), (rest * (width - full), "bar.back")
        )

    def _rate(self, now: float) -> str:
        rate = self._pace.rate(now)
        return "" if rate is None else rate_text(rate, self._unit)

    def _time(self, now: float) -> str:
        if self._total is not None and self._done >= self._total:
            return f"in {clock(now - self._began)}"
        left = self._pace.left(now)
        if left is not None:
            return f"ETA {clock(left)}"
        return "" if self._total is None or now - self._began < 1 else f"for {clock(now - self._began)}"


class StepProgress(Bar):
    """Steps of a server's runs: a line a step in a pipe or a file."""

    def __init__(self, steps: int, starting: str = "starting", quiet: bool = False) -> None:
        super().__init__("step", steps, starting, quiet)
        self._shown = -1

    def show(self, step: int, figures: str) -> None:
        """Never fewer than before: of many devices each tells what it knew when its visit began."""
        step = max(step, int(self._done))
        self.reach(step, figures)
        if not self._live and not self._quiet and step != self._shown:
            self.note(f"step {step}/{self._total} {figures}")
        self._shown = step


class FileProgress(Bar):
    """Bytes of one file, of as many as are known; `unit` is its name."""

    def __init__(self, name: str, size: int, quiet: bool = False) -> None:
        super().__init__(name, size or None, "", quiet)
        self.reach(0)

    def _head(self) -> str:
        done = f"{self._done / MIB:.1f}"
        return f"{self._unit} {done} MiB" if self._total is None else f"{self._unit} {done}/{self._total / MIB:.1f} MiB"

    def _rate(self, now: float) -> str:
        rate = self._pace.rate(now)
        return "" if rate is None else f"{rate / MIB:.1f} MiB/s"


class Fetching:
    """What is fetched before the work can begin: a bar a file; before and between them what is done, if that is said."""

    def __init__(self, what: str | None, quiet: bool = False) -> None:
        self._what = what
        self._quiet = not console.said(quiet)
        self._name = ""
        self._shown = ExitStack()

    def __enter__(self) -> Self:
        self._working()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._shown.close()

    def show(self, name: str, done: int, total: int) -> None:
        """So many bytes of a file are here; a `total` of 0 is not known."""
        if name != self._name:
            self._begin(name, done, total)
        self._bar.reach(done)
        if done == total:
            self._working()

    def _begin(self, name: str, done: int, total: int) -> None:
        self._name = name
        self._shown.close()
        self._bar = FileProgress(name, total, self._quiet)
        self._shown.enter_context(self._bar)
        self._bar.skip_to(done)
        if not self._quiet and not console.lively():
            self._bar.note(f"fetching {name}, {f'{total / MIB:.1f} MiB' if total else 'of unknown size'}")

    def _working(self) -> None:
        self._shown.close()
        if self._what is not None:
            self._shown.enter_context(console.working(self._what, self._quiet))


def rate_text(rate: float, unit: str) -> str:
    """Above one a second how many, below it how long each takes."""
    if rate >= 1:
        units = f"{unit[:-1]}ies" if unit.endswith("ry") else f"{unit}s"
        return f"{rate:.3g} {units}/s" if rate < 1000 else f"{rate:.0f} {units}/s"
    return f"{1 / rate:.3g} s/{unit}" if rate > 1 / 100 else f"{1 / rate / 60:.3g} min/{unit}"


def clock(seconds: float) -> str:
    """0:08, 12:30, 3:05:00, 4 d 3:05:00."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours}:{minutes:02}:{left:02}"
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
