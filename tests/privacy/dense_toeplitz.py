"""The slow and plain counterparts of Toeplitz noise: C as a dense matrix, worst clients by enumeration, streams in fractions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.noise import NoiseNode
from fedrho.privacy.participation import Participation
from fedrho.privacy.vectors import IntVector
from tests.privacy.dense import Matrix, admissible_sets


def strategy(coefficients: Sequence[float], steps: int) -> Matrix:
    """C, shape (steps, steps)."""
    matrix = np.zeros((steps, steps))
    for j, coefficient in enumerate(coefficients[:steps]):
        matrix += coefficient * np.eye(steps, k=-j)
    return matrix


def inverse(coefficients: Sequence[float], steps: int) -> Matrix:
    """C^-1, shape (steps, steps)."""
    return np.asarray(np.linalg.inv(strategy(coefficients, steps)), dtype=np.float64)


def blt_coefficients(decay: Sequence[float], scale: Sequence[float], steps: int) -> list[float]:
    """c_0 = 1, c_i = sum of omega * theta**(i - 1)."""
    return [1.0] + [
        math.fsum(omega * theta ** (i - 1) for theta, omega in zip(decay, scale, strict=True)) for i in range(1, steps)
    ]


def prefix_errors(matrix: Matrix) -> Matrix:
    """Variances of the rows of A C^-1, A the lower-triangular ones."""
    return np.asarray((np.cumsum(np.linalg.inv(matrix), axis=0) ** 2).sum(axis=1))


def allowed_sets(steps: int, participation: Participation) -> Iterator[tuple[int, ...]]:
    """Every set of steps that `participation` allows, steps from 0."""
    for chosen in admissible_sets(steps, participation.max_times, participation.min_separation):
        if all(participation.allows(chosen[:i], step) for i, step in enumerate(chosen)):
            yield chosen


def worst_same_direction(gram: Matrix, participation: Participation) -> float:
    """Largest sum of the entries of C^T C over allowed steps: the truth where none is negative.

    For |C^T C| instead, it is not below the truth, whatever unit vectors the client sends.
    """
    return max(float(gram[np.ix_(chosen, chosen)].sum()) for chosen in allowed_sets(len(gram), participation))


def worst_signs(gram: Matrix, participation: Participation) -> float:
    """The same when the client may turn its vector around at each step: not above the truth."""
    return max(
        float(np.array(signs) @ gram[np.ix_(chosen, chosen)] @ np.array(signs))
        for chosen in map(list, allowed_sets(len(gram), participation))
        for signs in product((-1.0, 1.0), repeat=len(chosen))
    )


def streamed_in_fractions(coefficients: Sequence[float], noisy: Sequence[int]) -> list[int]:
    """y_t = round((C G + z)_t - sum of c_j y_(t-j)) of the Gaussian mechanism's output `noisy` = 2**16 * (C G + z), halves up."""
    published: list[int] = []
    for t, row in enumerate(noisy):
        echo = sum((Fraction(coefficients[j]) * published[t - j] for j in range(1, min(t + 1, len(coefficients)))), Fraction(0))
        published.append(math.floor(Fraction(row, 2**16) - echo + Fraction(1, 2)))
    return published


class UnitNoise:
    """Row t is `scale` times the t-th unit vector, so that what comes out shows the rows of C^-1."""

    def __init__(self, scale: int) -> None:
        self._scale = scale

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        vector = np.zeros(size, dtype=np.int64)
        vector[int(name.removeprefix("row.")) - 1] = self._scale
        return vector, NoiseNode(name, b"", b"")


class GivenNoise:
    """Rows that the test chose."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        self._rows = rows

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        return self._rows[int(name.removeprefix("row.")) - 1].copy(), NoiseNode(name, b"", b"")
