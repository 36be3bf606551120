"""One compiled call a client, or one for many: local training, the norm, the clip and the grid, in one `tf.function` each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedrho.client.examples import orders
from fedrho.models.backend import tf
from fedrho.models.compiled import Measured, WholeTraining
from fedrho.models.flat import FlatModel
from fedrho.models.optimizers import LocalOptimizer
from fedrho.models.vectorised import StackedTraining
from fedrho.privacy.vectors import FloatVector, Grid
from fedrho.protos.messages import RoundPlan
from fedrho.simulations.data.base import Answered, Examples
from fedrho.simulations.gridding import clipped_rows

Indices = NDArray[np.int32]
Shares = NDArray[np.float32]
FLAT = (None,)
BATCHES = (None, None)


@dataclass(frozen=True, eq=False)
class Outcome:
    """Of some clients, in their order: rows on the grid, mean losses, norms before the clip, and whose training failed.

    A failed client's row is zeros, its norm 0 and its loss NaN.
    """

    rows: NDArray[np.int32]
    loss: NDArray[np.float64]
    norm: NDArray[np.float64]
    failed: NDArray[np.bool_]

    def ordered(self, order: NDArray[np.int64]) -> Outcome:
        return Outcome(self.rows[order], self.loss[order], self.norm[order], self.failed[order])


class Compiled:
    """TensorFlow operations as one call, traced once, here, for arguments of any size.

    Going past `tf.function`'s own look at the arguments saves half of what a call of a small model costs.
    """

    def __init__(self, operations: Callable[..., Any], signature: list[tf.TensorSpec]) -> None:
        self._types = [spec.dtype for spec in signature]
        self._call = tf.function(operations, input_signature=signature, autograph=False).get_concrete_function()

    def __call__(self, *arguments: NDArray[Any] | tf.Tensor) -> Any:
        return self._call(*map(tf.constant, arguments, self._types))


class Training(Protocol):
    def __call__(self, step: int, weights: FloatVector, clients: Sequence[Examples | Answered]) -> list[Outcome]: ...


class Schedule:
    """Which of a device's examples are in which batch: batch k is `order[ends[k]:ends[k + 1]]`."""

    def __init__(self, batches: list[NDArray[np.int64]]) -> None:
        counts = [len(batch) for batch in batches]
        self.order: Indices = np.concatenate(batches).astype(np.int32)
        self.ends: Indices = np.cumsum([0, *counts], dtype=np.int32)
        self.steps, self.largest = len(counts), max(counts)

    def filled(self, batch: int) -> tuple[Indices, Shares]:
        """Places and shares of shape (steps, batch); a batch is filled up with its own first example, of share 0."""
        counts = np.diff(self.ends)
        columns = np.arange(batch, dtype=np.int32)
        there = columns < counts[:, None]
        places = self.order[self.ends[:-1, None] + np.where(there, columns, 0)]
        return places, (there / counts[:, None]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Stack:
    """The batches of many devices, as `StackedTraining` takes them; `order` are the devices' places, most steps first."""

    order: NDArray[np.int64]
    places: Indices
    shares: Shares
    starts: Indices


class Schedules:
    """The batches of a step for devices of any count, those of `client.examples.orders`; made once a count."""

    def __init__(self, plan: RoundPlan) -> None:
        self._plan = replace(plan, epochs=plan.local_steps or plan.epochs)
        self._steps = plan.local_steps or None
        self._found: dict[int, Schedule] = {}

    def begin(self, step: int) -> None:
        """Forgets those of another step."""
        if step != self._plan.step:
            self._plan, self._found = replace(self._plan, step=step), {}

    def of(self, count: int) -> Schedule:
        if count not in self._found:
            self._found[count] = Schedule(list(islice(orders(count, self._plan), self._steps)))
        return self._found[count]

    def stacked(self, counts: NDArray[np.int64]) -> Stack:
        """Of devices whose examples are joined in this order; batches are as large as the largest needs."""
        schedules = [self.of(count) for count in counts.tolist()]
        largest = max(schedule.largest for schedule in schedules)
        filled = {count: self.of(count).filled(largest) for count in set(counts.tolist())}
        steps = np.array([schedule.steps for schedule in schedules])
        order = np.argsort(-steps, kind="stable")
        offsets = np.repeat((np.cumsum(counts) - counts)[order], steps[order]).astype(np.int32)
        places, shares = (np.concatenate([filled[count][kind] for count in counts[order].tolist()]) for kind in (0, 1))
        step = np.concatenate([np.arange(count) for count in steps[order]])
        by_step = np.argsort(step, kind="stable")
        starts = np.cumsum([0, *np.bincount(step)], dtype=np.int32)
        return Stack(order, (places + offsets[:, None])[by_step], shares[by_step], starts)


class OneByOne:
    """One compiled call a client; the same bits as a device of its own, which is `LocalTrainer` and `clip`."""

    def __init__(self, model: FlatModel, plan: RoundPlan, grid: Grid) -> None:
        self._schedules = Schedules(plan)
        self._training = WholeTraining(model, _optimizer(plan))
        self._grid = grid
        flat = tf.TensorSpec((model.size,), tf.float32, "weights")
        indices = [tf.TensorSpec(FLAT, tf.int32, name) for name in ("order", "ends")]
        self._call = Compiled(self._traced, [flat, *model.batch_of, *indices])

    def __call__(self, step: int, weights: FloatVector, clients: Sequence[Examples | Answered]) -> list[Outcome]:
        self._schedules.begin(step)
        start = tf.constant(weights)
        return [self._one(start, client) for client in clients]

    def _one(self, start: tf.Tensor, client: Examples | Answered) -> Outcome:
        schedule = self._schedules.of(len(client))
        try:
            found = self._call(start, client.features, client.labels, schedule.order, schedule.ends)
        except tf.errors.InvalidArgumentError:  # labels or ids that the model has not: a device uploads zeros then
            return _nothing(int(start.shape[0]))
        return _outcome(found)

    def _traced(self, weights: Any, features: Any, labels: Any, order: Any, ends: Any) -> Any:
        update, loss = self._training(weights, features, labels, order, ends)
        return clipped_rows(update[None], self._grid), loss[None]


class AllAtOnce:
    """One compiled call for all clients that it is given together; falls back to one a client where that call is refused."""

    def __init__(self, model: FlatModel, plan: RoundPlan, grid: Grid) -> None:
        self._model, self._plan = model, plan
        self._schedules = Schedules(plan)
        self._training = StackedTraining(model, _optimizer(plan))
        self._grid = grid
        flat = tf.TensorSpec((model.size,), tf.float32, "weights")
        batches = [tf.TensorSpec(BATCHES, tf.int32, "places"), tf.TensorSpec(BATCHES, tf.float32, "shares")]
        self._call = Compiled(self._traced, [flat, *model.batch_of, *batches, tf.TensorSpec(FLAT, tf.int32, "starts")])

    def __call__(self, step: int, weights: FloatVector, clients: Sequence[Examples | Answered]) -> list[Outcome]:
        self._schedules.begin(step)
        features = np.concatenate([client.features for client in clients])
        labels = np.concatenate([client.labels for client in clients])
        stack = self._schedules.stacked(np.array([len(client) for client in clients]))
        try:
            found = _outcome(self._call(weights, features, labels, stack.places, stack.shares, stack.starts))
            return [found.ordered(np.argsort(stack.order))]
        except tf.errors.InvalidArgumentError:  # one has labels or ids that the model has not
            return self._single(step, weights, clients)

    @cached_property
    def _single(self) -> OneByOne:
        return OneByOne(self._model, self._plan, self._grid)

    def _traced(self, weights: Any, features: Any, labels: Any, *batches: Any) -> Any:
        updates, losses = self._training(weights, features, labels, batches)
        return clipped_rows(updates, self._grid), losses


class Measuring:
    """One compiled call for a unit of held-out examples."""

    def __init__(self, model: FlatModel) -> None:
        flat = tf.TensorSpec((model.size,), tf.float32, "weights")
        self._call = Compiled(Measured(model), [flat, *model.tested_of])

    def __call__(self, weights: FloatVector, examples: Examples) -> tuple[int, int, float]:
        """How many were right, of how many labels that count, and the mean loss of those."""
        right, counted, loss = self._call(weights, examples.features, examples.labels)
        return int(right), int(counted), float(loss)


def _optimizer(plan: RoundPlan) -> LocalOptimizer:
    return LocalOptimizer(plan.optimizer, plan.learning_rate, plan.momentum)


def _outcome(found: Any) -> Outcome:
    (rows, norms, failed), losses = found
    lost = failed.numpy()
    return Outcome(rows.numpy(), np.where(lost, np.nan, losses.numpy()), norms.numpy(), lost)


def _nothing(size: int) -> Outcome:
    return Outcome(np.zeros((1, size), np.int32), np.full(1, np.nan), np.zeros(1), np.ones(1, np.bool_))
