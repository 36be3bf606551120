"""What an attacker who knows the mechanism knows: its noise as a table, and which client it protects least.

No mechanism shows its matrices; they are read off its noise. With T the table, T T' is the covariance of the noise of the steps
in units of the claimed node variance. A client who sends g_t * u at step t, u one vector of the clip norm, is seen best by the
test that weighs the steps with I g, where I = (T T')^-1. In that test it lies g' I g squared node deviations from absence: its
squared sensitivity as an attacker meets it, and at most what the mechanism is priced for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.noise import NoiseNode, NoiseSource
from fedrho.privacy.participation import Participation
from fedrho.privacy.vectors import MAX_GRID_BITS, Grid, IntVector

Matrix = NDArray[np.float64]
Signal = NDArray[np.float64]
"""What the worst client sends at each step, shape (steps,): 1 or -1 times its direction, or 0 where it stays away."""

PROBE = 8.0
"""Standard deviations that a node's own coordinate gets: within what every mechanism must take from a Gaussian."""
FLOOR = 1e-10
"""Of the largest eigenvalue of the covariance: what is smaller may be rounding. Raising it to this only understates an attack."""
MOST_STARTS = 24


class Tape:
    """Records what a source gives, in the order of drawing, and the deviations asked for; `rewound` gives the same again,
    whatever the names.
    """

    def __init__(self, source: NoiseSource | None, recorded: tuple[tuple[IntVector, NoiseNode], ...] = ()) -> None:
        self._source = source
        self._ahead = list(recorded)
        self.recorded: list[tuple[IntVector, NoiseNode]] = []
        self.stddevs: list[float] = []

    @property
    def nodes(self) -> list[NoiseNode]:
        return [node for _, node in self.recorded]

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        """Raises ValueError where a rewound tape is at its end."""
        if self._source is not None:
            drawn = self._source.draw(name, size, stddev)
        elif self._ahead:
            drawn = self._ahead.pop(0)
        else:
            raise ValueError(f"{name} was not drawn the first time")
        self.recorded.append(drawn)
        self.stddevs.append(stddev)
        return drawn[0].copy(), drawn[1]

    def rewound(self) -> Tape:
        return Tape(None, tuple(self.recorded))


class Probe:
    """The j-th draw gets PROBE of its standard deviations at coordinate j, and nothing elsewhere."""

    def __init__(self) -> None:
        self.draws = 0

    def draw(self, name: str, size: int, stddev: float) -> tuple[IntVector, NoiseNode]:
        vector = np.zeros(size, dtype=np.int64)
        if self.draws < size:
            vector[self.draws] = round(PROBE * stddev)
        self.draws += 1
        return vector, NoiseNode(name, b"", b"")


def claimed_stddev(mechanism: Mechanism[Any]) -> float:
    """Of one node, in grid units: what the price is computed from, whatever the mechanism draws."""
    return mechanism.noise_multiplier * mechanism.grid.radius


def noise_table(mechanism: Mechanism[Any], steps: int) -> Matrix:
    """Row t: what each draw of noise contributes to step t + 1, in units of the claimed deviation; shape (steps, draws).

    Entries are off by rounding to the finest grid, `resolution` each.
    """
    fine, counted = _on_the_finest_grid(mechanism), Probe()
    _probe(fine, steps, 1, counted)
    return _probe(fine, steps, counted.draws, Probe()) / (PROBE * claimed_stddev(fine))


def resolution(mechanism: Mechanism[Any]) -> float:
    """One unit of the finest grid, as the noise table sees it."""
    return 1.0 / (PROBE * claimed_stddev(_on_the_finest_grid(mechanism)))


def _on_the_finest_grid(mechanism: Mechanism[Any]) -> Mechanism[Any]:
    """The same mechanism with the least rounding; itself where its noise is too large for a finer grid."""
    try:
        return replace(mechanism, grid=Grid(mechanism.grid.clip_norm, MAX_GRID_BITS))
    except ValueError:
        return mechanism


def _probe(mechanism: Mechanism[Any], steps: int, size: int, probe: Probe) -> Matrix:
    state, rows = mechanism.init(size), []
    for _ in range(steps):
        noise, state = mechanism.next_noise(state, probe)
        rows.append(noise)
    return np.array(rows, dtype=np.float64)


def information(table: Matrix) -> Matrix:
    """The inverse of the noise's covariance over the steps, (steps, steps); a combination without noise gets almost none."""
    values, vectors = np.linalg.eigh(table @ table.T)
    inverse: Matrix = (vectors / np.maximum(values, FLOOR * values[-1])) @ vectors.T
    return inverse


def strongest_signal(inverse: Matrix, participation: Participation) -> Signal:
    """The g with the largest g' I g that could be found among those that `participation` allows.

    Greedy from many starts, then one step at a time taken away and replaced by what is best then. The worst client can be a
    little worse than this one, so what it shows is a lower bound.
    """
    steps = len(inverse)
    together = np.array([[participation.allows([i + 1], j + 1) for j in range(steps)] for i in range(steps)])
    times = participation.most_times(steps)
    signals = [
        _improve(inverse, _fill(inverse, start, together, times), together, times) for start in _starts(steps, participation)
    ]
    return max(signals, key=lambda signal: strength(inverse, signal))


def strength(inverse: Matrix, signal: Signal) -> float:
    """g' I g: the squared sensitivity that this client shows, in units of the squared clip norm."""
    return float(signal @ inverse @ signal)


def _starts(steps: int, participation: Participation) -> list[Signal]:
    """Nobody yet; as densely as allowed from several first steps on; and spread over all steps."""
    times, separation = participation.most_times(steps), participation.min_separation
    strides = {separation}
    if times > 1 and not participation.cyclic:
        strides.add(max(separation, (steps - 1) // (times - 1)))
    starts = [np.zeros(steps)]
    for stride in sorted(strides):
        room = steps - (times - 1) * stride
        for first in range(0, room, max(1, room // MOST_STARTS)):
            start = np.zeros(steps)
            start[first::stride][:times] = 1.0
            starts.append(start)
    return starts


def _fill(inverse: Matrix, signal: Signal, together: NDArray[np.bool_], times: int) -> Signal:
    """Adds the step that raises g' I g most, with its better sign, until no further one is allowed."""
    signal = signal.copy()
    while np.count_nonzero(signal) < times:
        allowed = (signal == 0) & together[signal != 0].all(axis=0)
        if not allowed.any():
            break
        field = inverse @ signal
        step = int(np.argmax(np.where(allowed, np.diag(inverse) + 2.0 * np.abs(field), -np.inf)))
        signal[step] = -1.0 if field[step] < 0 else 1.0
    return signal


def _improve(inverse: Matrix, signal: Signal, together: NDArray[np.bool_], times: int) -> Signal:
    """Takes one step away and fills again, as long as that helps."""
    best, found = strength(inverse, signal), True
    while found:
        found = False
        for step in np.flatnonzero(signal):
            trial = signal.copy()
            trial[step] = 0.0
            trial = _fill(inverse, trial, together, times)
            if strength(inverse, trial) > best * (1.0 + 1e-9):
                signal, best, found = trial, strength(inverse, trial), True
    return signal
