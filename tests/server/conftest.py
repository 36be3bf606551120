"""A small task, and engines over it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedrho.privacy.noise import SystemNoise
from fedrho.server.coordinator import Coordinator, Surroundings, open_run
from fedrho.server.release import Store
from fedrho.server.store import MemoryStore
from fedrho.server.tasks import Task, parse_task

TASK = """
name = "small"
algorithm = "{algorithm}"
model = "digits-logistic"
steps = 4
population = 12
[round]
goal = 3
overselect = 1.5
deadline_seconds = 10
lease_seconds = 4
retry_seconds = [1, 2]
[privacy]
clip_norm = 1.0
rho = 2.0
delta = 1e-3
grid_bits = 10
[participation]
max_times = 2
min_separation = 2
server_window = {window}
[server]
learning_rate = 1.0
"""

MakeTask = Callable[..., Task]
MakeEngine = Callable[..., Coordinator]


@pytest.fixture
def make_task() -> MakeTask:
    def make(algorithm: str = "dp-ftrl", window: bool = False, **replaced: str) -> Task:
        text = TASK.format(algorithm=algorithm, window=str(window).lower())
        for before, after in replaced.items():
            assert before in text, before
            text = text.replace(before, after)
        return parse_task(text, "small.toml")

    return make


@pytest.fixture
def make_engine(make_task: MakeTask) -> MakeEngine:
    ids = (number.to_bytes(16, "big") for number in itertools.count(1))

    def make(store: Store | None = None, size: int = 12, **task: Any) -> Coordinator:
        around = Surroundings(SystemNoise(), store or MemoryStore(), lambda: next(ids))
        return open_run(make_task(**task), around, lambda: np.zeros(size, dtype=np.float32), 0.0)

    return make
