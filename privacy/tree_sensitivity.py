"""Squared sensitivity of binary trees to a client that takes part at most k times, at differences of at least b.

The worst client sends the same unit vector each time, so the squared sensitivity is the largest value, over the admissible sets
of steps, of the sum over nodes of (participations below the node)**2 (Kairouz et al. 2021, arXiv 2103.00039, App. D.2). A greedy
packing of the steps is not the worst one; this is a dynamic program over blocks instead of over single steps.

A *block* is a complete binary tree over 2**h leaves of which the first r are steps; the others are the virtual ones of a
completed tree. Into it comes a *carry* s < b, the first leaf where a participation may lie, and out of it goes the carry e of the
block after it. A block's table says, for j participations, which squares v can be reached, and with what least carry:

    E(0, 0, s) = max(0, s - r)
    E(1, h + 1, s) = max(0, s + b - r)         where s < r
    E(j, j**2 + v + w, s) = min over i, v, w of  E_right(j - i, w, E_left(i, v, s))

so that blocks of at most b steps need no product at all. The blocks of the trees are chained in the order of time, with k and b
shared by all of them. There are few different squares, and splits whose best cannot beat what is reached with the least
carry that there is are left out, which makes this much faster than a max-plus product of b x b tables.

Where it would still take longer than a few seconds, two bounds stand in; see `bound_by_levels` and `bound_by_merging`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.mechanism import Sensitivity
from fedrho.privacy.participation import Participation

Integers = NDArray[np.int64]
Carries = NDArray[np.int32]
IMPOSSIBLE = -(2**60)
MOST_WORK = 1e9
"""Numbers, about, that the exact program may touch: two seconds or so, counted to come out the same on every machine."""
OVERHEAD = 10_000
"""Of one call into numpy, in such numbers."""


class Tree(NamedTuple):
    """One tree of a schedule; `completed` adds virtual zero leaves at its end, up to the next power of two."""

    steps: int
    completed: bool = False

    @property
    def height(self) -> int:
        """Of its highest node."""
        return (self.steps - 1).bit_length() if self.completed else self.steps.bit_length() - 1

    def blocks(self) -> Iterator[tuple[int, int]]:
        """(height, steps) of its maximal complete subtrees, in the order of time."""
        if self.completed:
            yield self.height, self.steps
        else:
            yield from ((height, 2**height) for height in reversed(range(self.steps.bit_length())) if self.steps >> height & 1)


Trees = tuple[Tree, ...]


def tree_sensitivity(steps: int, participation: Participation) -> Sensitivity:
    """Sensitivity of the nodes of one tree that are completed by `steps` steps."""
    return forest_sensitivity([Tree(steps)], participation)


def forest_sensitivity(trees: Sequence[Tree], participation: Participation) -> Sensitivity:
    """Sensitivity of all nodes of trees that follow each other; the participation is counted across them.

    Guarantees: never too small, exact where it says so, and never less when the last tree has more steps, is completed, or is
    followed by another one.
    """
    forest = tuple(tree for tree in trees if tree.steps > 0)
    if not forest:
        return Sensitivity(0)
    times = participation.most_times(_total(forest))
    if times == 1:
        return Sensitivity(max(tree.height for tree in forest) + 1)
    if not participation.cyclic:
        return _separated(forest, participation.max_times, participation.min_separation)
    every_pass = cyclic_squares(forest, participation.min_separation)
    if times * participation.min_separation >= _total(forest):
        return Sensitivity(every_pass)
    return Sensitivity(
        min(every_pass, _separated(forest, participation.max_times, participation.min_separation).squared), exact=False
    )


def cyclic_squares(trees: Trees, separation: int) -> int:
    """The most for one client in every pass: the sets are s, s + b, s + 2b ..., and leaving a step out never raises a square."""
    squares, start = np.zeros(separation, dtype=np.int64), 0
    for tree in trees:
        for height, leaves in tree.blocks():
            client = np.arange(start, start + leaves) % separation
            alone = min(height + 1, separation.bit_length())  # nodes of at most b leaves hold nobody twice
            squares += alone * np.bincount(client, minlength=separation)
            for level in range(alone, height + 1):
                nodes = -(-leaves >> level)
                within = (np.arange(leaves) >> level) * separation + client
                counts = np.bincount(within, minlength=nodes * separation).reshape(nodes, separation)
                squares += (counts**2).sum(axis=0)
            start += leaves
    return int(squares.max())


@lru_cache(maxsize=4096)
def _separated(trees: Trees, times: int, separation: int) -> Sensitivity:
    """Exact where that is affordable; else the better bound, or what fewer steps cost, should that be more."""
    if is_affordable(trees, times, separation):
        return Sensitivity(exact_squares(trees, times, separation))
    bound = min(bound_by_levels(trees, times, separation), bound_by_merging(trees, times, separation))
    return Sensitivity(max(bound, _separated(_earlier(trees), times, separation).squared), exact=False)


def bound_by_levels(trees: Trees, times: int, separation: int) -> int:
    """The sum over heights of the most that the squares of one height can come to.

    The nodes of height d hold at most c = min(k, ceil(2**d / b)) participations each and k together, so their squares sum to at
    most k * c. It is exact for one tree when k and n / k are powers of two and b = n / k.
    """
    times = _most_times(trees, times, separation)
    fullest: dict[int, int] = {}
    for tree in trees:
        for height in range(tree.height + 1):
            here = min(times, _most_times((Tree(min(tree.steps, 2**height)),), times, separation))
            fullest[height] = max(fullest.get(height, 0), here)
    return times * sum(fullest.values())


def bound_by_merging(trees: Trees, times: int, separation: int) -> int:
    """The exact program on 2**c leaves merged into one, for the least c that is affordable; 2**c <= b.

    Steps at differences of b lie in merged leaves at differences of floor(b / 2**c) or more, and filling up a tree's last merged
    leaf only adds nodes and room: so every admissible set stays admissible. The nodes below hold one participation each at most,
    which makes c squares for every participation. So it is never too small; `exact_squares` adds the c at the leaves.
    """
    bound = _most_times(trees, times, separation) ** 2 * (1 + max(tree.height for tree in trees))
    for merged in reversed(range(1, separation.bit_length())):
        if not _fits(_merge(_longest(trees), merged), times, separation >> merged, merged):
            break
        bound = exact_squares(_merge(trees, merged), times, separation >> merged, merged)
    return bound


def _merge(trees: Trees, levels: int) -> Trees:
    return tuple(Tree(-(-tree.steps >> levels), tree.completed) for tree in trees)


def _earlier(trees: Trees) -> Trees:
    """The latest schedule before this one for which `is_affordable` may answer otherwise."""
    *before, last = trees
    if last.completed:
        return (*before, Tree(last.steps))
    if last.steps > 1:
        return (*before, Tree(2**last.height - 1))
    return (*before[:-1], Tree(before[-1].steps))


def _total(trees: Trees) -> int:
    return sum(tree.steps for tree in trees)


def _most_times(trees: Trees, times: int, separation: int) -> int:
    return Participation(times, separation).most_times(_total(trees))


def is_affordable(trees: Trees, times: int, separation: int) -> bool:
    """Whether the exact program touches few enough numbers.

    Answered for the last tree with as many steps as its height allows, and for every tree also as if it were not completed: so
    the answer never returns to yes as steps, completions and trees are added.
    """
    return _fits(_longest(trees), times, separation, merged=0)


def _longest(trees: Trees) -> Trees:
    """With as many steps as the height of the last tree allows."""
    *before, last = trees
    return (*before, last if last.completed else Tree(2 ** (last.height + 1) - 1))


def _fits(trees: Trees, times: int, separation: int, merged: int) -> bool:
    """Whether the tables of the largest blocks, and their chain over all trees but one, cost no more than they may."""
    times = _most_times(trees, times, separation)
    largest = max(tree.steps.bit_length() for tree in trees) - 1
    tops = {(largest, 2**largest), *((tree.height, tree.steps) for tree in trees if tree.completed)}
    work = 0.0
    for height, leaves in tops:
        table = _table(height, leaves, times, separation, merged)
        if table is None:
            return False
        work += table.work + (len(trees) - 1) * times * separation * table.rows
    return work <= _affordable_work(merged)


def _affordable_work(merged: int) -> float:
    """The bounds get less, there are several of them to try."""
    return MOST_WORK / 4 if merged else MOST_WORK


def exact_squares(trees: Trees, times: int, separation: int, merged: int = 0) -> int:
    """The dynamic program, whatever it costs up to `MOST_WORK` a block."""
    best = _after(trees[:-1], times, separation, merged)
    for height, leaves in trees[-1].blocks():
        best = _chain(best, _checked(height, leaves, times, separation, merged), times)
    return int(best.max())


@lru_cache(maxsize=16)
def _after(trees: Trees, times: int, separation: int, merged: int) -> Integers:
    """Best squares by participations so far and by carry, shape (j + 1, b): with that carry or a smaller one."""
    best = np.zeros((1, separation), dtype=np.int64)
    for tree in trees:
        for height, leaves in tree.blocks():
            best = _chain(best, _checked(height, leaves, times, separation, merged), times)
    return best


def _chain(best: Integers, table: Table, times: int) -> Integers:
    """One more block; the latest carry into it that leads to at most e is looked up for every e."""
    separation = best.shape[1]
    after = np.full((min(times + 1, len(best) + table.most), separation), IMPOSSIBLE, dtype=np.int64)
    for here, (squares, carries) in enumerate(zip(table.squares, table.carries, strict=True)):
        firsts = best[: len(after) - here]
        target = after[here : here + len(firsts)]
        for square, row in zip(squares, carries, strict=True):
            latest = np.searchsorted(row[:separation], np.arange(row[0], separation), side="right") - 1
            np.maximum(target[:, row[0] :], firsts[:, latest] + square, out=target[:, row[0] :])
    return after


@dataclass(frozen=True, eq=False)
class Table:
    """A block. For each j, `squares` that can be reached, ascending, and E as one row of `carries` each.

    A row has b + 1 columns: the last one, and the number b in any column, say that it is impossible. Rows are what is needed to
    reach that square or more, so the first one is the least carry that j participations can leave at all.
    """

    squares: list[Integers]
    carries: list[Carries]
    work: float

    @property
    def most(self) -> int:
        return len(self.squares) - 1

    @property
    def rows(self) -> int:
        return sum(map(len, self.squares))

    @cached_property
    def lowest(self) -> Integers:
        return np.array([squares[0] for squares in self.squares])

    @cached_property
    def highest(self) -> Integers:
        return np.array([squares[-1] for squares in self.squares])


def _table(height: int, leaves: int, times: int, separation: int, merged: int) -> Table | None:
    """None where it is not affordable."""
    return _cached_table(height, leaves, min(times, -(-leaves // separation)), separation, merged)


def _checked(height: int, leaves: int, times: int, separation: int, merged: int) -> Table:
    table = _table(height, leaves, times, separation, merged)
    if table is None:
        raise ValueError("this schedule is too large for the exact program")
    return table


@lru_cache(maxsize=64)
def _cached_table(height: int, leaves: int, most: int, separation: int, merged: int) -> Table | None:
    squares, carries = [np.zeros(1, dtype=np.int64)], [_earliest(0, leaves, separation)[None]]
    if most >= 1:
        squares.append(np.array([height + 1 + merged]))
        carries.append(_earliest(1, leaves, separation)[None])
    if most < 2:
        return Table(squares, carries, 0.0)
    half = 2 ** (height - 1)
    left = _table(height - 1, min(leaves, half), most, separation, merged)
    right = _table(height - 1, max(0, leaves - half), most, separation, merged)
    if left is None or right is None:
        return None
    work = max(left.work, right.work)
    for j in range(2, most + 1):
        earliest = _earliest(j, leaves, separation)
        packed = {min(j, max(0, -(-(min(leaves, half) - start) // separation))) for start in (0, separation - 1)}
        reached, needed, touched = _product(left, right, j, earliest, packed)
        squares.append(reached + j**2)
        carries.append(needed)
        work += touched
        if work > _affordable_work(merged):
            return None
    return Table(squares, carries, work)


def _product(left: Table, right: Table, times: int, earliest: Carries, packed: set[int]) -> tuple[Integers, Carries, float]:
    """Squares and carries of `times` participations in two halves, without their own square; and how many numbers were touched.

    The most promising split comes first, and squares up to `floor` are known to need no more than the earliest carry: at first
    because that is what packing as early as possible reaches, with `packed` participations in the left half.
    """
    firsts = np.arange(max(0, times - right.most), min(times, left.most) + 1)
    highest = left.highest[firsts] + right.highest[times - firsts]
    base = min(int(left.lowest[i] + right.lowest[times - i]) for i in packed if i >= firsts[0])
    needed = np.full((int(highest.max()) - base + 1, earliest.size), earliest.size - 1, dtype=np.int32)
    needed[0] = earliest
    floor, work = base, float(OVERHEAD + firsts.size)
    for split in np.argsort(-highest, kind="stable"):
        if highest[split] <= floor:
            break
        i = firsts[split]
        for square, row in zip(left.squares[i], left.carries[i], strict=True):
            start = np.searchsorted(right.squares[times - i], floor - square, side="right")
            here = right.squares[times - i][start:] + square - base
            needed[here] = np.minimum(needed[here], right.carries[times - i][start:, row])
            work += OVERHEAD + here.size * earliest.size
        reached = np.minimum.accumulate(needed[floor + 1 - base :][::-1])
        floor += int(np.count_nonzero((reached == earliest).all(axis=1)))
        work += OVERHEAD + reached.size
    needed = np.minimum.accumulate(needed[::-1])[::-1][floor - base :]
    last = np.append((needed[1:] != needed[:-1]).any(axis=1), True) & (needed < earliest.size - 1).any(axis=1)
    return floor + np.flatnonzero(last), needed[last], work


def _earliest(times: int, leaves: int, separation: int) -> Carries:
    """The least carry that so many participations leave, by the carry that comes in: each as early as it may."""
    carry = np.maximum(0, np.arange(separation + 1) + times * separation - leaves)
    carry[separation] = separation
    return np.minimum(carry, separation).astype(np.int32)
