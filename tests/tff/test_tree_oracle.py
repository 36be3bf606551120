"""Our tree against TensorFlow Privacy's, node for node, and against a run of TensorFlow Federated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedrho.privacy.clipping import clip
from fedrho.privacy.noise import NoiseSource
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.tree_sensitivity import Tree, forest_sensitivity, tree_sensitivity
from fedrho.privacy.vectors import ClippedSum, Grid, Update
from tests.privacy.dense import SeededNoise

pytestmark = pytest.mark.tff

STEPS, SIZE = 40, 5
TREE = BinaryTree(Grid(1.0, 10), 3.0)
ROUNDING = 0.01
"""float32 holds the integers here exactly; its divisions add up to less than this, in grid units."""


@pytest.fixture(scope="module")
def tree_aggregation(tf: Any) -> Any:
    return pytest.importorskip("tensorflow_privacy.privacy.dp_query.tree_aggregation")


def our_stream(totals: NDArray[np.int64], source: NoiseSource, tree: BinaryTree = TREE) -> NDArray[np.int64]:
    state, released = tree.init(totals.shape[1]), []
    for total in totals:
        out, state = tree.release(ClippedSum(total.copy(), tree.grid), state, source)
        released.append(out.vector)
    return np.array(released)


def totals_of(steps: int, size: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(9)).integers(-5000, 5000, (steps, size))


def given_noise(tf: Any, tree_aggregation: Any, vectors: NDArray[np.int64]) -> Any:
    """A generator of theirs whose state is the number of the next row of `vectors`; rows beyond the last one are zero."""
    table = np.vstack([vectors, np.zeros((64, vectors.shape[1]))]).astype(np.float32)

    class GivenNoise(tree_aggregation.ValueGenerator):  # type: ignore[misc]
        def initialize(self) -> Any:
            return tf.constant(0)

        def next(self, state: Any) -> tuple[Any, Any]:
            return tf.gather(table, state), state + 1

    return GivenNoise()


def node_noise(source: SeededNoise, size: int, stddev: float) -> NDArray[np.int64]:
    """What each node was given, in the order of drawing, which is the same on both sides: the leaf, then upward."""
    return np.array([source.replayed().draw(node.name, size, stddev)[0] for node in source.drawn])


def rounding_bound(steps: int) -> NDArray[np.float64]:
    """Half a unit for each block of the prefix at t, which are the set bits of t."""
    return np.array([t.bit_count() / 2 + ROUNDING for t in range(1, steps + 1)])[:, None]


def test_with_equal_node_noise_every_prefix_is_that_of_tf_privacy(tf: Any, tree_aggregation: Any) -> None:
    source = SeededNoise("oracle")
    ours = np.cumsum(our_stream(np.zeros((STEPS, SIZE), np.int64), source), axis=0)
    noise = node_noise(source, SIZE, TREE.stddev)
    aggregator = tree_aggregation.EfficientTreeAggregator(given_noise(tf, tree_aggregation, noise))
    state, theirs = aggregator.init_state(), []
    for _ in range(STEPS):
        prefix, state = aggregator.get_cumsum_and_update(state)
        theirs.append(prefix.numpy())
    assert np.all(np.abs(ours - np.array(theirs)) <= rounding_bound(STEPS))
    assert np.abs(ours).max() > 100 * rounding_bound(STEPS).max()


def test_with_equal_node_noise_every_release_is_that_of_the_residual_query(tf: Any, tree_aggregation: Any) -> None:
    queries = pytest.importorskip("tensorflow_privacy.privacy.dp_query.tree_aggregation_query")
    source, totals = SeededNoise("residuals"), totals_of(STEPS, SIZE)
    ours = our_stream(totals, source)
    query = queries.TreeResidualSumQuery(
        record_specs=tf.TensorSpec([SIZE]),
        noise_generator=given_noise(tf, tree_aggregation, node_noise(source, SIZE, TREE.stddev)),
        clip_fn=lambda record, _: record,
        clip_value=1.0,
    )
    state, theirs = query.initial_global_state(), []
    for total in totals:
        released, state, _ = query.get_noised_result(tf.constant(total, tf.float32), state)
        theirs.append(released.numpy())
    bound = rounding_bound(STEPS)
    assert np.all(np.abs(ours - np.array(theirs)) <= bound + np.vstack([[[0.0]], bound[:-1]]))


def test_with_equal_node_noise_every_release_is_that_of_the_restarted_query(tf: Any, tree_aggregation: Any) -> None:
    """Restarts at the same steps on both sides. Theirs draws the nodes of one leaf ahead, which a restart throws away."""
    queries = pytest.importorskip("tensorflow_privacy.privacy.dp_query.tree_aggregation_query")
    restart_query = pytest.importorskip("tensorflow_privacy.privacy.dp_query.restart_query")
    lengths = (5, 8, 1, 11)
    source, totals = SeededNoise("restarts"), totals_of(STEPS, SIZE)
    ours = our_stream(totals, source, BinaryTree(TREE.grid, TREE.noise_multiplier, lengths))

    noise, row = node_noise(source, SIZE, TREE.stddev), 0
    for length in lengths:
        row += 2 * length - length.bit_count()
        thrown_away = ((length + 1) & -(length + 1)).bit_length()
        noise = np.insert(noise, row, np.zeros((thrown_away, SIZE)), axis=0)
        row += thrown_away

    class AtTheEndOfEachTree(restart_query.RestartIndicator):  # type: ignore[misc, name-defined]
        def initialize(self) -> Any:
            return tf.constant(0)

        def next(self, state: Any) -> tuple[Any, Any]:
            return tf.reduce_any(tf.equal(state + 1, np.cumsum(lengths).astype(np.int32))), state + 1

    query = restart_query.RestartQuery(
        queries.TreeResidualSumQuery(
            record_specs=tf.TensorSpec([SIZE]),
            noise_generator=given_noise(tf, tree_aggregation, noise),
            clip_fn=lambda record, _: record,
            clip_value=1.0,
        ),
        AtTheEndOfEachTree(),
    )
    state, theirs = query.initial_global_state(), []
    for total in totals:
        released, state, _ = query.get_noised_result(tf.constant(total, tf.float32), state)
        theirs.append(released.numpy())
    bound = np.vstack([rounding_bound(length) for length in (*lengths, STEPS - sum(lengths))])
    assert np.all(np.abs(ours - np.array(theirs)) <= bound + np.vstack([[[0.0]], bound[:-1]]))


@pytest.mark.parametrize(("times", "separation"), [(1, 1), (2, 1), (3, 2), (4, 5), (8, 3), (6, 9)])
def test_sensitivity_is_that_of_tf_privacys_accountant(times: int, separation: int) -> None:
    """Their separation counts the steps between two participations, ours is the difference."""
    accountant = pytest.importorskip("tensorflow_privacy.privacy.analysis.tree_aggregation_accountant")
    for steps in (1, 2, 3, 7, 16, 21, 24, 32, 45):
        theirs = 2 * accountant.compute_zcdp_single_tree(1.0, steps, times, separation - 1)
        assert tree_sensitivity(steps, Participation(times, separation)).squared == theirs


@pytest.mark.parametrize("steps", [1, 2, 100, 2000, 4096])
def test_single_participation_costs_what_the_restart_accountant_says(steps: int) -> None:
    accountant = pytest.importorskip("tensorflow_privacy.privacy.analysis.tree_aggregation_accountant")
    tree = BinaryTree(Grid(1.0), 3.7)
    assert 9.0 * tree.cost(steps, Participation(1)) == pytest.approx(
        accountant.compute_rdp_tree_restart(3.7, steps, 9.0), rel=1e-12
    )


@pytest.mark.parametrize("lengths", [(4, 4), (5, 8, 1, 11), (100, 37)])
def test_one_participation_in_each_tree_costs_what_the_restart_accountant_says(lengths: tuple[int, ...]) -> None:
    accountant = pytest.importorskip("tensorflow_privacy.privacy.analysis.tree_aggregation_accountant")
    each = sum(tree_sensitivity(length, Participation.single()).squared for length in lengths)
    assert 9.0 * each / (2 * 3.7**2) == pytest.approx(accountant.compute_rdp_tree_restart(3.7, lengths, 9.0), rel=1e-12)
    assert forest_sensitivity([Tree(length) for length in lengths], Participation(len(lengths))).squared >= each


def test_prefix_noise_of_a_tff_run_has_our_variance(tf: Any, tff: Any) -> None:
    """Zero updates. The ratio of two sample variances of `size` normals has standard error sqrt(4 / size); six are allowed."""
    steps, size, clients, multiplier, clip_norm = 9, 100_000, 2, 1.5, 0.5
    factory = tff.aggregators.DifferentiallyPrivateFactory.tree_aggregation(
        noise_multiplier=multiplier,
        clients_per_round=float(clients),
        l2_norm_clip=clip_norm,
        record_specs=tf.TensorSpec([size]),
        noise_seed=11,
    )
    process = factory.create(tff.types.to_type((np.float32, [size])))
    state, theirs = process.initialize(), []
    for _ in range(steps):
        output = process.next(state, [np.zeros(size, np.float32)] * clients)
        state = output.state
        theirs.append(np.asarray(output.result) * clients)
    tree = BinaryTree(Grid(clip_norm, 16), multiplier)
    ours = our_stream(np.zeros((steps, size), np.int64), SeededNoise("tff"), tree) * tree.grid.unit
    ratios = np.cumsum(theirs, axis=0).var(axis=1) / np.cumsum(ours, axis=0).var(axis=1)
    np.testing.assert_allclose(ratios, 1.0, rtol=0, atol=6 * np.sqrt(4 / size))


def test_with_equal_node_noise_every_release_of_a_tff_run_is_ours(tf: Any, tff: Any, tree_aggregation: Any) -> None:
    """The clients' updates go through the runtime of TFF; two of them, of which one has to be clipped."""
    queries = pytest.importorskip("tensorflow_privacy.privacy.dp_query.tree_aggregation_query")
    steps, source = 12, SeededNoise("run")
    sent = np.random.Generator(np.random.PCG64(4)).integers(-300, 300, (steps, 2, SIZE)).astype(np.float32)
    sent[:, 0] *= 10
    clipped = [[clip(Update(update * np.float32(TREE.grid.unit)), TREE.grid).vector for update in pair] for pair in sent]
    ours = our_stream(np.array(clipped, dtype=np.int64).sum(axis=1), source)

    query = queries.TreeResidualSumQuery(
        record_specs=tf.TensorSpec([SIZE]),
        noise_generator=given_noise(tf, tree_aggregation, node_noise(source, SIZE, TREE.stddev)),
        clip_fn=lambda record, norm: tf.clip_by_global_norm(record, norm)[0],
        clip_value=float(TREE.grid.radius),
    )
    process = tff.aggregators.DifferentiallyPrivateFactory(query).create(tff.types.to_type((np.float32, [SIZE])))
    state, theirs = process.initialize(), []
    for pair in sent:
        output = process.next(state, list(pair))
        state = output.state
        theirs.append(np.asarray(output.result))
    bound = rounding_bound(steps) + 2  # each of the two is truncated onto the grid by less than a unit
    assert np.all(np.abs(ours - np.array(theirs)) <= bound + np.vstack([[[0.0]], bound[:-1]]))
