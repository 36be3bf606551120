"""The type checker refuses a program that skips a station of the data's way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PRELUDE = """
import numpy as np
from fedrho.privacy.clipping import clip
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.vectors import Clipped, ClippedSum, Grid, Released, Update
from fedrho.server.aggregation import RunningSum
from fedrho.server.optimizers import ServerSgd

grid = Grid(1.0)
mechanism = IndependentGaussian(grid, 1.0)
running = RunningSum(3, grid)
sgd = ServerSgd(1.0)
weights, velocity = np.zeros(3, dtype=np.float32), np.zeros(3)
update = Update(np.ones(3, dtype=np.float32))
"""

RIGHT = """
running.add(clip(update, grid))
released, state = mechanism.release(running.close(), mechanism.init(3), SystemNoise())
weights, velocity = sgd.apply(released, 10, weights, velocity)
"""

WRONG = {
    "an unclipped update is added": ("running.add(update)", '"add" of "RunningSum" has incompatible type "Update"'),
    "a bare array is added": ("running.add(np.ones(3))", '"add" of "RunningSum" has incompatible type'),
    "a running sum is released": (
        "mechanism.release(running, mechanism.init(3), SystemNoise())",
        'incompatible type "RunningSum"',
    ),
    "one clipped update is released": (
        "mechanism.release(clip(update, grid), mechanism.init(3), SystemNoise())",
        '"Clipped"; expected',
    ),
    "the sum reaches the optimizer without noise": (
        "sgd.apply(running.close(), 10, weights, velocity)",
        '"apply" of "ServerSgd" has incompatible type "ClippedSum"; expected "Released"',
    ),
    "a clipped vector is clipped again": (
        "clip(clip(update, grid), grid)",
        '"clip" has incompatible type "Clipped"; expected "Update"',
    ),
}


def check(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "program.py"
    path.write_text(PRELUDE + program)
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--config-file", "pyproject.toml", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_whole_way_type_checks(tmp_path: Path) -> None:
    done = check(RIGHT, tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("skipped", WRONG)
def test_a_skipped_station_is_a_type_error(skipped: str, tmp_path: Path) -> None:
    program, message = WRONG[skipped]
    done = check(program, tmp_path)
    assert done.returncode == 1
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1, done.stdout
    assert message in errors[0]


def test_the_right_program_runs() -> None:
    exec(compile(PRELUDE + RIGHT, "right", "exec"), {})
