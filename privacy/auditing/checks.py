"""The contract of every mechanism as a function: what it finds wrong, instead of an exception; nothing found is an empty list.

draws        each node's noise is drawn once, reported when drawn, and is all the noise there is
release      what leaves is the sum plus that noise, and the noise does not depend on the sum
covariance   zero updates give noise with the variances that are claimed for the prefix sums, in every coordinate its own
sensitivity  no client that could be found moves the whitened stream by more than it is priced for
replay       a state restored from stored seeds goes on with the same noise, or refuses
cost         the price follows from the sensitivity, and grows with the steps
refusal      noise that protects nothing, and sums of another grid or length, are refused before anything is drawn
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
import scipy

from fedrho.privacy.auditing.attacker import (
    Matrix,
    Tape,
    claimed_stddev,
    information,
    noise_table,
    resolution,
    strength,
    strongest_signal,
)
from fedrho.privacy.clipping import clip
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.noise import KeptVector, NoiseMismatch, NoiseNode, NoiseSource, ReplayedNoise, SystemNoise
from fedrho.privacy.participation import Participation
from fedrho.privacy.progress import Progress, unwatched, watched
from fedrho.privacy.vectors import ClippedSum, Grid, IntVector, Update
from fedrho.privacy.zcdp import gaussian_rho

AnyMechanism = Mechanism[Any]
RELATIVE = 1e-6
"""Of float64 and of the inverse, beside the rounding of the noise table; every real mistake is far above."""
FLOAT = 1e-12
"""Of float64 in sums of some hundred products."""
RESTORED_AT = (63, 64, 65, 100, 127, 128, 130, 197)
"""About the steps after which vectors are first kept, and replaced or merged; a tree keeps two of them after the last."""


class Check(Enum):
    """Which part of the contract a finding is about."""

    DRAWS = "draws"
    RELEASE = "release"
    COVARIANCE = "covariance"
    SENSITIVITY = "sensitivity"
    REPLAY = "replay"
    COST = "cost"
    REFUSAL = "refusal"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong."""

    check: Check
    text: str

    def __str__(self) -> str:
        return f"{self.check.value}: {self.text}"


def check_mechanism(
    mechanism: AnyMechanism,
    steps: int,
    participation: Participation,
    source: NoiseSource | None = None,
    *,
    enforced: Participation | None = None,
    progress: Progress = unwatched,
) -> list[Finding]:
    """Everything in the table above, in a second or so for 64 steps; `source` is fresh noise of the system when not given.

    Raises ValueError where the mechanism cannot be priced for `participation`.
    """
    drawn_from = source or SystemNoise()
    checks: list[Callable[[], Iterable[Finding]]] = [
        lambda: draw_audit(mechanism, steps, drawn_from),
        lambda: release_audit(mechanism, steps, drawn_from),
        lambda: noise_audit(mechanism, steps, drawn_from),
        lambda: sensitivity_audit(mechanism, steps, participation, drawn_from, enforced=enforced),
        lambda: replay_audit(mechanism, steps, drawn_from),
        lambda: cost_audit(mechanism, steps, participation),
        lambda: refusal_audit(mechanism, drawn_from),
    ]
    return [finding for check in watched(checks, "check", progress, "checking the contract") for finding in check()]


def draw_audit(mechanism: AnyMechanism, steps: int, source: NoiseSource) -> list[Finding]:
    """Names are drawn once and reported; with silent nodes nothing is left."""
    found, tape, reported = [], Tape(source), list[NoiseNode]()
    state, silent = mechanism.init(2), mechanism.init(2)
    for step in range(1, steps + 1):
        _, state = mechanism.next_noise(state, tape)
        reported += state.drawn
        noise, silent = mechanism.next_noise(silent, _Silence())
        if (state.step, state.size) != (step, 2):
            found.append(Finding(Check.DRAWS, f"the state after step {step} says step {state.step}, size {state.size}"))
        if noise.any():
            found.append(Finding(Check.DRAWS, f"step {step} has noise that does not come from the source"))
    names = [node.name for node in tape.nodes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        found.append(Finding(Check.DRAWS, f"drawn more than once: {', '.join(twice[:5])}"))
    if sorted(names) != sorted(node.name for node in reported):
        found.append(Finding(Check.DRAWS, "the states do not report exactly the nodes that were drawn"))
    return found


def release_audit(mechanism: AnyMechanism, steps: int, source: NoiseSource) -> list[Finding]:
    """The same noise under zero sums and under large random ones."""
    random = np.random.Generator(np.random.PCG64(0))
    totals = random.integers(-(2**40), 2**40, (steps, 4))
    tape = Tape(source)
    try:
        noise = _stream(mechanism, np.zeros_like(totals), tape)
        released = _stream(mechanism, totals, tape.rewound())
    except ValueError as error:
        return [Finding(Check.RELEASE, f"sums on the mechanism's own grid are refused: {error}")]
    wrong = np.flatnonzero((released - noise != totals).any(axis=1))
    return [Finding(Check.RELEASE, f"step {step + 1} is not its sum plus noise that ignores the sum") for step in wrong[:1]]


def noise_audit(mechanism: AnyMechanism, steps: int, source: NoiseSource, size: int = 10_000) -> list[Finding]:
    """Zero updates: prefix variances against the claimed ones, then the released stream against the noise table.

    Each coordinate of each step must be what the table makes of that coordinate's own draws, but for rounding; so no coordinate
    goes without noise or shares another's. That the draws are as the table takes them to be, is statistical: every entry of the
    released covariance within its standard error, sqrt((v_i v_j + c**2) / size), times a factor that one honest mechanism in a
    million exceeds somewhere.
    """
    table, tape = noise_table(mechanism, steps), Tape(source)
    released = _stream(mechanism, np.zeros((steps, size), dtype=np.int64), tape)
    return [
        *_prefix_findings(mechanism, table),
        *_coordinate_findings(mechanism, table, released, tape),
        *_covariance_findings(mechanism, table, released),
    ]


def _prefix_findings(mechanism: AnyMechanism, table: Matrix) -> Iterator[Finding]:
    actual = np.sum(np.cumsum(table, axis=0) ** 2, axis=1)
    claimed = mechanism.prefix_variances(len(table))
    for step in np.flatnonzero(~np.isclose(actual, claimed, rtol=_tolerance(mechanism, len(table)), atol=0.0))[:1]:
        text = f"the sum of the first {step + 1} releases has noise variance {actual[step]:.6g}, claimed {claimed[step]:.6g}"
        yield Finding(Check.COVARIANCE, text)


def _coordinate_findings(mechanism: AnyMechanism, table: Matrix, released: IntVector, tape: Tape) -> Iterator[Finding]:
    """`released` against the table times the draws, coordinate by coordinate."""
    size, draws, unit = released.shape[1], len(tape.recorded), claimed_stddev(mechanism)
    if draws != table.shape[1] - mechanism.counts:
        yield Finding(Check.COVARIANCE, f"vectors of {size} coordinates get the noise of more or fewer nodes than short ones")
        return
    nodes = np.zeros((draws, size))
    for row, (vector, _), stddev in zip(nodes, tape.recorded, tape.stddevs, strict=True):
        if vector.size == size and stddev > 0:  # those of counts are not released
            np.multiply(vector, unit / stddev, out=row)
    weights = table[:, :draws]
    off = np.abs(released - weights @ nodes)
    wrong = ~(off <= _rounding(mechanism, weights, nodes)[:, None])
    for step in np.flatnonzero(wrong.any(axis=1))[:1]:
        many, most = np.count_nonzero(wrong[step]), off[step].max() / unit
        text = f"{many} of {size} coordinates of step {step + 1} are not the noise of their nodes, by up to {most:.3g} deviations"
        yield Finding(Check.COVARIANCE, text)


def _rounding(mechanism: AnyMechanism, weights: Matrix, nodes: Matrix) -> Matrix:
    """In grid units, of each step: its own rounding and what earlier steps' hand on, that of the table's entries, and float64's.

    A step rounds less than one unit, and rounding that is handed on is weighed as noise is; so is it in the table, of which each
    entry meets a draw.
    """
    reach = np.abs(weights).sum(axis=1)
    met = resolution(mechanism) * np.abs(nodes).sum(axis=0).max(initial=0.0)
    bound: Matrix = (1.0 + reach) * (1.0 + met) + FLOAT * reach * np.abs(nodes).max(initial=0.0)
    return bound


def _covariance_findings(mechanism: AnyMechanism, table: Matrix, stream: IntVector) -> Iterator[Finding]:
    steps, size = stream.shape
    unit = claimed_stddev(mechanism)
    released = stream / unit
    expected = table @ table.T
    variances = np.diag(expected)
    factor = -float(scipy.special.ndtri(0.5e-6 / steps**2))
    tolerance = factor * np.sqrt((np.outer(variances, variances) + expected**2) / size) + 1.0 / unit**2
    wrong = np.argwhere(~(np.abs(released @ released.T / size - expected) <= tolerance))
    for i, j in wrong[:1]:
        yield Finding(Check.COVARIANCE, f"the released noise of steps {i + 1} and {j + 1} is not what the mechanism's nodes give")


def sensitivity_audit(
    mechanism: AnyMechanism,
    steps: int,
    participation: Participation,
    source: NoiseSource,
    *,
    enforced: Participation | None = None,
) -> list[Finding]:
    """The same noise twice, once without one client: its whitened difference against the claimed sensitivity.

    The client is the worst that could be found; it sends the same clipped vector each time, or its negative. `enforced` is what
    a server really lets it do, if that may differ from the `participation` that is paid for.
    """
    claimed = mechanism.sensitivity(steps, participation).squared
    inverse = information(noise_table(mechanism, steps))
    signal = strongest_signal(inverse, enforced or participation)
    full = clip(Update(np.array([0.0, 7.0 * mechanism.grid.clip_norm, 0.0], dtype=np.float32)), mechanism.grid).vector
    tape = Tape(source)
    without = _stream(mechanism, np.zeros((steps, 3), dtype=np.int64), tape)
    with_client = _stream(mechanism, np.outer(signal, full).astype(np.int64), tape.rewound())
    difference = (with_client - without) / mechanism.grid.radius
    shown = sum(strength(inverse, coordinate) for coordinate in difference.T)
    if shown <= claimed * (1.0 + _tolerance(mechanism, steps)):
        return []
    taken = ", ".join(str(step + 1) for step in np.flatnonzero(signal)[:12])
    text = f"a client in steps {taken} shows a squared sensitivity of {shown:.6g}, claimed {claimed:.6g}"
    return [Finding(Check.SENSITIVITY, text)]


@dataclass(frozen=True)
class _Moment:
    """What is stored of a state and what its step released, copied before a later step can change it."""

    released: IntVector
    step: int
    size: int
    drawn: tuple[NoiseNode, ...]
    live: tuple[NoiseNode, ...]
    kept: tuple[KeptVector, ...]

    @classmethod
    def of(cls, state: Any, released: IntVector) -> _Moment:
        return cls(released.copy(), state.step, state.size, tuple(state.drawn), tuple(state.live), _copied(state.kept))

    def goes_on_from(self, state: Any) -> bool:
        """Whether this state stores the same, bit by bit."""
        stored = (state.step, state.size, tuple(state.live), _contents(state.kept))
        return stored == (self.step, self.size, self.live, _contents(self.kept))


def replay_audit(mechanism: AnyMechanism, steps: int, source: NoiseSource) -> list[Finding]:
    """Restored from its live nodes and kept vectors at several steps, a mechanism goes on as if nothing had happened.

    It goes on to the next power of two and the next multiple of 64 at least, where noise of long ago comes up again: each step
    must release, draw and store the same. It is restored, too, where vectors have been kept, however few the `steps` are.
    """
    points = sorted({0, 1, steps // 3, steps // 2, steps - 1, *RESTORED_AT})
    tape, state = Tape(source), mechanism.init(4)
    moments = [_Moment.of(state, np.zeros(4, dtype=np.int64))]
    for _ in range(max(steps, *map(_far_enough, points))):
        released, state = _step(mechanism, state, tape)
        moments.append(_Moment.of(state, released))
    found = []
    for step in points:
        replayed = moments[step : max(steps, _far_enough(step)) + 1]
        try:
            text = _difference(mechanism, replayed, ReplayedNoise(tape.nodes))
        except NoiseMismatch as error:
            text = f"restored after step {step}: {error}"
        if text:
            found.append(Finding(Check.REPLAY, text))
    return found


def _far_enough(step: int) -> int:
    """The later one of the next power of two and the next multiple of 64."""
    return int(max(2 ** step.bit_length(), 64 * (step // 64 + 1)))


def _difference(mechanism: AnyMechanism, moments: list[_Moment], replayed: NoiseSource) -> str | None:
    """Where the mechanism, restored at the first of these, is not what it was at them."""
    first, *later = moments
    state = mechanism.restore(first.size, first.step, ReplayedNoise(first.live), _copied(first.kept))
    if not first.goes_on_from(state):
        return f"restored after step {first.step}, it does not store what it was restored from"
    for moment in later:
        released, state = _step(mechanism, state, replayed)
        if not np.array_equal(released, moment.released):
            return f"restored after step {first.step}, it does not go on with the same noise at step {moment.step}"
        if tuple(state.drawn) != moment.drawn or not moment.goes_on_from(state):
            return f"restored after step {first.step}, it does not store the same at step {moment.step}"
    return None


def _copied(kept: Iterable[KeptVector]) -> tuple[KeptVector, ...]:
    return tuple(KeptVector(one.name, one.vector.copy()) for one in kept)


def _contents(kept: Iterable[KeptVector]) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """Every vector's name, type, shape and bytes, in an order that does not matter."""
    return sorted((one.name, one.vector.dtype.str, one.vector.shape, one.vector.tobytes()) for one in kept)


def cost_audit(mechanism: AnyMechanism, steps: int, participation: Participation) -> list[Finding]:
    """rho = sensitivity / (2 * noise_multiplier**2), nothing for no step, and never less for more steps."""
    at = sorted({0, *(int(step) for step in np.linspace(1, steps, 16))})
    costs = [float(mechanism.cost(step, participation)) for step in at]
    priced = gaussian_rho(mechanism.sensitivity(steps, participation).squared, mechanism.noise_multiplier)
    found = []
    if not all(math.isfinite(cost) for cost in costs) or costs[0] != 0.0 or costs[1] <= 0.0:
        found.append(Finding(Check.COST, "the first step must cost something, no step nothing, and all a finite amount"))
    if costs != sorted(costs):
        found.append(Finding(Check.COST, "more steps cost less"))
    if not math.isclose(costs[-1], priced, rel_tol=RELATIVE):
        found.append(Finding(Check.COST, f"{steps} steps cost {costs[-1]:.6g}, but their sensitivity {priced:.6g}"))
    return found


def refusal_audit(mechanism: AnyMechanism, source: NoiseSource) -> list[Finding]:
    """Nonsense raises ValueError, and no noise is spent on it."""
    found = []
    for multiplier in (0.0, -1.0, math.nan, math.inf):
        if not _refuses_multiplier(mechanism, multiplier):
            found.append(Finding(Check.REFUSAL, f"a noise_multiplier of {multiplier} is accepted"))
    grid, other = mechanism.grid, Grid(2.0 * mechanism.grid.clip_norm, mechanism.grid.bits)
    fits = 3 + mechanism.counts
    for what, size, wrong in (("another length", fits + 1, grid), ("another clip norm", fits, other)):
        tape = Tape(source)
        try:
            mechanism.release(ClippedSum(np.zeros(size, dtype=np.int64), wrong), mechanism.init(3), tape)
        except ValueError:
            if not tape.recorded:
                continue
        found.append(Finding(Check.REFUSAL, f"a sum of {what} is not refused, or only after noise was drawn"))
    return found


def _refuses_multiplier(mechanism: AnyMechanism, multiplier: float) -> bool:
    try:
        replace(mechanism, noise_multiplier=multiplier)
    except ValueError:
        return True
    return False


def _tolerance(mechanism: AnyMechanism, steps: int) -> float:
    """Relative, for squares of sums of `steps` entries of the noise table."""
    return RELATIVE + 8.0 * steps * resolution(mechanism)


def _step(mechanism: AnyMechanism, state: Any, source: NoiseSource) -> tuple[IntVector, Any]:
    """What is released of a sum of zeros."""
    zeros = np.zeros(state.size + mechanism.counts, dtype=np.int64)
    released, after = mechanism.release(ClippedSum(zeros, mechanism.grid_at(state)), state, source)
    return released.vector, after


class _Silence:
    """Every node is zero."""

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        return np.zeros(size, dtype=np.int64), NoiseNode(name, b"", b"")


def _stream(mechanism: AnyMechanism, totals: IntVector, source: NoiseSource) -> IntVector:
    """What is released for sums of shape (steps, size), and for counts of zero where the mechanism asks for any."""
    state, released = mechanism.init(totals.shape[1]), []
    for total in totals:
        whole = np.concatenate([total, np.zeros(mechanism.counts, dtype=np.int64)])
        out, state = mechanism.release(ClippedSum(whole, mechanism.grid_at(state)), state, source)
        released.append(out.vector)
    return np.array(released)
