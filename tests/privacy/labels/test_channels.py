"""The exact auditor reports the true epsilon of every mechanism, of the broken ones too."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy
from numpy.typing import NDArray

from fedrho.privacy.labels.channels import (
    BadChannel,
    channels,
    exact_loss,
    followed_by,
    histogram_channel,
    largest_share,
    share_right,
)

Matrix = NDArray[np.float64]


def randomized_response(epsilon: float, classes: int) -> Matrix:
    others = math.exp(-epsilon) / (1 + (classes - 1) * math.exp(-epsilon))
    return np.full((classes, classes), others) + np.eye(classes) * (1 - classes * others)


def top(prior: list[float], k: int, epsilon: float) -> Matrix:
    """RRTop-k, from its definition; a tie goes to the lower label."""
    chosen = np.argsort(-np.array(prior), kind="stable")[:k]
    matrix = np.zeros((len(prior), len(prior)))
    matrix[:, chosen] = 1 / k
    matrix[np.ix_(chosen, chosen)] = randomized_response(epsilon, k)
    return matrix


def chosen_size(prior: list[float], epsilon: float, shift: int = 0) -> int:
    """The k that makes the right label likeliest; with a shift of 1 the one that the public reference code takes."""
    largest = np.sort(prior)[::-1].cumsum()
    sizes = np.arange(1, len(prior) + 1)
    weights = largest / (1 + (sizes - 1 - shift) * math.exp(-epsilon))
    return int(weights.argmax()) + 1


def kept_too_often(epsilon: float, classes: int) -> Matrix:
    """Keeps with e^eps / (1 + e^eps) as if there were two labels."""
    keep = 1 / (1 + math.exp(-epsilon))
    return np.full((classes, classes), (1 - keep) / (classes - 1)) + np.eye(classes) * (keep - (1 - keep) / (classes - 1))


def resampled_over_all(epsilon: float, classes: int) -> Matrix:
    """Resamples as often as it should, but may draw the true label again."""
    resample = (classes - 1) / (math.exp(epsilon) + classes - 1)
    return np.full((classes, classes), resample / classes) + np.eye(classes) * (1 - resample)


def out_of_set(prior: list[float], k: int, epsilon: float, as_is: bool) -> Matrix:
    """A label outside the k likeliest is told as it is, or as the likeliest."""
    matrix, order = top(prior, k, epsilon), np.argsort(-np.array(prior), kind="stable")
    for label in order[k:]:
        matrix[label] = np.eye(len(prior))[label if as_is else order[0]]
    return matrix


def enlarged_until_inside(prior: list[float], k: int, epsilon: float) -> Matrix:
    ranks = np.argsort(np.argsort(-np.array(prior), kind="stable"))
    return np.stack([top(prior, max(k, int(rank) + 1), epsilon)[label] for label, rank in enumerate(ranks)])


def weighted_by_prior(prior: list[float], epsilon: float) -> Matrix:
    """Drawn with chances prior[o] e^(eps [o = y])."""
    odds = np.array(prior) * (1 + np.eye(len(prior)) * math.expm1(epsilon))
    rows: Matrix = odds / odds.sum(axis=1, keepdims=True)
    return rows


ONE = randomized_response(1, 10)
SURE = [0.91, *[0.01] * 9]
MUTANTS: dict[str, tuple[Matrix, float]] = {
    "kept as of two labels": (kept_too_often(1, 10), 3.197224577),
    "resampled over all": (resampled_over_all(1, 10), 1.391359796),
    "outside told as the likeliest": (out_of_set([0.5, 0.3, 0.15, 0.05], 2, 1, as_is=False), math.inf),
    "outside told as it is": (out_of_set([0.5, 0.3, 0.15, 0.05], 2, 1, as_is=True), math.inf),
    "k enlarged until inside": (enlarged_until_inside([0.5, 0.3, 0.15, 0.05], 2, 1), math.inf),
    "weighted by the prior": (weighted_by_prior([0.7, 0.2, 0.1], 1), 1.631162965),
    "weighted by a sure prior": (weighted_by_prior(SURE, 1), 1.924389881),
    "asked twice": (followed_by(ONE, ONE), 2.0),
    "histogram with the whole epsilon as parameter": (histogram_channel(0.05), 0.10),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_found_with_its_true_epsilon(name: str) -> None:
    matrix, true = MUTANTS[name]
    assert exact_loss(matrix).epsilon == pytest.approx(true, abs=1e-9)


def test_a_label_asked_again_with_the_posterior_as_prior_costs_twice() -> None:
    prior = [0.4, 0.35, 0.25]
    first = top(prior, chosen_size(prior, 1), 1)
    posteriors = [(row / row.sum()).tolist() for row in (first * np.array(prior)[:, None]).T]
    seconds = np.stack([top(posterior, chosen_size(posterior, 1), 1) for posterior in posteriors])
    assert exact_loss(followed_by(randomized_response(1, 3), np.stack([top(prior, 3, 1)] * 3))).epsilon == pytest.approx(2)
    assert exact_loss(followed_by(first, seconds)).epsilon == pytest.approx(2, abs=1e-9)


def test_what_is_right_costs_what_it_claims() -> None:
    generator = np.random.default_rng(0)
    for epsilon in (0.0, 1e-6, 0.5, 1.0, 4.0, 20.0, 30.0):
        priors = generator.dirichlet([0.5] * 5, 40).tolist()
        stack = np.stack([top(prior, chosen_size(prior, epsilon), epsilon) for prior in priors])
        assert exact_loss(stack).epsilon <= epsilon + 1e-9
        assert exact_loss(randomized_response(epsilon, 7)).epsilon == pytest.approx(epsilon, abs=1e-6)
    assert exact_loss(histogram_channel(0.025)).epsilon == pytest.approx(0.05, abs=1e-12)
    assert exact_loss(np.eye(3)).epsilon == math.inf
    assert exact_loss(np.ones((4, 1))).epsilon == 0


def test_the_worst_case_is_named() -> None:
    stack = np.stack([randomized_response(1, 4), randomized_response(1, 4)])
    stack[1, 2] = [0.1, 0.1, 0.7, 0.1]
    loss = exact_loss(stack)
    assert (loss.row, loss.output, loss.likely, loss.unlikely) == (1, 0, 0, 2)
    assert loss.epsilon == pytest.approx(math.log(math.e / (math.e + 3) / 0.1))


@pytest.mark.parametrize("prior", [SURE, [0.1] * 10, [0.4, 0.35, 0.25], [0.5, 0.25, 0.15, 0.1]])
@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 2.5])
def test_the_largest_share_of_right_answers_is_that_of_a_linear_program(prior: list[float], epsilon: float) -> None:
    """Over all row-stochastic matrices whose entries in a column differ by a factor of e^eps at most; for K up to 4."""
    classes = len(prior)
    assert share_right(top(prior, chosen_size(prior, epsilon), epsilon), [prior])[0] == pytest.approx(
        largest_share([prior], epsilon)[0]
    )
    if classes > 4:
        return
    rows = []
    for output in range(classes):
        for one in range(classes):
            for other in set(range(classes)) - {one}:
                row = np.zeros((classes, classes))
                row[one, output], row[other, output] = 1, -math.exp(epsilon)
                rows.append(row.ravel())
    solved = scipy.optimize.linprog(
        -np.diag(prior).ravel(),
        A_ub=np.array(rows),
        b_ub=np.zeros(len(rows)),
        A_eq=np.kron(np.eye(classes), np.ones(classes)),
        b_eq=np.ones(classes),
    )
    assert -solved.fun == pytest.approx(largest_share([prior], epsilon)[0], abs=1e-9)


def test_the_reference_code_s_k_off_by_one_is_private_but_short_of_the_best() -> None:
    """Public code takes 1 + (k - 2) e^-eps as denominator; with a uniform prior at small epsilon its answer is constant."""
    short = 0
    for prior in np.random.default_rng(1).dirichlet([1.0] * 6, 60).tolist():
        matrix = top(prior, chosen_size(prior, 1.0, shift=1), 1.0)
        assert exact_loss(matrix).epsilon <= 1 + 1e-9
        short += share_right(matrix, [prior])[0] < largest_share([prior], 1.0)[0] - 1e-9
    assert short > 10
    flat = [0.1] * 10
    assert chosen_size(flat, 0.5, shift=1) == 1
    assert share_right(top(flat, 1, 0.5), [flat])[0] == pytest.approx(0.1)
    assert largest_share([flat], 0.5)[0] > 0.15


def block(epsilon: float, first: int, second: int, shared: int) -> Matrix:
    """BlockRR (arXiv 2602.03277): classes in two blocks, of the first `shared` are answers of the second, too."""
    odds, classes = math.exp(epsilon), first + second
    divisor = (odds + first - 1) * (odds + second - 1) - (first - shared) * second
    beta = (odds - 1 + shared * second / classes) / divisor
    gamma = (odds + shared - 1 - shared * (odds + first - 1) / classes) / divisor
    matrix = np.full((classes, classes), gamma)
    matrix[:first, :first] = beta + np.eye(first) * (odds - 1) * beta
    matrix[first:, :shared] = 1 / classes
    matrix[first:, shared:first] = beta
    matrix[first:, first:] += np.eye(second) * (odds - 1) * gamma
    return matrix


@pytest.mark.parametrize("shape", [(3, 2, 1), (2, 8, 1), (5, 5, 2), (4, 6, 3)])
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_block_rr_is_a_channel_with_its_epsilon(shape: tuple[int, int, int], epsilon: float) -> None:
    assert exact_loss(block(epsilon, *shape)).epsilon == pytest.approx(epsilon, abs=1e-9)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ([[0.5, 0.4], [0.5, 0.5]], "row of label 0 .* adds up to 0.9"),
        ([[1.5, -0.5], [0.5, 0.5]], "probabilities"),
        ([[math.nan, 1.0]], "probabilities"),
        ([0.5, 0.5], "shape"),
        ([["x"]], "numbers"),
    ],
)
def test_what_is_no_channel_is_refused(bad: object, said: str) -> None:
    with pytest.raises(BadChannel, match=said):
        channels(bad)  # type: ignore[arg-type]
