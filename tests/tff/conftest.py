"""TensorFlow Federated for the tests here, and an end for the processes that it leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from fedrho.simulations.engines.tff import runtime_processes


@pytest.fixture(scope="session")
def tf() -> Any:
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="session")
def tff() -> Iterator[Any]:
    """Its worker_binary outlives the process that started it and holds stdout open, so it is ended here."""
    yield pytest.importorskip("tensorflow_federated")
    for pid in runtime_processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
