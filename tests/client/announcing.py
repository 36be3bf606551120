"""What a population announces, as a device has read it, without a server; and clocks that can be set."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from fedrho.client.spec import Known
from fedrho.protos.messages import PopulationSpec, PrivacyTerms, RetryWindow, TaskSpec

RUN, OTHER = bytes(16), bytes([1]) * 16
KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
DAY, YEAR = 86400.0, 365 * 86400.0
TERMS = PrivacyTerms("binary-tree", 1.0, 1.0, 1.0, max_participations=3, min_separation=4, min_period_seconds=0.0)
DAILY = PrivacyTerms("binary-tree", 1.0, 1.0, 1.0, max_participations=1000, min_separation=1, min_period_seconds=DAY)
ETAGS = itertools.count(1)


@dataclass
class Clock:
    now: float = 1.75e9

    def __call__(self) -> float:
        return self.now


def still() -> float:
    """A clock that stands, so that nothing passes but what a test lets pass."""
    return 0.0


def task(run: bytes = RUN, terms: PrivacyTerms = TERMS, released: int = 0, **changes: Any) -> TaskSpec:
    values: dict[str, Any] = {
        "task": "small",
        "model": "digits-logistic",
        "size": 650,
        "steps": 1000,
        "wants_device_tag": False,
        "ended": False,
        "began": 1.0e9,
    }
    return TaskSpec(run=run, released=released, terms=terms, **(values | changes))


def known(*tasks: TaskSpec, at: float = 1.75e9, epoch: int = 1, key: bytes = KEY) -> Known:
    """A verified spec, signed at `at`."""
    spec = PopulationSpec(epoch, at, 600.0, 100.0, False, tasks)
    return Known(spec, next(ETAGS).to_bytes(32, "big"), key, RetryWindow(1.0, 2.0), 0.0)
