"""Units, parts and tests of a worker, and what it refuses before it trains."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from fedrho.models.backend import THREADS
from fedrho.models.flat import FlatModel
from fedrho.models.saved import add_saved
from fedrho.models.zoo import lookup
from fedrho.privacy.vectors import merge, pack
from fedrho.simulations.checks import check_vectorised
from fedrho.simulations.data.base import DataError, Examples
from fedrho.simulations.engines.base import EngineError, Trained, cut, unit_size
from fedrho.simulations.engines.dispatch import held_out_units
from fedrho.simulations.engines.serial import Serial
from fedrho.simulations.worker import Worker
from tests.models import reference
from tests.simulations.held import COUNTS, DEVICES, GRID, HELD_OUT, LOGISTIC, MLP, as_a_device, held, some_weights, workload

DEVICE_NUMBERS = [5, 0, 3, 6, 1]
WEIGHTS = some_weights(2410)


def summed(trained: Trained) -> list[int]:
    return [int(value) for value in np.frombuffer(pack(trained.total), dtype="<i8")]


def test_a_part_is_the_exact_sum_of_what_the_devices_would_upload() -> None:
    trained = Worker(workload(MLP), held()).train(3, WEIGHTS, DEVICE_NUMBERS)
    uploads = [as_a_device(replace(MLP, step=3), WEIGHTS, DEVICES[device]) for device in DEVICE_NUMBERS]
    assert summed(trained) == np.sum(uploads, axis=0, dtype=np.int64).tolist()
    assert trained.total.grid == GRID
    assert trained.told.examples.tolist() == [COUNTS[device] for device in DEVICE_NUMBERS]
    assert not trained.told.failed.any()


@pytest.mark.parametrize("vectorised", [False, True])
def test_units_trained_apart_and_merged_in_any_order_are_the_cohort_trained_at_once(vectorised: bool) -> None:
    work, devices = workload(MLP, vectorised, units_of=2), [5, 0, 3, 6, 1, 2, 4]
    worker = Worker(work, held())
    whole = worker.train(1, WEIGHTS, devices)
    units = [[devices[place] for place in places] for places in cut(len(devices), 2)]
    other = Worker(work, held())
    parts = [other.train(1, WEIGHTS, unit) for unit in reversed(units)]
    for name in ("loss", "norm", "examples", "failed"):
        apart = np.concatenate([getattr(part.told, name) for part in reversed(parts)])
        assert apart.tobytes() == getattr(whole.told, name).tobytes()
    total = merge([part.total for part in parts])
    assert pack(total) == pack(whole.total)


def test_only_the_examples_of_the_cohort_are_loaded_each_once() -> None:
    dataset = held()
    Worker(workload(MLP), dataset).train(1, WEIGHTS, DEVICE_NUMBERS)
    assert dataset.loaded == DEVICE_NUMBERS


def test_nobody_came() -> None:
    trained = Worker(workload(MLP), held()).train(1, WEIGHTS, [])
    assert not any(summed(trained))
    assert len(trained.told.loss) == len(trained.told.examples) == 0


def test_accuracy_and_loss_are_those_of_all_held_out_examples() -> None:
    engine = Serial(workload(MLP), held())
    tested = engine.test(WEIGHTS)
    model = FlatModel(lookup("digits-mlp"))
    model.assign(WEIGHTS)
    assert len(held_out_units(held())) == 3
    assert tested.examples == len(HELD_OUT)
    assert tested.accuracy == pytest.approx(model.accuracy(HELD_OUT.features, HELD_OUT.labels), abs=1e-12)
    assert tested.loss == pytest.approx(reference.loss("digits-mlp", WEIGHTS, HELD_OUT.features, HELD_OUT.labels), rel=1e-5)


def test_testing_leaves_no_trace_in_training() -> None:
    worker = Worker(workload(MLP), held())
    before = pack(worker.train(1, WEIGHTS, [0, 1]).total)
    worker.test(some_weights(2410) * 3, range(10, 20))
    assert pack(worker.train(1, WEIGHTS, [0, 1]).total) == before


def test_a_saved_model_is_trained(tmp_path: Path) -> None:
    path = tmp_path / "small.keras"
    keras.utils.set_random_seed(1)
    keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, activation="softmax")]).save(path)
    plan = replace(LOGISTIC, model=add_saved(path).name)
    trained = Worker(replace(workload(plan), model_file=path), held()).train(1, some_weights(650), [1])
    assert summed(trained) == as_a_device(plan, some_weights(650), DEVICES[1]).tolist()


def test_a_loss_of_a_layer_s_own_is_refused_where_many_are_trained_at_once(tmp_path: Path) -> None:
    path = tmp_path / "regularized.keras"
    keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, kernel_regularizer="l2")]).save(path)
    work = replace(workload(replace(LOGISTIC, model=add_saved(path).name)), model_file=path)
    assert not Worker(work, held()).train(1, some_weights(650), [1]).told.failed.any()
    with pytest.raises(EngineError, match="a loss of their own"):
        Worker(replace(work, vectorised=True), held())
    with pytest.raises(DataError, match=r"engine.vectorised: keras:.* a loss of their own"):
        check_vectorised(add_saved(path))


def refused_data(features: np.ndarray, labels: np.ndarray) -> str:
    dataset = held()
    dataset.held_out = Examples(features, labels)
    with pytest.raises(DataError) as caught:
        Worker(workload(LOGISTIC), dataset)
    return str(caught.value)


def test_examples_that_the_model_does_not_take_are_refused_before_training() -> None:
    sound = HELD_OUT.features[:2], HELD_OUT.labels[:2]
    assert "float32 of shape (8, 8)" in refused_data(sound[0].reshape(-1, 8, 8), sound[1])
    assert "int32 of shape (64,)" in refused_data(sound[0].astype(np.int32), sound[1])
    assert "classes 0 to 9" in refused_data(sound[0], np.array([0, 10], dtype=np.int32))
    assert "classes 0 to 9" in refused_data(sound[0], np.array([0, -1], dtype=np.int32))


@pytest.mark.parametrize(
    ("plan", "message"),
    [(replace(LOGISTIC, model="none-such"), "known models"), (replace(LOGISTIC, size=651), "650 weights is not the plan's")],
)
def test_a_model_that_is_not_the_plan_s_is_refused(plan: object, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Worker(workload(plan), held())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weights", "vectorised", "size"),
    [(650, True, 128), (100_000, True, 8), (650, False, 32), (1_206_590, False, 32), (5_000_000, True, 1)],
)
def test_a_unit_that_is_trained_together_is_smaller_the_larger_the_model(weights: int, vectorised: bool, size: int) -> None:
    assert unit_size(weights, vectorised) == size


SEVERAL_THREADS = """
import tensorflow as tf
tf.constant(1.0) + 1.0
from fedrho.simulations.engines.base import EngineError
from fedrho.simulations.engines.serial import Serial
from tests.simulations.held import LOGISTIC, held, workload
try:
    Serial(workload(LOGISTIC), held())
except EngineError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_process_where_tensorflow_has_begun_with_many_threads_is_refused() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in THREADS}
    found = subprocess.run([sys.executable, "-c", SEVERAL_THREADS], capture_output=True, text=True, check=True, env=environment)
    assert "more than one thread; start the simulation in a process of its own" in found.stdout
