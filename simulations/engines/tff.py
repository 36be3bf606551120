"""The engine `tff`: TensorFlow Federated as a runtime of its own, with none of our training code, to check ours against.

One round is one federated computation: weights at the server are broadcast, every client trains, clips and puts its update on the
grid, and the runtime adds the integers. It runs where TensorFlow Federated does, with an older TensorFlow: its results agree with
those of the other engines to rounding, not to the bit.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from fedrho.models.base import ModelSpec, Outputs
from fedrho.models.zoo import lookup
from fedrho.privacy.clipping import SHRINK
from fedrho.privacy.vectors import ClippedSum, FloatVector, Grid
from fedrho.protos.messages import RoundPlan
from fedrho.simulations.data.base import FederatedDataset
from fedrho.simulations.engines.base import TESTED_AT_ONCE, EngineError, Tested, Told, Trained, Workload, cut, joined
from fedrho.simulations.engines.dispatch import checked, empty_sum
from fedrho.simulations.engines.member import OpenData

HOW_TO_GET_IT: Final = (
    "the engine 'tff' needs TensorFlow Federated, which has wheels for Python 3.11 alone and wants a TensorFlow of its own: "
    "install fedrho[tff] in an environment of Python 3.11"
)
WORKER: Final = "worker_binary"


class Federated:
    """Raises EngineError where TensorFlow Federated is not installed, and for local optimizers other than plain SGD."""

    name = "tff"

    def __init__(self, work: Workload, *, dataset: FederatedDataset | None = None, open_data: OpenData) -> None:
        if work.plan.optimizer not in ("", "sgd") or work.plan.momentum:
            raise EngineError("the engine 'tff' trains with plain SGD: set local.optimizer to 'sgd', without momentum")
        self._work = work
        self._tff = _tff()
        self._spec = _spec(work)
        self._dataset = dataset or open_data(work.data)
        before = runtime_processes()
        self._context = self._tff.backends.native.create_sync_local_cpp_execution_context()
        self._round = _federated_round(self._tff, self._spec, work)
        self._evaluated = _evaluation(self._spec, work.plan.size)
        self._own = runtime_processes() - before

    def train(self, step: int, weights: FloatVector, devices: Sequence[int]) -> Trained:
        checked(weights, self._work)
        if not devices:
            return Trained(empty_sum(self._work), Told(np.zeros(0), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.bool_)))
        plan = replace(self._work.plan, step=step)
        with self._running():
            total, told = self._round(weights, [self._examples(plan, device) for device in devices])
        counts = [self._dataset.count(device) for device in devices]
        return Trained(
            ClippedSum(np.array(total, dtype=np.int64), self._work.grid),
            Told(
                np.array([float(one["loss"]) for one in told]),
                np.array([float(one["norm"]) for one in told]),
                np.array(counts, dtype=np.int64),
                np.array([bool(one["failed"]) for one in told]),
            ),
        )

    def test(self, weights: FloatVector) -> Tested:
        held_out = self._dataset.held_out
        units = cut(len(held_out), TESTED_AT_ONCE) if self._spec.label_shape else [range(len(held_out))]
        return joined([self._tested(checked(weights, self._work), slice(unit.start, unit.stop)) for unit in units])

    def _tested(self, weights: FloatVector, chosen: slice) -> Tested:
        features, labels = self._dataset.held_out.features[chosen], self._dataset.held_out.labels[chosen]
        correct, counted, loss = self._evaluated(weights, features, labels)
        return Tested(int(correct), len(labels), float(loss), int(counted))

    def close(self) -> None:
        """TensorFlow Federated signals its worker process, which may live on; so it is dead before that happens."""
        for pid in self._own:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self._own = set()
        self._context = self._round = None
        gc.collect()

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Inside, computations run in this engine's runtime, whose process starts with the first of them."""
        before = runtime_processes()
        try:
            with self._tff.framework.get_context_stack().install(self._context):
                yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:
            raise EngineError(f"TensorFlow Federated failed: {' '.join(str(error).split())[:400]}") from error
        finally:
            self._own |= runtime_processes() - before

    def _examples(self, plan: RoundPlan, device: int) -> tuple[Any, Any, Any]:
        """All batches behind one another, and where each begins and the last one ends; the runtime takes no ragged sequences."""
        from fedrho.client.examples import ArrayExamples, batches

        held = self._work.told(device, self._dataset.examples(device), _spec(self._work).classes)
        made = list(batches(plan, ArrayExamples(held.features, held.labels)))
        ends = np.cumsum([0, *(len(batch.labels) for batch in made)], dtype=np.int32)
        return np.concatenate([batch.features for batch in made]), np.concatenate([batch.labels for batch in made]), ends


def _federated_round(tff: Any, spec: ModelSpec, work: Workload) -> Any:
    weights_type = tff.TensorType(np.float32, [work.plan.size])
    examples_type = tff.StructType(
        [
            tff.TensorType(np.dtype(spec.input_dtype).type, [None, *spec.input_shape]),
            tff.TensorType(np.int32, [None, *spec.label_shape]),
            tff.TensorType(np.int32, [None]),
        ]
    )

    @tff.tensorflow.computation(weights_type, examples_type)  # type: ignore[untyped-decorator]
    def local_work(weights: Any, examples: Any) -> Any:
        return _LocalWork(spec, work).run(weights, examples[0], examples[1], examples[2])

    @tff.federated_computation(  # type: ignore[untyped-decorator]
        tff.FederatedType(weights_type, tff.SERVER), tff.FederatedType(examples_type, tff.CLIENTS)
    )
    def one_round(weights: Any, examples: Any) -> Any:
        worked = tff.federated_map(local_work, (tff.federated_broadcast(weights), examples))
        return tff.federated_sum(worked[0]), worked[1]

    return one_round


class _LocalWork:
    """Of one client, as TensorFlow operations: plain SGD over its batches, then what `privacy.clipping.clip` does."""

    def __init__(self, spec: ModelSpec, work: Workload) -> None:
        from fedrho.models.backend import tf

        self._tf, self._work = tf, work
        self._model = spec.build()
        self._loss = _loss_of(spec)

    def run(self, weights: Any, features: Any, labels: Any, ends: Any) -> Any:
        return self._tf.function(self._run, autograph=False)(weights, features, labels, ends)

    def _run(self, weights: Any, features: Any, labels: Any, ends: Any) -> Any:
        """The update on the grid, and what is told of it; batch i reaches from ends[i] to ends[i + 1]."""
        tf = self._tf
        _assign(tf, self._model.trainable_variables, weights)

        def step(number: Any, losses: Any) -> Any:
            batch = slice(ends[number], ends[number + 1])
            return number + 1, losses + self._sgd_step(features[batch], labels[batch])

        steps = tf.size(ends) - 1

        def on(number: Any, losses: Any) -> Any:
            return tf.logical_and(number < steps, tf.math.is_finite(losses))

        _, losses = tf.while_loop(on, step, (0, 0.0), parallel_iterations=1)
        update = tf.concat([tf.reshape(one, [-1]) for one in self._model.trainable_variables], 0) - weights
        failed = tf.logical_not(tf.logical_and(tf.math.is_finite(losses), tf.reduce_all(tf.math.is_finite(update))))
        wide = tf.where(failed, tf.zeros_like(update, tf.float64), tf.cast(update, tf.float64))
        told = {"loss": losses / tf.cast(steps, tf.float32), "norm": tf.norm(wide), "failed": failed}
        return self._on_grid(wide, told["norm"], self._work.grid), told

    def _sgd_step(self, features: Any, labels: Any) -> Any:
        """Changes the weights; the batch's mean loss before it."""
        tf = self._tf
        with tf.GradientTape() as tape:
            loss = self._loss(labels, self._model(features, training=True))
            if self._model.losses:
                loss += tf.add_n(self._model.losses)
        variables = self._model.trainable_variables
        for variable, gradient in zip(variables, tape.gradient(loss, variables, unconnected_gradients="zero"), strict=True):
            variable.assign_sub(self._work.plan.learning_rate * tf.convert_to_tensor(gradient))  # of an embedding a sparse one
        return loss

    def _on_grid(self, wide: Any, norm: Any, grid: Grid) -> Any:
        tf = self._tf
        factor = tf.where(norm > 0, tf.minimum(tf.constant(1.0, tf.float64), grid.clip_norm / norm) / grid.unit, 0.0)

        def truncated(factor: Any) -> Any:
            return tf.sign(wide) * tf.floor(tf.abs(wide * factor))

        def too_long(factor: Any) -> Any:
            return tf.reduce_sum(tf.square(truncated(factor))) > float(grid.radius) ** 2

        (factor,) = tf.while_loop(too_long, lambda factor: (factor * SHRINK,), (factor,))
        return tf.cast(truncated(factor), tf.int64)


def _evaluation(spec: ModelSpec, size: int) -> Any:
    """Correct answers, of how many labels that count, and their mean loss under weights, on features and labels."""
    from fedrho.models.backend import tf

    model, loss_of = spec.build(), _loss_of(spec)

    def measured(weights: Any, features: Any, labels: Any) -> Any:
        _assign(tf, model.trainable_variables, weights)
        outputs = model(features, training=False)
        counts = labels >= spec.ignored
        right = tf.logical_and(counts, tf.equal(tf.argmax(outputs, axis=-1, output_type=tf.int32), labels))
        return tf.reduce_sum(tf.cast(right, tf.int64)), tf.reduce_sum(tf.cast(counts, tf.int64)), loss_of(labels, outputs)

    return tf.function(measured, autograph=False)


def _loss_of(spec: ModelSpec) -> Any:
    """Of labels and outputs: Keras's mean cross-entropy, where some labels do not count with a weight of 0 for those."""
    from fedrho.models.backend import keras, tf

    logits = spec.outputs is Outputs.LOGITS
    if spec.one_label:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)

    def mean(labels: Any, outputs: Any) -> Any:
        weights = tf.cast(labels >= spec.ignored, tf.float32)
        losses = keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=logits)
        return tf.reduce_sum(weights * losses) / tf.maximum(tf.reduce_sum(weights), 1.0)

    return mean


def _assign(tf: Any, variables: Sequence[Any], weights: Any) -> None:
    pieces = tf.split(weights, [int(np.prod(variable.shape)) for variable in variables])
    for variable, piece in zip(variables, pieces, strict=True):
        variable.assign(tf.reshape(piece, variable.shape))


def _spec(work: Workload) -> ModelSpec:
    if work.model_file is not None:
        raise EngineError("the engine 'tff' takes models by name: a saved .keras file belongs to a newer Keras than its own")
    return lookup(work.plan.model)


def _tff() -> Any:
    try:
        import tensorflow_federated
    except ImportError as error:
        raise EngineError(HOW_TO_GET_IT) from error
    return tensorflow_federated


def runtime_processes() -> set[int]:
    """Processes of its runtime that this process started."""
    import psutil

    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if child.name() == WORKER:
                found.add(child.pid)
    return found
