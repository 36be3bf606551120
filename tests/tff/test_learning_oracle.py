"""Our task on our engines against TensorFlow Federated: its runtime, and its own federated averaging on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrho.client.examples import orders
from fedrho.models import base
from fedrho.models.base import ModelSpec
from fedrho.models.zoo import lookup
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import ClippedSum, FloatVector, Grid, Released, add_noise
from fedrho.simulations.data.base import Examples
from fedrho.simulations.engines.base import EngineError, Workload
from fedrho.simulations.engines.choose import start_engine
from fedrho.simulations.engines.serial import Serial
from fedrho.simulations.engines.tff import Federated, runtime_processes
from tests.models.test_counting import EVERY_PLACE, ONE, texts
from tests.privacy.dense import SeededNoise
from tests.simulations.engines.small import Made, bits, cohort, open_made, opened, weights_of, workload
from tests.simulations.held import LOGISTIC, Held
from tests.simulations.held import workload as held_workload

pytestmark = pytest.mark.tff

SOUND = [device for device in cohort(7, 40) if device % 10 != 7][:12]
"""Devices whose training does not diverge."""
STEPS = 3


@pytest.fixture(scope="module", params=["digits-logistic", "digits-mlp"])
def work(request: pytest.FixtureRequest) -> Workload:
    return workload(request.param)


@pytest.fixture(scope="module")
def runtime(work: Workload, tff: Any) -> Iterator[Federated]:
    engine = start_engine("tff", work, open_data=open_made)
    assert isinstance(engine, Federated)
    yield engine
    engine.close()


def test_its_runtime_and_our_serial_engine_agree_to_rounding(work: Workload, runtime: Federated) -> None:
    """A truncation that falls to the other side makes one unit; few coordinates of few devices do, among 80 devices."""
    serial = Serial(work, Made())
    for step in range(2):
        weights, devices = weights_of(work.plan.model, step), cohort(step, 80)
        ours, theirs = serial.train(step, weights, devices), runtime.train(step, weights, devices)
        np.testing.assert_allclose(opened(ours.total), opened(theirs.total), rtol=0, atol=4)
        np.testing.assert_array_equal(ours.told.failed, theirs.told.failed)
        assert 0 < ours.told.failed.sum() < 80
        assert (ours.told.norm > work.grid.clip_norm).any()
        sound = ~ours.told.failed
        np.testing.assert_allclose(ours.told.norm, theirs.told.norm, rtol=1e-5)
        np.testing.assert_allclose(ours.told.loss[sound], theirs.told.loss[sound], rtol=1e-5)
        np.testing.assert_array_equal(ours.told.examples, theirs.told.examples)
    ours_tested, theirs_tested = serial.test(weights), runtime.test(weights)
    assert ours_tested.correct == theirs_tested.correct
    assert ours_tested.loss == pytest.approx(theirs_tested.loss, rel=1e-5)


@pytest.mark.parametrize("spec", [EVERY_PLACE, ONE], ids=["a label at every place", "labels that do not count"])
def test_it_counts_the_same_labels(spec: ModelSpec, tff: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base._REGISTRY, spec.name, spec)
    devices = [Examples(*texts(spec, count, seed)) for seed, count in enumerate((1, 3, 9, 17))]
    held, weights = Held(devices, Examples(*texts(spec, 1500, 99))), weights_of("digits-logistic")[:49]
    work = held_workload(replace(LOGISTIC, model=spec.name, size=49, epochs=2))
    ours, theirs = Serial(work, held), Federated(work, dataset=held, open_data=open_made)
    one, other = ours.train(1, weights, range(4)), theirs.train(1, weights, range(4))
    np.testing.assert_allclose(opened(one.total), opened(other.total), rtol=0, atol=8)
    np.testing.assert_allclose(one.told.loss, other.told.loss, rtol=1e-5)
    tested, again = ours.test(weights), theirs.test(weights)
    assert (tested.correct, tested.counted, tested.examples) == (again.correct, again.counted, again.examples)
    assert tested.loss == pytest.approx(again.loss, rel=1e-5)
    theirs.close()


def test_a_round_without_devices_is_a_sum_of_zeros(work: Workload, runtime: Federated) -> None:
    assert bits(runtime.train(0, weights_of(work.plan.model), [])) == ([0] * work.plan.size, b"", b"", [], [])


def test_its_process_ends_with_the_engine(tff: Any) -> None:
    before, engine = runtime_processes(), Federated(workload(), open_data=open_made)
    engine.train(0, weights_of(), [8])
    assert len(runtime_processes() - before) == 1
    engine.close()
    assert runtime_processes() == before


def test_what_it_cannot_train_is_one_line(tff: Any) -> None:
    asked = workload()
    with pytest.raises(
        EngineError, match=r"^the engine 'tff' trains with plain SGD: set local.optimizer to 'sgd', without momentum$"
    ):
        Federated(replace(asked, plan=replace(asked.plan, momentum=0.9)), open_data=open_made)


def client_data(tf: Any, work: Workload, step: int, device: int) -> Any:
    """The same batches in the same order as those of `ArrayExamples`, as TFF takes them."""
    examples, plan = Made().examples(device), replace(work.plan, step=step)
    made = None
    for chosen in orders(len(examples), plan):
        batch = tf.data.Dataset.from_tensors((examples.features[chosen], examples.labels[chosen]))
        relaxed = batch.unbatch().batch(plan.batch_size)
        made = relaxed if made is None else made.concatenate(relaxed)
    return made


def federated_averaging(tf: Any, tff: Any, work: Workload, aggregator: Any) -> list[FloatVector]:
    """The weights after every round of `tff.learning`."""
    spec = lookup(work.plan.model)

    def model_fn() -> Any:
        return tff.learning.models.from_keras_model(
            spec.build(),
            loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            input_spec=(tf.TensorSpec([None, *spec.input_shape]), tf.TensorSpec([None], tf.int32)),
        )

    process = tff.learning.algorithms.build_unweighted_fed_avg(
        model_fn,
        client_optimizer_fn=tff.learning.optimizers.build_sgdm(work.plan.learning_rate),
        server_optimizer_fn=tff.learning.optimizers.build_sgdm(1.0),
        model_aggregator=aggregator,
    )
    state = process.initialize()
    found = process.get_model_weights(state)
    start = split(weights_of(work.plan.model), [np.shape(one) for one in found.trainable])
    state = process.set_model_weights(state, tff.learning.models.ModelWeights(start, found.non_trainable))
    weights = []
    for step in range(STEPS):
        state = process.next(state, [client_data(tf, work, step, device) for device in SOUND]).state
        trained = process.get_model_weights(state).trainable
        weights.append(np.concatenate([np.reshape(one, -1) for one in trained]).astype(np.float32))
    return weights


def our_averaging(work: Workload, release: Callable[[ClippedSum], Released]) -> list[FloatVector]:
    engine, weights, found = Serial(work, Made()), weights_of(work.plan.model), []
    for step in range(STEPS):
        trained = engine.train(step, weights, SOUND)
        assert not trained.told.failed.any()
        weights = (weights + release(trained.total).mean(len(SOUND))).astype(np.float32)
        found.append(weights)
    return found


def split(flat: FloatVector, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    return [piece.reshape(shape) for piece, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]


def exactly(total: ClippedSum) -> Released:
    return add_noise(total, np.zeros(total.size, dtype=np.int64))


def agree(ours: list[FloatVector], theirs: list[FloatVector], grid: Grid, noise: float = 0.0) -> None:
    """A grid unit a round for the truncation, `noise` for that of noise, and what float32 loses in the steps."""
    for rounds, (one, other) in enumerate(zip(ours, theirs, strict=True), 1):
        np.testing.assert_allclose(one, other, rtol=0, atol=rounds * (grid.unit + noise + 1e-6))
    assert np.abs(ours[-1] - ours[0]).max() > 1e-3


def on_grid(work: Workload, grid: Grid) -> Workload:
    return replace(work, grid=grid, plan=replace(work.plan, clip_norm=grid.clip_norm, grid_bits=grid.bits))


def test_federated_averaging_is_that_of_tff_learning(tf: Any, tff: Any, work: Workload) -> None:
    """No update is as long as the clip norm."""
    asked = on_grid(work, Grid(8.0, 24))
    agree(our_averaging(asked, exactly), federated_averaging(tf, tff, asked, tff.aggregators.UnweightedMeanFactory()), asked.grid)


@pytest.mark.parametrize("kind", ["clipping_factory", "zero noise"])
def test_clipped_averaging_is_that_of_tff_learning(tf: Any, tff: Any, work: Workload, kind: str) -> None:
    """Every update is longer than the clip norm."""
    asked = on_grid(work, Grid(0.05, 20))
    if kind == "clipping_factory":
        aggregator = tff.aggregators.clipping_factory(0.05, tff.aggregators.UnweightedMeanFactory())
    else:
        aggregator = tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(0.0, len(SOUND), 0.05)
    agree(our_averaging(asked, exactly), federated_averaging(tf, tff, asked, aggregator), asked.grid)


def test_dp_ftrl_is_that_of_tff_learning_with_equal_noise(tf: Any, tff: Any, work: Workload) -> None:
    """Federated averaging over tree aggregation, from local training to weights, with the same noise in every node."""
    queries = pytest.importorskip("tensorflow_privacy.privacy.dp_query.tree_aggregation_query")
    normalized = pytest.importorskip("tensorflow_privacy.privacy.dp_query.normalized_query")
    generators = pytest.importorskip("tensorflow_privacy.privacy.dp_query.tree_aggregation")
    asked, source = on_grid(work, Grid(0.05, 20)), SeededNoise("ftrl")
    tree = BinaryTree(asked.grid, 0.3)
    state = tree.init(asked.plan.size)

    def noisy(total: ClippedSum) -> Released:
        nonlocal state
        released, state = tree.release(total, state, source)
        return released

    ours = our_averaging(asked, noisy)
    nodes = [source.replayed().draw(node.name, asked.plan.size, tree.stddev)[0] * asked.grid.unit for node in source.drawn]
    # What they add noise to is the start minus the end, which their server subtracts.
    table = -np.vstack([*nodes, np.zeros((8, asked.plan.size))]).astype(np.float32)
    shapes = [tuple(variable.shape) for variable in lookup(asked.plan.model).build().trainable_variables]
    sizes = [int(np.prod(shape)) for shape in shapes]

    class GivenNoise(generators.ValueGenerator):  # type: ignore[misc, name-defined]
        def initialize(self) -> Any:
            return tf.constant(0)

        def next(self, state: Any) -> tuple[Any, Any]:
            pieces = tf.split(tf.gather(table, state), sizes)
            return [tf.reshape(piece, shape) for piece, shape in zip(pieces, shapes, strict=True)], state + 1

    query = queries.TreeResidualSumQuery(
        record_specs=[tf.TensorSpec(shape) for shape in shapes],
        noise_generator=GivenNoise(),
        clip_fn=lambda record, norm: tf.clip_by_global_norm(record, norm)[0],
        clip_value=0.05,
    )
    aggregator = tff.aggregators.DifferentiallyPrivateFactory(normalized.NormalizedQuery(query, float(len(SOUND))))
    agree(ours, federated_averaging(tf, tff, asked, aggregator), asked.grid, noise=2 * asked.grid.unit)
