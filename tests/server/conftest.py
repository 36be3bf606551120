"""A small task, and engines over it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fedrho.server.release import Store
from fedrho.server.tasks import Task, parse_task
from tests.server import postgres
from tests.server.one_run import OneRun, open_one_run

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

NUMBERS = itertools.count(1)
MakeTask = Callable[..., Task]
MakeEngine = Callable[..., OneRun]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL of our own; each test takes a database of its own in it."""
    if postgres.binaries() is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    with postgres.server() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    return postgres.new_database(postgres_server, f"test-{next(NUMBERS)}")


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
    def make(store: Store | None = None, size: int = 12, **task: Any) -> OneRun:
        return open_one_run(make_task(**task), store, size)

    return make
