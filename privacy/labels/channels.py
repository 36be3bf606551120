"""Channels of labels, exactly: what a matrix of conditional probabilities gives away, and how often it tells the truth.

A channel is Q of shape (K, O), Q[y, o] the probability of output o where y is the true label; several have shape (B, K, O).
Everything here follows from the matrix alone; nothing is drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedrho.privacy.labels.priors import Priors, checked

Channel = NDArray[np.float64]

SLACK = 1e-9
"""How far rounding may take an exact epsilon above its claim, and a row's sum from 1."""


class BadChannel(ValueError):
    """No matrix of conditional probabilities."""


@dataclass(frozen=True)
class Loss:
    """The largest ln(Q[likely, output] / Q[unlikely, output]) of some channels, and where it is attained.

    Infinite where an output is possible under one label and impossible under another; 0 where no output tells anything.
    """

    epsilon: float
    row: int
    output: int
    likely: int
    unlikely: int


def channels(values: ArrayLike, slack: float = SLACK) -> Channel:
    """As float64 of shape (B, K, O); raises BadChannel for entries that are no probabilities and for rows that miss 1."""
    try:
        given = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BadChannel("a channel is a matrix of numbers: one row for each true label, one column for each output") from error
    matrices = given[None] if given.ndim == 2 else given
    if matrices.ndim != 3 or 0 in matrices.shape:
        raise BadChannel(f"a channel has the shape (labels, outputs), not {given.shape}")
    if not (np.isfinite(matrices).all() and (matrices >= 0).all()):
        raise BadChannel("the entries of a channel are probabilities: finite, and none of them negative")
    sums = matrices.sum(axis=2)
    if np.abs(sums - 1).max() > slack:
        row, label = np.unravel_index(np.abs(sums - 1).argmax(), sums.shape)
        place = f"the row of label {label}" if len(matrices) == 1 else f"the row of label {label} in channel {row}"
        raise BadChannel(f"{place} (from 0) adds up to {float(sums[row, label])!r}, not to 1")
    return matrices


def exact_loss(matrices: ArrayLike, slack: float = SLACK) -> Loss:
    """By enumeration of every output and pair of labels; raises BadChannel."""
    known = channels(matrices, slack)
    most, least = known.max(axis=1), known.min(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        losses = np.where(most > 0, np.log(most) - np.log(least), 0.0)
    row, output = (int(place) for place in np.unravel_index(losses.argmax(), losses.shape))
    told = known[row, :, output]
    return Loss(float(losses[row, output]), row, output, int(told.argmax()), int(told.argmin()))


def followed_by(first: ArrayLike, seconds: ArrayLike) -> Channel:
    """Both answers about one label: the first channel (K, O), then for each of its outputs another one, (O, K, P).

    Of shape (K, O * P). With one and the same second channel (K, P), the two are asked independently.
    """
    earlier = channels(first)[0]
    later = channels(seconds)
    each = np.broadcast_to(later, (earlier.shape[1], *later.shape[1:]))
    if each.shape[1] != len(earlier):
        raise BadChannel(f"channels about {len(earlier)} and about {each.shape[1]} labels cannot follow one another")
    both: Channel = np.einsum("ko,okp->kop", earlier, each).reshape(len(earlier), -1)
    return both


def histogram_channel(parameter: float, reach: int = 6) -> Channel:
    """What two noisy counts tell about one record that lies in the one or in the other; noise P[z] ~ exp(-parameter |z|).

    Discrete Laplace noise beyond `reach` is told as `reach`, which changes no ratio. Of shape (2, (2 reach + 1)**2).
    """
    if not (math.isfinite(parameter) and parameter > 0 and reach > 1):
        raise ValueError(f"the parameter of discrete Laplace noise is above 0 and reach above 1, not {parameter} and {reach}")
    values = np.arange(-reach, reach + 1)
    with_it, without = (_lumped_laplace(values - moved, parameter) for moved in (1, 0))
    return np.stack([np.outer(with_it, without).ravel(), np.outer(without, with_it).ravel()])


def share_right(matrices: ArrayLike, priors: ArrayLike) -> NDArray[np.float64]:
    """How probable it is that the output is the true label, by prior; of shape (B,). Outputs are labels: O is K at least."""
    known, weights = channels(matrices), checked(priors)
    if known.shape[2] < known.shape[1] or weights.shape[1] != known.shape[1]:
        raise BadChannel(f"{weights.shape[1]} classes, but a channel from {known.shape[1]} labels to {known.shape[2]} outputs")
    shares: NDArray[np.float64] = np.einsum("bk,bkk->b", weights, known[:, :, : known.shape[1]])
    return shares


def largest_share(priors: ArrayLike, epsilon: float) -> NDArray[np.float64]:
    """Of all epsilon-DP randomizers, that of the best one for each prior (Ghazi et al. 2021, theorem 3); of shape (B,).

    max over k of (sum of the k largest) / (1 + (k - 1) exp(-epsilon)). No attacker who knows the prior guesses better, either.
    """
    if math.isnan(epsilon) or epsilon < 0:
        raise ValueError(f"epsilon is not negative, and not {epsilon}")
    weights: Priors = checked(priors)
    sums = np.sort(weights, axis=1)[:, ::-1].cumsum(axis=1)
    largest: NDArray[np.float64] = (sums / (1.0 + np.arange(weights.shape[1]) * math.exp(-epsilon))).max(axis=1)
    return largest


def _lumped_laplace(values: NDArray[np.int64], parameter: float) -> NDArray[np.float64]:
    """Probabilities of neighbouring values of discrete Laplace noise; the first and the last stand for all beyond them, too."""
    chances: NDArray[np.float64] = math.tanh(parameter / 2) * np.exp(-parameter * np.abs(values))
    chances[[0, -1]] = np.exp(-parameter * np.abs(values[[0, -1]])) / (1.0 + math.exp(-parameter))
    return chances
