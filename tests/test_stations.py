"""The type checker refuses a program that skips a station of the data's way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def errors_of(programs: dict[str, str], folder: Path) -> dict[str, list[str]]:
    """What mypy, run once, has against each program. Its cache is its own: two that share one break one another."""
    for number, program in enumerate(programs.values()):
        (folder / f"program_{number}.py").write_text(PRELUDE + program)
    files = [str(folder / f"program_{number}.py") for number in range(len(programs))]
    own = ["--no-error-summary", "--config-file", "pyproject.toml", "--cache-dir", str(folder / "cache")]
    done = subprocess.run([sys.executable, "-m", "mypy", *own, *files], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    return {name: [line for line in lines if f"program_{number}.py" in line] for number, name in enumerate(programs)}


def test_a_skipped_station_is_a_type_error_and_the_whole_way_is_none(tmp_path: Path) -> None:
    found = errors_of({"the whole way": RIGHT} | {name: program for name, (program, _) in WRONG.items()}, tmp_path)
    assert found.pop("the whole way") == []
    for name, (_, message) in WRONG.items():
        assert len(found[name]) == 1, (name, found[name])
        assert message in found[name][0], name


def test_the_right_program_runs() -> None:
    exec(compile(PRELUDE + RIGHT, "right", "exec"), {})
