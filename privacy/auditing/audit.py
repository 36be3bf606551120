"""One mechanism under attack, with its claim beside what the attacks achieved.

The attacker sees every release, and knows the mechanism, who would take part when, and every direction: only the coins and the
noise are hidden. The sharpest of the tests is the white-box Gaussian separation test: the scores of canaries are independent,
N(0, 1) or N(mu, 1), and a claim of rho says mu <= sqrt(2 rho).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.privacy.auditing.attacker import Matrix, Signal, information, noise_table, strength, strongest_signal
from fedrho.privacy.auditing.intervals import Interval, auc_interval, separation_interval, share_interval
from fedrho.privacy.auditing.limits import largest_accuracy, largest_auc, largest_separation
from fedrho.privacy.auditing.one_run import epsilon_lower_bound, planned_guesses
from fedrho.privacy.auditing.one_shot import SMALLEST_SIZE, OneShotEstimate, estimate_from_final_model, random_directions
from fedrho.privacy.auditing.stream import Contribution, Stripes, clipped, run_with_canaries, whitened_scores
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.noise import NoiseSource
from fedrho.privacy.participation import Participation
from fedrho.privacy.progress import Progress, unwatched
from fedrho.privacy.zcdp import epsilon

MOST_STEPS = 256
MOST_DENSE = 1000
"""Canaries of the one-shot estimate, whose directions lie in memory whole."""
TESTS = 4
"""Whose false alarms add up to `Settings.false_alarm`: separation, AUC, accuracy, one-run."""


@dataclass(frozen=True)
class Settings:
    """How hard to look: 4,000 canaries mostly find noise that is 15 % too small, 10,000 find 10 %.

    `confidence` is that of each interval and of the one-run bound. A verdict needs more: an honest mechanism is contradicted with
    probability at most `false_alarm`, over all tests together. `seed` is of directions and coins, never of noise.
    """

    canaries: int = 4000
    size: int = 10_000
    confidence: float = 0.95
    false_alarm: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.canaries < 100:
            raise ValueError(f"at least 100 canaries are needed, not {self.canaries}")
        if self.size < max(SMALLEST_SIZE, self.canaries):
            raise ValueError(f"size must be at least {max(SMALLEST_SIZE, self.canaries)}, not {self.size}")
        for name in ("confidence", "false_alarm"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie strictly between 0 and 1, not {getattr(self, name)}")

    @property
    def strict(self) -> float:
        """The one-sided error that each test of the verdict may make."""
        return self.false_alarm / TESTS


@dataclass(frozen=True)
class Claim:
    """What the mechanism promises, and what that leaves to any attacker."""

    rho: float
    epsilon: float
    delta: float
    separation: float
    auc: float
    accuracy: float


@dataclass(frozen=True)
class Result:
    """One test: its estimate with an interval, the limit from the claim, and the lower end that the verdict goes by."""

    interval: Interval
    limit: float
    strict_low: float

    @property
    def contradicts(self) -> bool:
        return self.strict_low > self.limit


@dataclass(frozen=True)
class OneRunResult:
    """Guesses with abstention: `low` is the epsilon refuted at the confidence, `strict_low` the one that the verdict goes by."""

    guesses: int
    right: int
    low: float
    limit: float
    strict_low: float

    @property
    def contradicts(self) -> bool:
        return self.strict_low > self.limit


@dataclass(frozen=True)
class AuditReport:
    """Claim, attacks, verdict. `worst_steps` are those in which the canaries took part, numbered from 1.

    `planned_separation` is what this attack achieves by the mechanism's own noise table. Where it stays below the claim, the
    claim has room (it is a bound, or nodes are charged that are not published), or the worst client was not found.
    `one_shot` is the estimate for an attacker who sees the final model only; no verdict rests on it.
    """

    mechanism: str
    noise_multiplier: float
    clip_norm: float
    steps: int
    priced: Participation
    settings: Settings
    claim: Claim
    worst_steps: tuple[int, ...]
    planned_separation: float
    separation: Result
    auc: Result
    accuracy: Result
    one_run: OneRunResult
    one_shot: OneShotEstimate

    @property
    def contradictions(self) -> tuple[str, ...]:
        """The tests that beat the claim."""
        return tuple(name for name in ("separation", "auc", "accuracy", "one_run") if getattr(self, name).contradicts)

    @property
    def contradicts_claim(self) -> bool:
        return bool(self.contradictions)

    def as_json(self) -> dict[str, object]:
        """Plain numbers, strings, lists and dicts."""
        plain = asdict(self)
        plain["worst_steps"] = list(self.worst_steps)
        return plain | {"contradictions": list(self.contradictions), "contradicts_claim": self.contradicts_claim}


_Released = Callable[[Iterable[Matrix]], Matrix]
"""What a run with these canaries releases."""


@dataclass(frozen=True)
class _Attack:
    """Who takes part when, and the noise that the attacker reckons with."""

    signal: Signal
    inverse: Matrix
    separation: float


def audit(
    mechanism: Mechanism[Any],
    steps: int,
    participation: Participation,
    delta: float,
    source: NoiseSource,
    settings: Settings = Settings(),
    *,
    enforced: Participation | None = None,
    contribute: Contribution = clipped,
    progress: Progress = unwatched,
) -> AuditReport:
    """Attacks `steps` releases and compares with the price for `participation`.

    `enforced` is what the server really lets one client do, where that is in question; `contribute` what it really adds of one
    client. Where a mechanism asks for counts beside the weights, the canaries keep silent there. Raises ValueError where the
    mechanism cannot be priced, or beyond 256 steps.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"an audit takes between 1 and {MOST_STEPS} steps, not {steps}")
    claim = _claim(mechanism, steps, participation, delta)
    attack = _attack(mechanism, steps, enforced or participation)
    random = np.random.Generator(np.random.PCG64(settings.seed))
    included = random.integers(0, 2, settings.canaries).astype(bool)
    run = partial(
        run_with_canaries, mechanism, attack.signal, size=settings.size, source=source, contribute=contribute, progress=progress
    )
    scores = _scores(mechanism, attack, included, run, settings, random)
    return AuditReport(
        mechanism=mechanism.name,
        noise_multiplier=mechanism.noise_multiplier,
        clip_norm=mechanism.grid.clip_norm,
        steps=steps,
        priced=participation,
        settings=settings,
        claim=claim,
        worst_steps=tuple(int(step) + 1 for step in np.flatnonzero(attack.signal)),
        planned_separation=attack.separation,
        separation=_separation(scores, included, claim, settings),
        auc=_auc(scores, included, claim, settings),
        accuracy=_accuracy(scores, included, attack, claim, settings),
        one_run=_one_run(scores, included, attack, claim, settings, progress),
        one_shot=_one_shot(run, delta, settings, random),
    )


def _claim(mechanism: Mechanism[Any], steps: int, participation: Participation, delta: float) -> Claim:
    rho = mechanism.cost(steps, participation)
    return Claim(rho, epsilon(rho, delta), delta, largest_separation(rho), largest_auc(rho), largest_accuracy(rho))


def _attack(mechanism: Mechanism[Any], steps: int, participation: Participation) -> _Attack:
    inverse = information(noise_table(mechanism, steps))
    signal = strongest_signal(inverse, participation)
    return _Attack(signal, inverse, math.sqrt(strength(inverse, signal)) / mechanism.noise_multiplier)


def _scores(
    mechanism: Mechanism[Any],
    attack: _Attack,
    included: NDArray[np.bool_],
    run: _Released,
    settings: Settings,
    random: np.random.Generator,
) -> NDArray[np.float64]:
    stripes = Stripes(settings.canaries, settings.size, random)
    directions = (stripes.direction(canary) for canary in np.flatnonzero(included).tolist())
    released = run(directions)
    return whitened_scores(stripes.project(released), attack.signal, attack.inverse, mechanism.noise_multiplier)


def _separation(scores: NDArray[np.float64], included: NDArray[np.bool_], claim: Claim, settings: Settings) -> Result:
    shown = separation_interval(scores[included], scores[~included], (1.0 - settings.confidence) / 2.0)
    strict = separation_interval(scores[included], scores[~included], settings.strict)
    return Result(shown, claim.separation, strict.low)


def _auc(scores: NDArray[np.float64], included: NDArray[np.bool_], claim: Claim, settings: Settings) -> Result:
    shown = auc_interval(scores[included], scores[~included], (1.0 - settings.confidence) / 2.0)
    strict = auc_interval(scores[included], scores[~included], settings.strict)
    return Result(shown, claim.auc, strict.low)


def _accuracy(
    scores: NDArray[np.float64], included: NDArray[np.bool_], attack: _Attack, claim: Claim, settings: Settings
) -> Result:
    """Everyone is guessed: included when the score lies beyond half the separation that was planned."""
    right = int(np.count_nonzero((scores > attack.separation / 2.0) == included))
    shown = share_interval(right, scores.size, (1.0 - settings.confidence) / 2.0)
    strict = share_interval(right, scores.size, settings.strict)
    return Result(shown, claim.accuracy, strict.low)


def _one_run(
    scores: NDArray[np.float64],
    included: NDArray[np.bool_],
    attack: _Attack,
    claim: Claim,
    settings: Settings,
    progress: Progress,
) -> OneRunResult:
    """Half of the guesses are the highest scores, called included, half the lowest, called excluded."""
    guesses = planned_guesses(attack.separation, scores.size, claim.delta, settings.confidence, progress)
    order = np.argsort(scores)
    right = int(np.count_nonzero(included[order[-(guesses // 2) :]]) + np.count_nonzero(~included[order[: guesses // 2]]))

    def bound(confidence: float) -> float:
        return epsilon_lower_bound(scores.size, guesses, right, claim.delta, confidence)

    return OneRunResult(guesses, right, bound(settings.confidence), claim.epsilon, bound(1.0 - settings.strict))


def _one_shot(run: _Released, delta: float, settings: Settings, random: np.random.Generator) -> OneShotEstimate:
    """A run of its own, in which every canary takes part, with independent random directions of full length."""
    directions = random_directions(min(settings.canaries, MOST_DENSE), settings.size, random)
    return estimate_from_final_model(directions, run(directions), delta)
