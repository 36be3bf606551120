"""Privacy auditing with one run (Steinke, Nasr & Jagielski 2023, arXiv 2305.08846).

m canaries are included by fair coins; the attacker guesses r of the coins and abstains from the others; v guesses are right. If
the run was (epsilon, delta)-DP, then with q = e**epsilon / (1 + e**epsilon) and W ~ Binomial(r, q)

    P[at least v right] <= P[W >= v] + 2 m delta * max over i = 1 ... v of P[v - i <= W < v] / i        Corollary 5.4

so an epsilon for which this is below 1 - confidence is refuted. Valid for any attacker, and any dependence between the guesses.
"""

from __future__ import annotations

import math

import numpy as np
import scipy

from fedrho.privacy.progress import Progress, unwatched, watched

LARGEST_EPSILON = 700.0
SHARES = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.45, 0.65, 1.0)
"""Of the canaries: how many guesses `planned_guesses` considers."""


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The chance at most of `right` or more right guesses, had the run been (epsilon, delta)-DP."""
    _check(canaries, guesses, right, delta)
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ValueError(f"epsilon must be finite and not negative, not {epsilon}")
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(scipy.stats.binom.sf(right - 1, guesses, chance))
    if right == 0 or delta == 0:
        return min(1.0, tail)
    just_below = np.cumsum(scipy.stats.binom.pmf(np.arange(right - 1, -1, -1), guesses, chance))
    steepest = float(np.max(just_below / np.arange(1, right + 1)))
    return min(1.0, tail + 2.0 * canaries * delta * steepest)


def epsilon_lower_bound(canaries: int, guesses: int, right: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that the guesses refute at `confidence`; 0 when they refute none.

    Guarantees: for a run that is (epsilon, delta)-DP it exceeds epsilon with probability at most 1 - confidence.
    Assumes: the coins are fair and independent, and `guesses` was fixed before anybody looked.
    """
    _check(canaries, guesses, right, delta)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, not {confidence}")
    level = 1.0 - confidence

    def excess(epsilon: float) -> float:
        return p_value(canaries, guesses, right, epsilon, delta) - level

    if excess(0.0) >= 0:
        return 0.0
    high = 1.0
    while excess(high) < 0:
        high *= 2.0
        if high > LARGEST_EPSILON:
            return LARGEST_EPSILON
    return float(scipy.optimize.brentq(excess, 0.0, high, xtol=1e-9))


def planned_guesses(
    separation: float, canaries: int, delta: float, confidence: float = 0.95, progress: Progress = unwatched
) -> int:
    """The even number of guesses that promises most against scores N(0, 1) and N(separation, 1), half at either end.

    It is computed from the attack alone, before any score is seen, so that the bound stays valid.
    """
    counts = [max(2, 2 * round(canaries * share / 2)) for share in SHARES]
    counts = sorted({count for count in counts if count <= canaries})

    def promise(guesses: int) -> float:
        right = math.floor(guesses * _accuracy_at_the_ends(separation, guesses / canaries))
        return epsilon_lower_bound(canaries, guesses, right, delta, confidence)

    return max(watched(counts, "plan", progress, "choosing how many to guess"), key=promise)


def _accuracy_at_the_ends(separation: float, share: float) -> float:
    """Share of right guesses when the highest and the lowest `share` / 2 of the scores are guessed; the two ends mirror."""

    def above(threshold: float) -> float:
        return float(scipy.special.ndtr(separation - threshold) + scipy.special.ndtr(-threshold)) / 2.0 - share / 2.0

    threshold = float(scipy.optimize.brentq(above, -40.0, separation + 40.0))
    included, excluded = float(scipy.special.ndtr(separation - threshold)), float(scipy.special.ndtr(-threshold))
    return included / (included + excluded)


def _check(canaries: int, guesses: int, right: int, delta: float) -> None:
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(f"need 0 <= right <= guesses <= canaries, not {right}, {guesses}, {canaries}")
    if not 0 <= delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, not {delta}")
