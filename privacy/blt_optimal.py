"""The BLT of least loss: L-BFGS over the poles of c and of 1 / c, in closed form, so that a step costs the same for every n.

Write theta = exp(-x) and hat = exp(-y), interlaced as 0 < x_1 < y_1 < x_2 < y_2 < ..., which is what makes all omega positive and
c fall. Then, with products over j,

    omega_i = theta_i * prod (1 - exp(x_i - y_j)) / prod over j != i (1 - exp(x_i - x_j))

and the prefix errors come from beta = cumsum(1 / c): beta_i = A + sum B_j hat_j**i, whose terms are all positive, with

    A = prod (1 - theta_j) / (1 - hat_j)
    B_j = hat_j / (1 - hat_j) * prod over i (exp(y_j - x_i) - 1) / prod over i != j (1 - exp(y_j - y_i))     up to the sign

Sums over the steps are geometric sums of products of two poles. Gradients are taken by the complex step: exact to all digits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy
from numpy.typing import NDArray

from fedrho.privacy.participation import Participation
from fedrho.privacy.progress import Progress, unwatched
from fedrho.privacy.toeplitz import Objective, Series

Complex = NDArray[np.complex128]

MOST_BUFFERS = 4
"""Tried when the number is not given; more gain nothing under repeated participation."""
MOST_SINGLE_BUFFERS = 5
"""Tried for one participation, where a fifth still gains a little."""
MOST_STARTS = 7
"""From which poles of so many buffers are looked for."""
GAIN = 1e-7
"""Of the log loss; a further buffer that gains less is left away."""
SLOWEST = 1e-3
"""Smallest x_1 * steps: a pole so close to 1 that nothing of it is seen within the steps."""
FASTEST = 30.0
"""Largest step between two poles, in x: exp(-30) is 0 for all that is noticed."""
FLAT = 300.0
"""Where a sigmoid is 0 or 1 for all that is noticed, and its exponential still a float64."""
IMPOSSIBLE = 1e9
"""A log loss above all others."""
TINY = 1e-20


def optimal_buffers(
    steps: int,
    participation: Participation,
    buffers: int | None = None,
    objective: Objective = "rmse",
    progress: Progress = unwatched,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Decays and scales of the BLT that minimises the loss over `steps` steps; the same on every call.

    Without `buffers`, the best of up to four, or up to five for one participation.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if buffers is not None and buffers < 1:
        raise ValueError(f"buffers must be at least 1, not {buffers}")
    single = participation.most_times(steps) == 1
    most = buffers or (MOST_SINGLE_BUFFERS if single else MOST_BUFFERS)
    best, poles = np.inf, np.zeros(0)
    for count in range(1, most + 1):
        before = MOST_STARTS * (count - 1) - (count > 1)  # a single buffer extends none

        def told(done: int, before: int = before, count: int = count) -> None:
            doing = f"looking for the best {count} buffers, of up to {most}"
            progress("descent", before + done, MOST_STARTS * most - 1, doing)

        loss, found = _best(steps, participation, objective, _starts(steps, count, poles), told)
        if loss < best - GAIN or buffers:
            best, poles = loss, found
    return _to_buffers(poles)


def log_loss(poles: Series | Complex, steps: int, participation: Participation, objective: Objective) -> Complex:
    """log(squared sensitivity * squared error) of each row x_1, y_1, x_2, ... of `poles`, shape (rows, 2 * buffers)."""
    x, y = poles[:, 0::2].astype(np.complex128), poles[:, 1::2].astype(np.complex128)
    return np.asarray(np.log(_sensitivity_squared(x, _scales(x, y), steps, participation) * _error(x, y, steps, objective)))


def _best(
    steps: int, participation: Participation, objective: Objective, starts: list[Series], told: Callable[[int], None]
) -> tuple[float, Series]:
    """The least log loss reached from these poles, and the poles there.

    Descends over the poles' gaps, each a sigmoid. BFGS and not L-BFGS-B, whose tiny BLAS calls wait for each other's threads.
    """
    slowest = SLOWEST / steps
    least = SLOWEST * slowest
    tilt = 1j * TINY * np.eye(starts[0].size)

    def loss_and_gradient(free: Series) -> tuple[float, Series]:
        gaps = least + FASTEST / (1 + np.exp(-(np.clip(free, -FLAT, FLAT) + tilt)))
        with np.errstate(all="ignore"):  # poles that coincide in float64
            values = log_loss(slowest + np.cumsum(gaps, axis=1), steps, participation, objective)
        if not np.isfinite(values).all():
            return IMPOSSIBLE, np.zeros_like(free)
        return float(values[0].real), values.imag / TINY

    best, poles = np.inf, starts[0]
    for done, start in enumerate(starts):
        told(done)
        gaps = np.clip(np.diff(start, prepend=slowest) - least, least, (1 - 1e-9) * FASTEST)
        found = scipy.optimize.minimize(
            loss_and_gradient, np.log(gaps / (FASTEST - gaps)), (), "BFGS", jac=True, options={"maxiter": 300, "gtol": 1e-8}
        )
        if found.fun < best:
            best, poles = float(found.fun), slowest + np.cumsum(least + FASTEST / (1 + np.exp(-np.clip(found.x, -FLAT, FLAT))))
    return best, poles


def _starts(steps: int, buffers: int, fewer: Series) -> list[Series]:
    """Poles spread evenly over the time scales, from about all steps, or less, down to one; and the best `fewer` and a pair."""
    spread = [np.geomspace(low / steps, high + low / steps, 2 * buffers) for low in (0.3, 3.0, 30.0) for high in (0.3, 3.0)]
    extended = [np.append(fewer, fewer[-1] + np.array([0.5, 1.0]))] if fewer.size == 2 * buffers - 2 > 0 else []
    return spread + extended


def _scales(x: Complex, y: Complex) -> Complex:
    """omega of the pole pairs, shape (rows, buffers)."""
    return np.exp(-x) * _ratio(x, y)


def _ratio(own: Complex, other: Complex) -> Complex:
    """prod over j of (1 - exp(own_i - other_j)) / prod over j != i of (1 - exp(own_i - own_j))."""
    between = own[:, :, None] - own[:, None, :]
    between[:, range(own.shape[1]), range(own.shape[1])] = -np.inf
    return np.asarray((np.expm1(own[:, :, None] - other[:, None, :]) / np.expm1(between)).prod(axis=2))


def _sensitivity_squared(x: Complex, scales: Complex, steps: int, participation: Participation) -> Complex:
    """Kalinin & Lampert's sum, by stretches between the participations 0, b, 2b, ...; shape (rows,).

    In the m-th stretch the sum of columns is sum over i of a_i theta_i**(r-1), r = 1, 2, ..., with a_i = omega_i times the sum of
    theta_i**(l * b) over l <= m, and before that, at r = 0, 1 + the echo of the earlier participations.
    """
    times, b = participation.most_times(steps), participation.min_separation
    m = np.arange(float(times))
    rows = np.where(m < times - 1, b, steps - (times - 1) * b)[:, None, None] - 1  # after the participation itself
    heights = scales[:, None] * _geometric(x[:, None], m[:, None] + 1, b)
    echoes = (heights[:, :-1] * np.exp(-(b - 1.0) * x[:, None])).sum(axis=2)
    pairs = x[:, None, :, None] + x[:, None, None, :]
    after = heights[..., :, None] * heights[..., None, :] * _geometric(pairs, rows)
    return np.asarray(1 + ((1 + echoes) ** 2).sum(axis=1) + after.sum(axis=(1, 2, 3)))


def _error(x: Complex, y: Complex, steps: int, objective: Objective) -> Complex:
    """sum of w_i * beta_i**2, with w as in `error_weights`; shape (rows,). The pole 1 of the cumulative sum is y = 0."""
    constant = np.prod(np.expm1(-x) / np.expm1(-y), axis=1)
    heights = np.concatenate((constant[:, None], -_ratio(y, x) / np.expm1(y)), axis=1)
    poles = np.concatenate((np.zeros_like(constant)[:, None], y), axis=1)
    pairs = (poles[:, :, None] + poles[:, None, :]).reshape(len(x), -1)
    sums = np.empty_like(pairs)
    if objective == "max":
        sums[:, 0], sums[:, 1:] = steps, _geometric(pairs[:, 1:], steps)
    else:
        rest = pairs[:, 1:]
        sums[:, 0] = steps * (steps + 1) / 2
        sums[:, 1:] = (np.exp(-rest) * _geometric(rest, steps) - steps) / np.expm1(-rest)
    return np.asarray(((heights[:, :, None] * heights[:, None, :]).reshape(pairs.shape) * sums).sum(axis=1))


def _geometric(x: Complex, count: Series | float, stride: float = 1.0) -> Complex:
    """sum of exp(-x * stride * i) over i < count."""
    return np.asarray(np.expm1(-x * stride * count) / np.expm1(-x * stride))


def _to_buffers(poles: Series) -> tuple[tuple[float, ...], tuple[float, ...]]:
    x, y = poles[None, 0::2].astype(np.complex128), poles[None, 1::2].astype(np.complex128)
    return tuple(np.exp(-x[0].real).tolist()), tuple(_scales(x, y)[0].real.tolist())
