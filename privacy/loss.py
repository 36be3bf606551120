"""What a mechanism's noise costs in accuracy at a given privacy, free of scale: sensitivity times error of the prefix sums.

At cost rho the real noise of a prefix sum has the standard deviation loss * clip_norm / sqrt(2 * rho), in the root mean square
over the steps (`rmse_loss`) or at the noisiest step (`max_loss`). Dividing `rmse_loss` by `lower_bound` says how far a mechanism
can be from the best of all factorisations.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.participation import Participation


def rmse_loss(mechanism: Mechanism[Any], steps: int, participation: Participation) -> float:
    """Root mean squared error of the prefix sums 1 ... steps, per unit of sensitivity."""
    squared = mechanism.sensitivity(steps, participation).squared
    return math.sqrt(squared * float(mechanism.prefix_variances(steps).mean()))


def max_loss(mechanism: Mechanism[Any], steps: int, participation: Participation) -> float:
    """Largest error of a prefix sum 1 ... steps, per unit of sensitivity."""
    squared = mechanism.sensitivity(steps, participation).squared
    return math.sqrt(squared * float(mechanism.prefix_variances(steps).max()))


def lower_bound(steps: int, participation: Participation) -> float:
    """No strategy has a smaller `rmse_loss`, nor `max_loss`: sqrt(k) * |A|_* / n, with |A|_* the nuclear norm of the prefix sums.

    If k divides n, and n / k is an allowed distance, then averaging over the n / k shifted schedules gives sensitivity**2 >=
    k * |C|_F**2 / n, and |A|_* <= |B|_F |C|_F for A = BC. It holds for every smaller number of participations as well, so the
    best of those that fit is taken; one always does.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    times = max(k for k in range(1, participation.most_times(steps) + 1) if _fits(k, steps, participation))
    angles = (2 * np.arange(1, steps + 1) - 1) * (math.pi / (4 * steps + 2))
    return math.sqrt(times) * float((0.5 / np.sin(angles)).sum()) / steps


def _fits(times: int, steps: int, participation: Participation) -> bool:
    """Whether a client may take part in every (steps / times)-th step, whichever it starts with."""
    period, rest = divmod(steps, times)
    schedule = range(1, steps + 1, period)
    return rest == 0 and all(participation.allows(schedule[:i], schedule[i]) for i in range(min(times, 2)))
