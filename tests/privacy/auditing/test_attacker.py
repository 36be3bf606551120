"""The noise table against the dense tree, and the worst client against every client."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fedrho.privacy.auditing.attacker import Tape, information, noise_table, strength, strongest_signal
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import Grid
from tests.privacy.dense import Matrix, SeededNoise, best_linear_prefixes, residuals

GRID = Grid(0.5, 16)


def test_table_of_independent_noise_is_the_identity() -> None:
    assert np.allclose(noise_table(IndependentGaussian(GRID, 3.0), 9), np.eye(9), rtol=0, atol=1e-8)


def test_table_of_the_tree_is_the_dense_one_node_by_node() -> None:
    assert np.allclose(noise_table(BinaryTree(GRID, 3.0), 21), residuals(best_linear_prefixes(21)), rtol=0, atol=1e-8)


def test_information_inverts_the_covariance() -> None:
    table = noise_table(BinaryTree(GRID, 1.0), 24)
    assert np.allclose(information(table) @ table @ table.T, np.eye(24), atol=1e-8)


def test_a_combination_of_steps_without_noise_is_all_but_certain() -> None:
    table = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert strength(information(table), np.array([1.0, 0.0, 0.0])) > 1e8
    assert strength(information(table), np.array([0.0, 0.0, 1.0])) == pytest.approx(1.0)


def strongest_of_all(inverse: Matrix, participation: Participation) -> float:
    """Every admissible set of steps with every choice of signs."""
    best = 0.0
    for chosen in itertools.product((0.0, 1.0, -1.0), repeat=len(inverse)):
        taken = [step + 1 for step, sign in enumerate(chosen) if sign]
        if all(participation.allows(taken[:i], step) for i, step in enumerate(taken)):
            best = max(best, strength(inverse, np.array(chosen)))
    return best


@pytest.mark.parametrize(
    "participation",
    [Participation(1), Participation(3, 2), Participation(8), Participation(2, 5), Participation.epochs(2, 3)],
    ids=str,
)
@pytest.mark.parametrize("kind", [IndependentGaussian, BinaryTree])
def test_worst_client_that_is_found_is_the_worst_of_all(kind: type[Mechanism[Any]], participation: Participation) -> None:
    inverse = information(noise_table(kind(GRID, 1.0), 8))
    found = strength(inverse, strongest_signal(inverse, participation))
    assert found == pytest.approx(strongest_of_all(inverse, participation), rel=1e-9)


def test_worst_client_against_noise_that_is_made_up_is_nearly_the_worst_of_all() -> None:
    """The search is greedy: 40 random covariances, at least 95 % each, and mostly all of it."""
    random = np.random.Generator(np.random.PCG64(31))
    ratios = []
    for _ in range(40):
        inverse = information(random.standard_normal((7, 12)))
        participation = Participation(3, 2)
        ratios.append(strength(inverse, strongest_signal(inverse, participation)) / strongest_of_all(inverse, participation))
    assert min(ratios) > 0.95
    assert np.median(ratios) > 1 - 1e-9


@pytest.mark.parametrize(("steps", "times", "separation", "least"), [(24, 8, 3, 0.85), (64, 4, 8, 0.85), (100, 100, 1, 1 - 1e-9)])
def test_worst_client_of_the_tree_comes_close_to_its_price(steps: int, times: int, separation: int, least: float) -> None:
    tree, participation = BinaryTree(GRID, 1.0), Participation(times, separation)
    inverse = information(noise_table(tree, steps))
    signal = strongest_signal(inverse, participation)
    taken = [int(step) + 1 for step in np.flatnonzero(signal)]
    assert all(participation.allows(taken[:i], step) for i, step in enumerate(taken))
    claimed = tree.sensitivity(steps, participation).squared
    assert least * claimed <= strength(inverse, signal) <= claimed * (1 + 1e-6)


def test_a_tape_remembers_what_deviations_were_asked_for() -> None:
    tape = Tape(SeededNoise("deviations"))
    for stddev in (10.0, 2.5):
        tape.draw("row", 3, stddev)
    again = tape.rewound()
    again.draw("row", 3, 7.0)
    assert (tape.stddevs, again.stddevs) == ([10.0, 2.5], [7.0])


def test_a_rewound_tape_gives_the_same_and_no_more() -> None:
    tape = Tape(SeededNoise("tape"))
    first = [tape.draw(f"row.{i}", 3, 10.0) for i in range(3)]
    again = tape.rewound()
    assert [again.draw("other", 3, 10.0)[0].tolist() for _ in range(3)] == [vector.tolist() for vector, _ in first]
    with pytest.raises(ValueError, match="was not drawn"):
        again.draw("row.9", 3, 10.0)
