"""The contract of every mechanism: the noise it claims, the price it claims, and nothing of the data but the sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from fedrho.privacy.banded import BandedToeplitz
from fedrho.privacy.blt import BufferedToeplitz
from fedrho.privacy.clipping import clip
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.noise import NoiseMismatch, NoiseSource, ReplayedNoise, SystemNoise
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import ClippedSum, Grid, IntVector, Update
from tests.privacy.dense import Matrix, SeededNoise, admissible_sets, best_linear_prefixes, residuals, restarted_prefixes
from tests.privacy.dense_toeplitz import blt_coefficients, inverse

AnyMechanism = Mechanism[Any]
GRID = Grid(0.5, 16)
BANDS = (1.0, 0.75)
BUFFERS = (0.9, 0.4), (0.3, 0.2)
RESTARTS = (3, 5)


def restarted(steps: int, completed: bool) -> Matrix:
    """Of trees of 3 and 5 leaves, then one without an end."""
    return residuals(restarted_prefixes(BinaryTree(GRID, 1.0, RESTARTS, completed).trees(steps)))


@dataclass(frozen=True)
class Case:
    """A mechanism and the dense table that it claims to stream: noise of step t = row t times the node noise.

    `released` is the share of the price, at least, that what is released justifies: the tree is charged for all node noise. Of
    a completed tree the nodes that completion adds are charged for, and nothing but their part in the root is released.
    """

    build: Callable[[Grid, float], AnyMechanism]
    dense: Callable[[int], Matrix]
    released: float = 0.8

    def strategy(self, steps: int) -> Matrix:
        """The lower-triangular C with C^-1 C^-T = the covariance of the noise of the steps."""
        table = self.dense(steps)
        return np.asarray(np.linalg.inv(np.linalg.cholesky(table @ table.T)))


@pytest.fixture(
    params=[
        Case(IndependentGaussian, np.eye),
        Case(BinaryTree, lambda steps: residuals(best_linear_prefixes(steps))),
        Case(lambda grid, noise: BinaryTree(grid, noise, RESTARTS), lambda steps: restarted(steps, completed=False)),
        Case(
            lambda grid, noise: BinaryTree(grid, noise, RESTARTS, completed=True),
            lambda steps: restarted(steps, completed=True),
            released=0.5,
        ),
        Case(lambda grid, noise: BandedToeplitz(grid, noise, BANDS), lambda steps: inverse(BANDS, steps)),
        Case(
            lambda grid, noise: BufferedToeplitz(grid, noise, *BUFFERS),
            lambda steps: inverse(blt_coefficients(*BUFFERS, steps), steps),
        ),
    ],
    ids=["independent-gaussian", "binary-tree", "restarted-tree", "completed-tree", "banded-toeplitz", "buffered-toeplitz"],
)
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = request.param
    return chosen


def stream(mechanism: AnyMechanism, totals: list[IntVector], source: NoiseSource) -> IntVector:
    """What is released, shape (steps, size)."""
    state, released = mechanism.init(totals[0].size), []
    for total in totals:
        out, state = mechanism.release(ClippedSum(total.copy(), mechanism.grid), state, source)
        released.append(out.vector)
    return np.array(released)


def zeros(steps: int, size: int) -> list[IntVector]:
    return list(np.zeros((steps, size), dtype=np.int64))


def test_noise_of_zero_updates_has_the_covariance_of_the_claimed_matrix(case: Case) -> None:
    """Six standard errors of a sample covariance, sqrt((v_i v_j + c**2) / size): one wrong entry in 5e8 right ones."""
    steps, size, multiplier = 32, 100_000, 1.7
    released = stream(case.build(GRID, multiplier), zeros(steps, size), SeededNoise("covariance")) / GRID.radius
    expected = multiplier**2 * case.dense(steps) @ case.dense(steps).T
    variances = np.diag(expected)
    tolerance = 6 * np.sqrt((np.outer(variances, variances) + expected**2) / size)
    assert np.all(np.abs(released @ released.T / size - expected) < tolerance)


def test_whitened_noise_of_zero_updates_is_white_across_steps_and_coordinates(case: Case) -> None:
    """C times the stream is standard normal noise; the mean of n of them is within 6 / sqrt(n), as in the test above."""
    steps, size = 16, 50_000
    released = stream(case.build(GRID, 2.0), zeros(steps, size), SeededNoise("white")) / (2.0 * GRID.radius)
    white = case.strategy(steps) @ released
    for pairs in (white[:, 1:] * white[:, :-1], white[1:, 1:] * white[:-1, :-1], white[1:] * white[:-1]):
        assert abs(pairs.mean()) < 6 / math.sqrt(pairs.size)


def test_a_release_is_the_data_plus_noise_that_does_not_depend_on_it(case: Case) -> None:
    mechanism = case.build(GRID, 1.0)
    totals = list(np.random.Generator(np.random.PCG64(7)).integers(-(2**40), 2**40, (21, 6)))
    noise = stream(mechanism, zeros(21, 6), SeededNoise("addition"))
    assert np.array_equal(stream(mechanism, totals, SeededNoise("addition")) - noise, totals)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "times", "separation"), [(9, 3, 2), (12, 4, 3), (10, 10, 1), (8, 2, 5)])
def test_one_client_moves_the_whitened_stream_by_no_more_than_the_sensitivity(
    case: Case, steps: int, times: int, separation: int
) -> None:
    """The same noise twice, once without one client, who sends clipped vectors of full norm wherever that is allowed."""
    mechanism = case.build(GRID, 1.0)
    if isinstance(mechanism, BandedToeplitz) and separation < mechanism.bands:
        with pytest.raises(ValueError, match="at most the separation"):
            mechanism.sensitivity(steps, Participation(times, separation))
        return
    random = np.random.Generator(np.random.PCG64(8))
    strategy, worst = case.strategy(steps), 0.0
    without = stream(mechanism, zeros(steps, 4), SeededNoise("audit"))
    full = clip(Update(np.array([0, 7, 0, 0], dtype=np.float32)), GRID).vector
    assert np.linalg.norm(full) == GRID.radius
    for chosen in admissible_sets(steps, times, separation):
        one_way, any_way = zeros(steps, 4), zeros(steps, 4)
        for step in chosen:
            one_way[step] += full
            any_way[step] += clip(Update(random.standard_normal(4).astype(np.float32) * 9), GRID).vector
        for totals in (one_way, any_way):
            difference = (stream(mechanism, totals, SeededNoise("audit")) - without) / GRID.radius
            worst = max(worst, float(np.sum((strategy @ difference) ** 2)))
    claimed = mechanism.sensitivity(steps, Participation(times, separation)).squared
    assert worst <= claimed + 1e-9
    exactly = isinstance(mechanism, IndependentGaussian) or (times == steps and case.released == 0.8)
    assert worst >= claimed * (1 - 1e-9 if exactly else case.released)


def test_cost_grows_with_steps_and_participations_and_falls_with_noise(case: Case) -> None:
    mechanism = case.build(GRID, 3.0)
    costs = [mechanism.cost(steps, Participation(3, 4)) for steps in range(40)]
    assert costs == sorted(costs)
    assert 0.0 == float(costs[0]) < costs[1]
    assert mechanism.cost(40, Participation(4, 4)) > mechanism.cost(40, Participation(3, 4))
    assert case.build(GRID, 6.0).cost(40, Participation(3, 4)) == mechanism.cost(40, Participation(3, 4)) / 4


def test_the_deviation_of_a_node_is_the_multiplier_times_the_clip_norm(case: Case) -> None:
    for grid in (Grid(0.5, 4), Grid(80.0, 20)):
        assert case.build(grid, 3.0).stddev * grid.unit == pytest.approx(3.0 * grid.clip_norm, rel=1e-15)


@pytest.mark.parametrize("multiplier", [0.0, -1.0, math.nan, math.inf])
def test_noise_that_protects_nothing_is_refused(case: Case, multiplier: float) -> None:
    with pytest.raises(ValueError, match="noise_multiplier"):
        case.build(GRID, multiplier)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("multiplier", [2.0**20, 2.0**42, 2.0**60])
def test_huge_noise_has_its_claimed_size_or_is_refused(case: Case, multiplier: float) -> None:
    """int64 may not wrap: a tree multiplies by 2**height. Variances have a standard error of sqrt(2 / size), relatively."""
    size = 20_000
    try:
        released = stream(case.build(GRID, multiplier), zeros(16, size), SeededNoise("huge"))
    except ValueError:
        return
    expected = (case.dense(16) ** 2).sum(axis=1)
    assert (released / (multiplier * GRID.radius)).var(axis=1) == pytest.approx(expected, rel=6 * math.sqrt(2 / size))


def test_a_sum_for_another_grid_or_of_another_length_is_refused_and_draws_nothing(case: Case) -> None:
    mechanism, source = case.build(GRID, 1.0), SeededNoise("refused")
    state = mechanism.init(3)
    wrong = [
        ClippedSum(np.zeros(4, np.int64), GRID),
        ClippedSum(np.zeros(3, np.int64), Grid(GRID.clip_norm, 15)),
        ClippedSum(np.zeros(3, np.int64), Grid(2 * GRID.clip_norm, GRID.bits)),
    ]
    for total in wrong:
        with pytest.raises(ValueError, match="grid"):
            mechanism.release(total, state, source)
    assert source.drawn == []


def test_every_node_has_a_name_of_its_own_and_is_reported_when_drawn(case: Case) -> None:
    mechanism, source = case.build(GRID, 1.0), SeededNoise("names")
    state, reported = mechanism.init(2), []
    for step in range(1, 130):
        _, state = mechanism.next_noise(state, source)
        assert state.step == step
        assert state.size == 2
        reported += state.drawn
    assert reported == source.drawn
    assert len({node.name for node in reported}) == len(reported)


def test_fresh_streams_never_share_noise(case: Case) -> None:
    mechanism = case.build(GRID, 10.0)
    one, two = (stream(mechanism, zeros(16, 50_000), SystemNoise()) for _ in range(2))
    # Each of the 16 products averages 50,000 independent pairs: six standard errors fail once in 3e7 runs.
    products = (one * two).mean(axis=1) / (one.std(axis=1) * two.std(axis=1))
    assert np.abs(products).max() < 6 / math.sqrt(50_000)


@pytest.mark.parametrize("step", [0, 1, 7, 12, 63, 64, 65, 130, 192])
def test_a_state_restored_from_its_live_nodes_and_kept_vectors_releases_the_same(case: Case, step: int) -> None:
    mechanism, source = case.build(GRID, 1.0), SeededNoise("restore")
    state = mechanism.init(4)
    for _ in range(step):
        _, state = mechanism.next_noise(state, source)
    expected, _ = mechanism.next_noise(state, source)
    restored = mechanism.restore(4, step, ReplayedNoise(state.live), state.kept)
    assert (restored.step, restored.size, restored.live) == (state.step, state.size, state.live)
    assert [(one.name, one.vector.tobytes()) for one in restored.kept] == [(one.name, one.vector.tobytes()) for one in state.kept]
    again, _ = mechanism.next_noise(restored, source.replayed())
    assert again.tobytes() == expected.tobytes()


def test_without_a_kept_vector_nothing_goes_on(case: Case) -> None:
    """A state that is filled up with zeros would release other noise than was promised."""
    mechanism, source = case.build(GRID, 1.0), SeededNoise("lost")
    state = mechanism.init(4)
    for _ in range(130):
        _, state = mechanism.next_noise(state, source)
    for lost in state.kept:
        left = [one for one in state.kept if one.name != lost.name]
        with pytest.raises(NoiseMismatch, match=lost.name):
            mechanism.restore(4, 130, source.replayed(), left)


def test_what_a_restart_needs_does_not_grow_with_the_steps(case: Case) -> None:
    """O(log n): after 1,000 steps some 128 seeds and ten vectors, whatever the mechanism; bands are counted apart."""
    mechanism, source = case.build(GRID, 1.0), SeededNoise("bounded")
    state, seeds, vectors = mechanism.init(1), 0, 0
    for _ in range(1000):
        _, state = mechanism.next_noise(state, source)
        seeds, vectors = max(seeds, len(state.live)), max(vectors, len(state.kept))
    assert seeds <= 2 * 64
    assert vectors <= 10
