"""What a randomizer of labels claims, beside what its matrix, its draws and two attackers find.

The exact matrix is the claim's proof for the priors that were tried; the draws show that what is drawn is that matrix; the
attacks would show what both overlook. A check holds, or the claim does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from fedrho.privacy.labels.attacks import Answering, agreement, likelihood_ratio_attack, one_run_attack
from fedrho.privacy.labels.chance import Chance
from fedrho.privacy.labels.channels import SLACK, BadChannel, Channel, channels, exact_loss, largest_share, share_right
from fedrho.privacy.labels.priors import Priors, checked
from fedrho.privacy.progress import Progress, unwatched, watched

LEAST_P_VALUE = 1e-6
"""Of draws against their matrix; a right sampler is seldom below it."""
SHORT = 1e-9
"""How much less often than the best randomizer one that claims to be best may tell the true label."""


@dataclass(frozen=True)
class Settings:
    """`draws` of each label and prior, so many `canaries`, and the confidence of what attacks prove.

    One right mechanism in 1 / (1 - confidence) fails an attack by chance.
    """

    draws: int = 20_000
    canaries: int = 50_000
    confidence: float = 0.9999


@dataclass(frozen=True)
class Finding:
    """One check: `found` may be no larger than `claimed`, or, of p-values and of shares of right answers, no smaller.

    Where nothing is claimed, None, it only tells.
    """

    check: str
    measure: str
    claimed: float | None
    found: float
    holds: bool
    detail: str

    def as_json(self) -> dict[str, object]:
        """Of infinite numbers the word: JSON has none."""
        return {
            "check": self.check,
            "measure": self.measure,
            "claimed": _number(self.claimed),
            "found": _number(self.found),
            "holds": self.holds,
            "detail": self.detail,
        }


@dataclass(frozen=True)
class LabelAudit:
    """All that was found about one mechanism."""

    mechanism: str
    epsilon: float | None
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        return tuple(finding.check for finding in self.findings if not finding.holds)

    def as_json(self) -> dict[str, object]:
        return {
            "mechanism": self.mechanism,
            "claimed_epsilon": _number(self.epsilon),
            "findings": [finding.as_json() for finding in self.findings],
            "holds": not self.failed,
        }


class HasMatrix(Protocol):
    def matrix(self, priors: Priors) -> Channel: ...


def audit(
    name: str,
    mechanism: Answering,
    prior: Sequence[float],
    chance: Chance,
    settings: Settings | None = None,
    best: bool = False,
    exact: HasMatrix | None = None,
    sampled: Answering | None = None,
    progress: Progress = unwatched,
) -> LabelAudit:
    """Every check there is, at `prior` of shape (K,), and the exact ones at hard priors, too.

    `best`: the mechanism claims that no other tells the true label more often. Where its own matrix is too large, `exact` has the
    part that proves the claim, for any prior, and `sampled`, about two labels, the part that is drawn. Raises BadPriors.
    """
    given, tried = checked([prior]), settings or Settings()
    drawn, at = (mechanism, given) if sampled is None else (sampled, checked([(0.5, 0.5)]))
    hard = np.concatenate([given, hard_priors(given.shape[1])]) if exact is None else given
    findings = [
        _exact(exact or mechanism, mechanism.epsilon, hard, progress),
        _drawn(drawn, at, tried, chance, progress),
        _alone(drawn, at, tried, chance, progress),
    ]
    if best:
        findings.insert(1, _best(mechanism, given, progress))
    findings.append(_attacked(mechanism, given, tried, chance, progress))
    findings.append(_one_run(mechanism, given, tried, chance, progress))
    return LabelAudit(name, mechanism.epsilon, tuple(findings))


def audit_channel(
    values: ArrayLike, epsilon: float | None = None, prior: Sequence[float] | None = None, slack: float = SLACK
) -> LabelAudit:
    """The exact epsilon of a matrix (K, O) of anybody's, beside a claim where there is one; raises BadChannel and BadPriors.

    With a prior also how often the output is the true label, beside the most that is possible at the epsilon found.
    """
    matrix = channels(values, slack)
    loss = exact_loss(matrix, slack)
    detail = f"output {loss.output} under label {loss.likely} against label {loss.unlikely} (from 0)"
    findings = [_epsilon("exact matrix", epsilon, loss.epsilon, detail, slack)]
    if prior is not None:
        told, most = float(share_right(matrix, [prior])[0]), float(largest_share([prior], loss.epsilon)[0])
        detail = f"{most:.6g} is the most that any mechanism reaches at this epsilon and prior"
        findings.append(Finding("true label told", "share", None, told, True, detail))
    return LabelAudit(f"matrix of {matrix.shape[1]} labels and {matrix.shape[2]} outputs", epsilon, tuple(findings))


def hard_priors(classes: int, seed: int = 0, count: int = 24) -> Priors:
    """Of every kind that mechanisms stumble over: even and spiky ones, ties, zeros, sure ones, and one that knows nothing."""
    generator = np.random.default_rng(seed)
    even, spiky = generator.dirichlet(np.ones(classes), count), generator.dirichlet(np.full(classes, 0.1), count)
    some = np.unique(np.linspace(0, classes - 1, min(classes, count)).astype(int))
    steps, sure = np.tri(classes)[some], np.eye(classes)[some]
    halves = 0.5 ** np.minimum(np.arange(classes), 1000)
    return checked(np.concatenate([even, spiky, steps, 1 + steps, sure, [halves, halves[::-1], np.zeros(classes)]]))


def _exact(mechanism: HasMatrix, epsilon: float, tried: Priors, progress: Progress) -> Finding:
    try:
        losses = [
            exact_loss(mechanism.matrix(one[None])) for one in watched(tried, "prior", progress, "looking at exact matrices")
        ]
    except BadChannel as error:
        return Finding("exact matrix", "epsilon", epsilon, math.inf, False, str(error))
    worst = int(np.argmax([loss.epsilon for loss in losses]))
    loss = losses[worst]
    detail = f"worst of {len(tried)} priors: output {loss.output} under label {loss.likely} against {loss.unlikely}"
    return _epsilon("exact matrix", epsilon, loss.epsilon, detail)


def _best(mechanism: Answering, prior: Priors, progress: Progress) -> Finding:
    tried = np.concatenate([prior, hard_priors(prior.shape[1])])
    seen = watched(tried, "prior", progress, "comparing with the best there is")
    told = np.concatenate([share_right(mechanism.matrix(one[None]), one[None]) for one in seen])
    most = largest_share(tried, mechanism.epsilon)
    worst = int((most - told).argmax())
    detail = f"worst of {len(tried)} priors: the true label comes with {told[worst]:.6g} of {most[worst]:.6g}"
    holds = bool(told[worst] >= most[worst] - SHORT)
    return Finding("true label told", "share", float(most[worst]), float(told[worst]), holds, detail)


def _drawn(mechanism: Answering, prior: Priors, settings: Settings, chance: Chance, progress: Progress) -> Finding:
    """In a batch whose records differ in label and prior."""
    other = checked(prior[:, ::-1])
    both = np.concatenate([prior, other]) if prior.shape[1] > 1 else prior
    return _agreed("sampler, one batch", mechanism, both, settings.draws, chance, progress)


def _alone(mechanism: Answering, prior: Priors, settings: Settings, chance: Chance, progress: Progress) -> Finding:
    """Ten records for each hundred of a batch at most: one at a time is slow."""
    return _agreed("sampler, one by one", mechanism, prior, max(1, settings.draws // 100), chance, progress, one_by_one=True)


def _agreed(
    check: str, mechanism: Answering, priors: Priors, draws: int, chance: Chance, progress: Progress, one_by_one: bool = False
) -> Finding:
    found = agreement(mechanism, priors, draws, chance, one_by_one, progress)
    detail = f"{draws} draws of each label" + ("" if found.likelihoods_agree else "; likelihoods are not the matrix's")
    holds = found.likelihoods_agree and found.p_value >= LEAST_P_VALUE
    return Finding(check, "p-value", LEAST_P_VALUE, found.p_value, holds, detail)


def _attacked(mechanism: Answering, prior: Priors, settings: Settings, chance: Chance, progress: Progress) -> Finding:
    found = likelihood_ratio_attack(mechanism, prior, settings.draws, chance, settings.confidence, progress)
    detail = (
        f"output {found.output}: {found.hits} of {found.draws} under label {found.likely}, "
        f"{found.false_hits} under label {found.unlikely}"
    )
    return _epsilon("likelihood ratio", mechanism.epsilon, found.epsilon_low, detail)


def _one_run(mechanism: Answering, prior: Priors, settings: Settings, chance: Chance, progress: Progress) -> Finding:
    found = one_run_attack(mechanism, prior, settings.canaries, chance, settings.confidence, progress)
    detail = f"{found.right} of {found.guesses} guesses right, of {found.canaries} canaries"
    return _epsilon("one run", mechanism.epsilon, found.epsilon_low, detail)


def _epsilon(check: str, claimed: float | None, found: float, detail: str, slack: float = SLACK) -> Finding:
    return Finding(check, "epsilon", claimed, found, claimed is None or found <= claimed + slack, detail)


def _number(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)
