"""Measurements in passes that take turns, and how they are shown."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Row:
    """One measurement: milliseconds of every pass."""

    name: str
    passes: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        return min(self.passes)

    @property
    def median(self) -> float:
        return statistics.median(self.passes)

    def add(self, milliseconds: float) -> None:
        self.passes.append(milliseconds)

    def against(self, limit: Row) -> str:
        """The ratio of the best passes, and of the medians."""
        return f"{self.best / limit.best:.1f} ({self.median / limit.median:.1f})"


def cpu_of(work: Callable[[], object], times: int = 1) -> float:
    """Milliseconds of CPU of one call, over `times` calls."""
    began = time.process_time()
    for _ in range(times):
        work()
    return 1000 * (time.process_time() - began) / times


def show(title: str, rows: list[Row], ratio: str = "", limit: Row | None = None) -> None:
    print(f"== {title}")
    print(f"   {'':<40} {'best ms':>9} {'median ms':>10}   {ratio}")
    for row in rows:
        against = row.against(limit) if limit else ""
        print(f"   {row.name:<40} {row.best:>9.3f} {row.median:>10.3f}   {against}")
