"""Squared sensitivity of a binary tree to a client that takes part at most k times, at differences of at least b.

The worst client sends the same unit vector each time, so the squared sensitivity is the largest value, over the admissible sets
of steps, of the sum over nodes of (participations below the node)**2 (Kairouz et al. 2021, arXiv 2103.00039, App. D.2). A greedy
packing of the steps is not the worst one; this is a dynamic program over blocks instead of over single steps.

For a complete block of height h (L = 2**h leaves) and j participations, V(j, s, e) is the largest sum of squares when the
first one may not come before leaf s, and the next one, in a later block, not before its leaf e:

    V(0, s, e) = 0                    if s <= L + e
    V(1, s, e) = h + 1                if s <= min(L - 1, L + e - b)
    V(j, s, e) = j**2 + max over i, m of  left(j - i, s, m) + right(i, m, e)        the max-plus product of the two halves

and the blocks of the forest are chained in the order of time. Where that would take minutes, a bound stands in, level by level:
the nodes of height d hold at most c = min(k, ceil(2**d / b)) participations each and k together, so their squares sum to at most
k * c. It is exact when k and n / k are powers of two and b = n / k, and never too small.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.participation import Participation

Table = NDArray[np.int64]
IMPOSSIBLE = -(2**60)
MOST_WORK = 1.5e9
"""Additions, about, that the exact program may cost: a second or so, and some ten million numbers of memory."""


def tree_sensitivity_squared(steps: int, participation: Participation) -> int:
    """Squared L2 sensitivity of the nodes completed by `steps` steps, in units of the squared clip norm.

    Guarantees: exact where `is_exact`, and never too small.
    """
    if steps <= 0:
        return 0
    if participation.most_times(steps) == 1:
        return steps.bit_length()
    exact = is_exact(steps, participation)
    return exact_sensitivity_squared(steps, participation) if exact else bound_by_levels(steps, participation)


def is_exact(steps: int, participation: Participation) -> bool:
    """Whether the exact program is affordable."""
    return participation.most_times(steps) ** 2 * participation.min_separation**3 <= MOST_WORK


def bound_by_levels(steps: int, participation: Participation) -> int:
    """The sum over heights of the most that the squares of one height can come to."""
    times, separation = participation.most_times(steps), participation.min_separation
    return sum(times * min(times, -(-(2**height) // separation)) for height in range(steps.bit_length()))


@lru_cache(maxsize=1024)
def exact_sensitivity_squared(steps: int, participation: Participation) -> int:
    """The dynamic program."""
    separation, times = participation.min_separation, participation.most_times(steps)
    best = np.full((times + 1, separation), IMPOSSIBLE, dtype=np.int64)
    best[0, 0] = 0
    for height in reversed(range(steps.bit_length())):
        if steps >> height & 1:
            best = _chain(best, _block(height, separation, participation.max_times))
    return int(best.max())


def _chain(best: Table, block: Table) -> Table:
    """best[j, s] over the blocks so far, then one more block."""
    after = np.full_like(best, IMPOSSIBLE)
    for here in range(min(len(block), len(best))):
        reached = (best[: len(best) - here, :, None] + block[here][None]).max(axis=1)
        np.maximum(after[here:], reached, out=after[here:])
    return after


@lru_cache(maxsize=64)
def _block(height: int, separation: int, times: int) -> Table:
    """V[j] for j up to what fits, shape (j + 1, separation, separation)."""
    leaves = 2**height
    most = min(times, 1 + (leaves - 1) // separation)
    start, end = np.ogrid[:separation, :separation]
    table = np.full((most + 1, separation, separation), IMPOSSIBLE, dtype=np.int64)
    table[0][start <= leaves + end] = 0
    table[1][start <= np.minimum(leaves - 1, leaves + end - separation)] = height + 1
    if most > 1:
        half = _block(height - 1, separation, times)
        product = _max_plus(half, half, most)
        squares = np.arange(2, most + 1, dtype=np.int64)[:, None, None] ** 2
        table[2:] = np.where(product[2:] >= 0, product[2:] + squares, IMPOSSIBLE)
    return table


def _max_plus(left: Table, right: Table, most: int) -> Table:
    """max over i, m of left[j - i][:, m] + right[i][m, :] for every j up to `most`."""
    separation = left.shape[1]
    product = np.full((most + 1, separation, separation), IMPOSSIBLE, dtype=np.int64)
    for i in range(len(right)):
        firsts = left[: most + 1 - i]
        target = product[i : i + len(firsts)]
        for m in range(separation):
            np.maximum(target, firsts[:, :, m, None] + right[i, None, m, None, :], out=target)
    return product
