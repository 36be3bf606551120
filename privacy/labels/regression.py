"""Labels that are numbers: randomized response on bins, and unbiased randomizers; both for a prior over finitely many values.

RR-on-bins (Ghazi et al. 2023, arXiv 2212.06074): of all epsilon-DP mechanisms the least expected squared error has one that maps
y to its bin, an interval of the values, and answers with randomized response among d outputs, one for each bin. Its cost

    sum over bins of min over v of sum over y of P(y) (1 + (exp(epsilon) - 1) [y in bin]) (v - y)^2  /  (exp(epsilon) + d - 1)

adds up over bins, so dynamic programming finds it. Unbiased randomizers (Badanidiyuru et al. 2023, arXiv 2312.05659): the least
such error subject to E[answer | y] = y, a linear program over a grid of outputs; its error is larger, and models trained on it
are better, because gradients that are affine in the label stay unbiased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedrho.privacy.labels.answers import Answers
from fedrho.privacy.labels.chance import Chance
from fedrho.privacy.labels.randomizers import Labels, Priors, checked_labels, likeliest, uniform_like
from fedrho.privacy.labels.tables import ExactTable, exact_table
from fedrho.privacy.labels.thresholds import checked_epsilon

OUTPUTS: Final = 61
"""Of an unbiased randomizer's grid."""
BIAS: Final = 1e-6
"""Of an unbiased randomizer, by rounding: at most this share of the range of values."""
Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class NumberRandomizer:
    """Labels are places in `values`, of shape (Y,), rising; what is told is one of `outputs`, of shape (O,).

    *Guarantees* epsilon-DP under replacement, of the sampler (see `ExactTable`). *Assumes* that values, and the prior that the
    table was made for, are public, or were paid for.
    """

    epsilon: float
    name: str
    values: Numbers
    outputs: Numbers
    table: ExactTable

    def admit(self, priors: ArrayLike) -> Priors:
        """Uniform ones of the same shape; raises ValueError where there are not as many columns as values."""
        rows = uniform_like(priors)
        if rows.shape[1] != len(self.values):
            raise ValueError(f"{rows.shape[1]} columns of priors for {len(self.values)} values")
        return rows

    def estimates(self, labels: Labels, chance: Chance) -> Numbers:
        """What is told, as numbers; a label is answered once, so either this or `answer`; `PrivateLabels` counts."""
        known = checked_labels(labels, (len(labels), len(self.values)))
        told: Numbers = self.outputs[self.table.draw(known, chance)]
        return told

    def answer(self, labels: Labels, priors: ArrayLike, chance: Chance) -> Answers:
        """The likelihood of each value; the noisy label is the likeliest value."""
        known = checked_labels(labels, self.admit(priors).shape)
        likelihoods = self.table.matrix.T[self.table.draw(known, chance)]
        return Answers(likeliest(likelihoods), likelihoods, np.full(len(known), len(self.values), dtype=np.int64))

    def matrix(self, priors: ArrayLike) -> Numbers:
        """Of shape (B, Y, O): the sampler's own probabilities."""
        rows = self.admit(priors).shape[0]
        return np.broadcast_to(self.table.matrix, (rows, *self.table.weights.shape)).copy()

    def error(self, prior: ArrayLike) -> float:
        """The expected squared error where values are distributed as the prior."""
        squares = (self.outputs[None, :] - self.values[:, None]) ** 2
        return float(as_prior(prior, self.values) @ (self.table.matrix * squares).sum(axis=1))


def bins(values: ArrayLike, prior: ArrayLike, epsilon: float) -> NumberRandomizer:
    """The optimal RR-on-bins. Raises ValueError for values that do not rise, a prior that is none, or an infinite epsilon."""
    places, chances = _checked(values, prior, epsilon)
    best = min(_cuts(places, chances, epsilon), key=lambda one: one[0])
    edges = best[1]
    outputs = np.array([_centre(places, chances, low, high, epsilon)[1] for low, high in edges])
    own = np.concatenate([np.full(high - low, number) for number, (low, high) in enumerate(edges)])
    keep = 1.0 / (1.0 + (len(edges) - 1) * math.exp(-epsilon))
    matrix = np.full((len(places), len(edges)), keep * math.exp(-epsilon))
    matrix[np.arange(len(places)), own] = keep
    return NumberRandomizer(epsilon, "randomized response on bins", places, outputs, exact_table(matrix, epsilon))


def unbiased(values: ArrayLike, prior: ArrayLike, epsilon: float, outputs: ArrayLike | None = None) -> NumberRandomizer:
    """The unbiased randomizer of least error over a grid of outputs; by default 61, as wide as debiased randomized response's.

    Unbiased up to `BIAS` of the values' range. Raises ValueError where the grid is too narrow for any to be unbiased, or epsilon
    so small that rounding biases it more.
    """
    places, chances = _checked(values, prior, epsilon)
    grid = _wide(places, epsilon) if outputs is None else np.asarray(outputs, dtype=np.float64)
    matrix = _least_error(places, chances, grid, epsilon)
    if matrix is None and outputs is not None:
        raise ValueError("no unbiased randomizer of this epsilon answers with these outputs alone: give a wider grid")
    if matrix is None:
        raise ValueError(f"epsilon {epsilon:g} is too small: the solver finds no unbiased answers in float64")
    used = matrix.max(axis=0) > 1e-9
    try:
        table = exact_table(matrix[:, used] / matrix[:, used].sum(axis=1, keepdims=True), epsilon)
    except ValueError as error:
        raise ValueError(f"epsilon {epsilon:g} is too small for the solver's float64: {error}") from error
    bias = float(np.abs(table.matrix @ grid[used] - places).max()) / (places[-1] - places[0])
    if bias > BIAS:
        raise ValueError(f"epsilon {epsilon:g} is too small: rounding would bias answers by {bias:.1g} of the values' range")
    return NumberRandomizer(epsilon, "unbiased randomizer", places, grid[used], table)


def as_prior(prior: ArrayLike, values: Numbers) -> Numbers:
    """Normalised; raises ValueError for negative or infinite entries, and where all are 0."""
    chances = np.asarray(prior, dtype=np.float64)
    if chances.shape != values.shape or not np.isfinite(chances).all() or (chances < 0).any() or not chances.sum() > 0:
        raise ValueError("a prior has a probability for each value, finite, not negative, and not all 0")
    normalised: Numbers = chances / chances.sum()
    return normalised


def _checked(values: ArrayLike, prior: ArrayLike, epsilon: float) -> tuple[Numbers, Numbers]:
    checked_epsilon(epsilon)
    places = np.asarray(values, dtype=np.float64)
    if not 0 < epsilon <= 40:
        raise ValueError(f"the epsilon of a randomizer of numbers is above 0 and at most 40, and not {epsilon}")
    if places.ndim != 1 or len(places) < 2 or not np.isfinite(places).all() or (np.diff(places) <= 0).any():
        raise ValueError("values are two or more finite numbers that rise")
    return places, as_prior(prior, places)


def _centre(values: Numbers, prior: Numbers, low: int, high: int, epsilon: float) -> tuple[float, float]:
    """Cost of the bin low..high-1, divided by exp(epsilon), and its output: the mean with exp(epsilon) the weight inside."""
    weights = prior * math.exp(-epsilon)
    weights[low:high] = prior[low:high]
    if not weights.sum() > 0:
        return 0.0, float(values[low:high].mean())
    output = float(weights @ values / weights.sum())
    return float(weights @ (values - output) ** 2), output


def _cuts(values: Numbers, prior: Numbers, epsilon: float) -> list[tuple[float, list[tuple[int, int]]]]:
    """For each number of bins the least error, and its bins."""
    count = len(values)
    cost = {
        (low, high): _centre(values, prior, low, high, epsilon)[0] for low in range(count) for high in range(low + 1, count + 1)
    }
    best: list[tuple[float, list[tuple[int, int]]]] = [(cost[0, end], [(0, end)]) for end in range(1, count + 1)]
    found = [best[-1]]
    for d in range(2, count + 1):
        ends = range(d, count + 1)
        best = [
            min((_longer(best[at - d + 1], cost, at, end) for at in range(d - 1, end)), key=lambda one: one[0]) for end in ends
        ]
        found.append(best[-1])
    return [(total / (1.0 + d * math.exp(-epsilon)), edges) for d, (total, edges) in enumerate(found)]


def _longer(
    before: tuple[float, list[tuple[int, int]]], cost: dict[tuple[int, int], float], at: int, end: int
) -> tuple[float, list[tuple[int, int]]]:
    return before[0] + cost[at, end], [*before[1], (at, end)]


def _wide(values: Numbers, epsilon: float) -> Numbers:
    """As far as debiased randomized response goes, v(o) = ((exp(epsilon) + Y - 1) o - sum of values) / (exp(epsilon) - 1)."""
    small = math.exp(-epsilon)
    ends = ((1.0 + (len(values) - 1) * small) * values[[0, -1]] - small * values.sum()) / -math.expm1(-epsilon)
    return np.linspace(ends[0], ends[1], OUTPUTS)


def _least_error(values: Numbers, prior: Numbers, outputs: Numbers, epsilon: float) -> Numbers | None:
    """The linear program over Q[y, o] and the least entry m_o of each column: m_o <= Q[y, o] <= exp(epsilon) m_o.

    None where it has no solution.
    """
    from scipy.optimize import linprog
    from scipy.sparse import eye_array, hstack, kron, vstack

    rows, columns = len(values), len(outputs)
    spread = (values[-1] - values[0]) or 1.0
    costs = (prior[:, None] * ((outputs[None, :] - values[:, None]) / spread) ** 2).ravel()
    each = eye_array(rows * columns)
    least = kron(np.ones((rows, 1)), eye_array(columns))
    bounds = vstack([hstack([-each, least]), hstack([each * math.exp(-epsilon), -least])])
    sums = kron(eye_array(rows), np.ones((1, columns)))
    means = kron(eye_array(rows), (outputs[None, :] - values[0]) / spread)
    equal = hstack([vstack([sums, means]), np.zeros((2 * rows, columns))])
    wanted = np.concatenate([np.ones(rows), (values - values[0]) / spread])
    solved = linprog(
        np.concatenate([costs, np.zeros(columns)]),
        A_ub=bounds.tocsr(),
        b_ub=np.zeros(2 * rows * columns),
        A_eq=equal.tocsr(),
        b_eq=wanted,
        method="highs",
    )
    if not solved.success:
        return None
    matrix: Numbers = np.maximum(solved.x[: rows * columns].reshape(rows, columns), 0.0)
    return matrix
