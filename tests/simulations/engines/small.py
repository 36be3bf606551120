"""A small data set and workloads for the tests of engines, and what the plain serial loop makes of them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedrho.privacy.vectors import ClippedSum, FloatVector, Grid, add_noise
from fedrho.protos.messages import Encoding, RoundPlan
from fedrho.simulations.data.base import DataSource, Examples, FederatedDataset
from fedrho.simulations.engines.base import Engine, Tested, Trained, Workload

SIZES = {"digits-logistic": 650, "digits-mlp": 2410}
GRID = Grid(0.3, 16)


@dataclass(frozen=True)
class Made:
    """Devices of 1 to 40 made-up examples; where the number ends in 7, features so large that training diverges."""

    size: int = 10_000

    @property
    def held_out(self) -> Examples:
        return _drawn(2_500, -1)

    def count(self, device: int) -> int:
        return 1 + (device * 7919) % 40

    def examples(self, device: int) -> Examples:
        made = _drawn(self.count(device), device)
        return Examples(made.features * np.float32(1e38), made.labels) if device % 10 == 7 else made


def _drawn(count: int, device: int) -> Examples:
    random = np.random.default_rng((5, device + 1))
    labels = random.integers(0, 10, count).astype(np.int32)
    features = random.random((count, 64), dtype=np.float32)
    features[np.arange(count), labels] += 1
    return Examples(features, labels)


def open_made(source: DataSource) -> FederatedDataset:
    if source.name != "made":
        raise ValueError(f"unknown data set {source.name!r}")
    return Made()


def workload(model: str = "digits-logistic", *, vectorised: bool = False, **changes: object) -> Workload:
    plan = RoundPlan(
        run=b"r" * 16,
        step=0,
        attempt=0,
        model=model,
        checkpoint_sha256=b"c" * 32,
        size=SIZES[model],
        clip_norm=GRID.clip_norm,
        grid_bits=GRID.bits,
        encoding=Encoding.INT32_LE,
        epochs=2,
        batch_size=8,
        learning_rate=0.1,
        chunk_bytes=1 << 20,
        max_examples=30,
    )
    return Workload(DataSource("made"), plan, GRID, vectorised=vectorised, **changes)  # type: ignore[arg-type]


def weights_of(model: str = "digits-logistic", seed: int = 1) -> FloatVector:
    return np.random.default_rng(seed).normal(0, 0.1, SIZES[model]).astype(np.float32)


def opened(total: ClippedSum) -> list[int]:
    """A sum through its only door, with no noise."""
    return [int(number) for number in add_noise(total, np.zeros(total.size, dtype=np.int64)).vector]


def bits(trained: Trained) -> tuple[object, ...]:
    """Everything in it, comparable."""
    told = trained.told
    return opened(trained.total), told.loss.tobytes(), told.norm.tobytes(), told.examples.tolist(), told.failed.tolist()


def cohort(step: int, size: int = 100) -> Sequence[int]:
    return [int(device) for device in np.random.default_rng((3, step)).choice(10_000, size, replace=False)]


Results = tuple[list[tuple[object, ...]], Tested]


def rounds(engine: Engine, work: Workload, steps: range) -> Results:
    """The bits of some rounds, each from other weights with another cohort, and what the engine measures."""
    model = work.plan.model
    trained = [bits(engine.train(step, weights_of(model, step), cohort(step))) for step in steps]
    return trained, engine.test(weights_of(model))


SERIAL = """
import pickle, sys
from fedrho.simulations.engines.serial import Serial
from tests.simulations.engines.small import Made, rounds
work, steps = pickle.load(sys.stdin.buffer)
pickle.dump(rounds(Serial(work, Made()), work, steps), sys.stdout.buffer)
"""


def serial(work: Workload, steps: range) -> Results:
    """The same of the serial engine, in a process of its own: it wants TensorFlow on one thread."""
    asked = pickle.dumps((work, steps))
    answer = subprocess.run([sys.executable, "-c", SERIAL], input=asked, stdout=subprocess.PIPE, check=True).stdout
    results: Results = pickle.loads(answer)
    return results
