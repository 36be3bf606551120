"""What the scores of canaries prove: separation, AUC and accuracy, each with ends that are seldom missed.

`miss` is the probability, on either side, that the truth lies beyond that end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

Scores = NDArray[np.float64]
ALMOST = 1e-12


@dataclass(frozen=True)
class Interval:
    """An estimate between its two ends."""

    estimate: float
    low: float
    high: float


def separation_interval(included: Scores, excluded: Scores, miss: float) -> Interval:
    """Difference of the means in standard deviations, of two Gaussian samples with one unknown variance.

    t = difference / standard error follows the noncentral t distribution; here in Jennett & Welch's normal approximation
    (Abramowitz & Stegun 1964, 26.7.10), good to three digits from some hundred scores on.
    """
    _check(included, excluded, miss)
    freedom = included.size + excluded.size - 2
    squares = float(np.sum((included - included.mean()) ** 2) + np.sum((excluded - excluded.mean()) ** 2))
    stddev = max(math.sqrt(squares / freedom), float(np.finfo(np.float64).tiny) ** 0.5)
    distance = float(included.mean() - excluded.mean()) / stddev
    scale = math.sqrt(1.0 / included.size + 1.0 / excluded.size)
    centre = distance * (1.0 - 1.0 / (4.0 * freedom))
    reach = -float(scipy.special.ndtri(miss)) * math.sqrt(scale**2 + distance**2 / (2.0 * freedom))
    return Interval(distance, centre - reach, centre + reach)


def auc_interval(included: Scores, excluded: Scores, miss: float) -> Interval:
    """The chance that an included score exceeds an excluded one (ties count half)."""
    _check(included, excluded, miss)
    return auc_ends(auc_of(included, excluded), included.size, excluded.size, miss)


def auc_of(included: Scores, excluded: Scores) -> float:
    """The estimate alone, by ranks (Mann & Whitney 1947)."""
    ranks = scipy.stats.rankdata(np.concatenate([included, excluded]))[: included.size]
    return float((ranks.sum() - included.size * (included.size + 1) / 2.0) / (included.size * excluded.size))


def auc_ends(auc: float, included: int, excluded: int, miss: float) -> Interval:
    """Around an AUC from so many scores of either kind.

    The ends are where the estimate lies as far away as Hanley & McNeil's variance at that end allows (Newcombe 2006, method 5),
    so they stay honest when the scores separate completely.
    """
    pairs, reach, mean_size = included * excluded, -float(scipy.special.ndtri(miss)), (included + excluded) / 2.0 - 1.0

    def beyond(end: float) -> float:
        spread = 1.0 + mean_size * ((1.0 - end) / (2.0 - end) + end / (1.0 + end))
        return (auc - end) ** 2 - reach**2 * end * (1.0 - end) * spread / pairs

    low = float(scipy.optimize.brentq(beyond, ALMOST, min(auc, 1.0 - ALMOST))) if auc > ALMOST and beyond(ALMOST) > 0 else 0.0
    high = (
        float(scipy.optimize.brentq(beyond, max(auc, ALMOST), 1.0 - ALMOST))
        if auc < 1.0 - ALMOST and beyond(1.0 - ALMOST) > 0
        else 1.0
    )
    return Interval(auc, low, high)


def share_interval(right: int, guesses: int, miss: float) -> Interval:
    """Of right guesses, exact (Clopper & Pearson 1934)."""
    low = float(scipy.special.betaincinv(right, guesses - right + 1, miss)) if right > 0 else 0.0
    high = float(scipy.special.betaincinv(right + 1, guesses - right, 1.0 - miss)) if right < guesses else 1.0
    return Interval(right / guesses, low, high)


def _check(included: Scores, excluded: Scores, miss: float) -> None:
    if min(included.size, excluded.size) < 2:
        raise ValueError("at least two scores of either kind are needed")
    if not (np.isfinite(included).all() and np.isfinite(excluded).all()):
        raise ValueError("scores must be finite")
    if not 0 < miss < 0.5:
        raise ValueError(f"miss must lie strictly between 0 and 1/2, not {miss}")
