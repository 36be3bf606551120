"""A device's examples in the batches of a plan: each once an epoch, in an order of its own in every step."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrho.client.examples import ArrayExamples, Batch
from fedrho.protos.messages import RoundPlan
from tests.client.fleet import plan


def numbered(count: int) -> ArrayExamples:
    """Example i has the features (i, -i) and the label i."""
    number = np.arange(count)
    return ArrayExamples(np.stack([number, -number], axis=1).astype(np.float32), number.astype(np.int32))


def order(examples: ArrayExamples, wanted: RoundPlan) -> list[int]:
    return [int(label) for batch in examples.batches(wanted) for label in batch.labels]


@settings(deadline=None)
@given(
    count=st.integers(1, 40), batch=st.integers(1, 50), epochs=st.integers(1, 3), most=st.integers(0, 50), step=st.integers(1, 9)
)
def test_each_epoch_holds_each_example_once_up_to_the_limit(count: int, batch: int, epochs: int, most: int, step: int) -> None:
    wanted = plan(batch_size=batch, epochs=epochs, max_examples=most, step=step)
    used = min(count, most) if most else count
    batches = list(numbered(count).batches(wanted))
    sizes = [len(one.labels) for one in batches]
    assert sizes == ([batch] * (used // batch) + [used % batch] * bool(used % batch)) * epochs
    seen = order(numbered(count), wanted)
    for epoch in range(epochs):
        labels = seen[epoch * used : (epoch + 1) * used]
        assert len(set(labels)) == used
        assert set(labels) <= set(range(count))


def test_features_stay_with_their_labels() -> None:
    for batch in numbered(30).batches(plan(epochs=2)):
        assert batch.features.tolist() == [[label, -label] for label in batch.labels.tolist()]
        assert (batch.features.dtype, batch.labels.dtype) == (np.dtype(np.float32), np.dtype(np.int32))


def test_order_is_the_same_for_the_same_step_and_another_in_each_step_and_epoch() -> None:
    examples = numbered(30)
    assert order(examples, plan(step=3, attempt=2)) == order(numbered(30), plan(step=3))
    orders = [tuple(order(examples, plan(step=step))) for step in range(1, 6)]
    both = order(examples, plan(step=1, epochs=2))
    assert len({*orders, tuple(both[30:])}) == 6
    assert tuple(both[:30]) == orders[0]


def test_limit_takes_other_examples_in_another_step() -> None:
    examples = numbered(30)
    chosen = [frozenset(order(examples, plan(step=step, max_examples=10))) for step in range(1, 6)]
    assert len(set(chosen)) == 5


def test_training_cannot_change_the_examples() -> None:
    examples = numbered(10)
    before = order(examples, plan())
    for batch in examples.batches(plan()):
        batch.features[:], batch.labels[:] = 0.0, 0
    assert order(examples, plan()) == before


def test_batches_of_any_input_shape_keep_it() -> None:
    examples = ArrayExamples(np.zeros((5, 8, 8, 1), dtype=np.float32), np.zeros(5, dtype=np.int32))
    assert [batch.features.shape for batch in examples.batches(plan())] == [(4, 8, 8, 1), (1, 8, 8, 1)]
    assert all(isinstance(batch, Batch) for batch in examples.batches(plan()))


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (np.zeros((0, 2)), np.zeros(0)),
        (np.zeros((3, 2)), np.zeros(2)),
        (np.zeros((3, 2)), np.zeros((3, 1))),
        (np.full((1, 2), math.nan), np.zeros(1)),
        (np.array([[0.0, math.inf]]), np.zeros(1)),
        (np.array([[0.0, -math.inf]]), np.zeros(1)),
    ],
)
def test_arrays_that_are_not_examples_of_one_device_are_refused(features: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"not examples of one device|NaN or infinite"):
        ArrayExamples(features.astype(np.float32), labels.astype(np.int32))


@pytest.mark.filterwarnings("ignore:overflow")
def test_number_that_only_float64_can_hold_is_refused_as_infinite() -> None:
    wide: np.ndarray = np.full((1, 2), 1e300)
    with pytest.raises(ValueError, match="NaN or infinite"):
        ArrayExamples(wide, np.zeros(1, dtype=np.int32))
