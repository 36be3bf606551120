"""Kills a process that releases step after step, at random moments, and lets the next one continue from the same folder.

Usage: kill_loop.py FOLDER KILLS. Exits 0, printing kills and steps, when every process continued at or after the last step
that was announced, and no step was ever announced with two results (weights digest and rho).
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.vectors import ClippedSum
from fedrho.server.coordinator import Surroundings, open_run
from fedrho.server.release import Attempt
from fedrho.server.store import SqliteStore
from fedrho.server.tasks import parse_task

SIZE = 500
TASK = """
name = "long"
algorithm = "dp-ftrl"
model = "digits-logistic"
steps = 20000
population = 1000000
[round]
goal = 10
[privacy]
clip_norm = 1.0
rho = 10.0
delta = 1e-9
[participation]
max_times = 1
"""


def releases(folder: Path, announce: int) -> None:
    """Releases until killed; says every step that it has reached, and what came out of it."""
    task = parse_task(TASK, "long")
    with SqliteStore(folder) as store:
        engine = open_run(
            task, Surroundings(SystemNoise(), store, lambda: os.urandom(16)), lambda: np.zeros(SIZE, dtype=np.float32), 0.0
        )
        while True:
            step, rho = engine.progress.step, engine.progress.charge.rho
            os.write(announce, f"{step} {engine._checkpoint_sha256.hex()} {rho!r}\n".encode())
            total = ClippedSum(np.full(SIZE, step, dtype=np.int64), task.mechanism.grid)
            engine.install(engine.through_gate(Attempt(1, total, (), 0.0), 0.0), 0.0)


def killed_once(folder: Path, seconds: float) -> list[str]:
    """What a process announced until its death, `seconds` after its first word."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        releases(folder, write)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as announced:
        first = announced.readline()
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        lines = [first, *announced]
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the process ended by itself"
    return lines


def main() -> None:
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    generator, results = random.Random(1), dict[int, str]()
    for _ in range(kills):
        lines = killed_once(folder, generator.uniform(0.0, 0.08))
        assert int(lines[0].split()[0]) >= max(results, default=0), "a process went back behind what was announced"
        for line in lines:
            step, result = line.split(maxsplit=1)
            assert results.setdefault(int(step), result) == result, f"two results for step {step}"
    print(kills, len(results))


if __name__ == "__main__":
    main()
