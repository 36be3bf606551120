"""What the accountant says about a run that somebody else performs: a statement with everything that it takes for granted.

The server's own statement comes from its ledger, because it knows what it did. Here nothing is known but the numbers; so each
thing that must be true is said.
"""

from __future__ import annotations

from typing import Any

from fedrho.privacy.auditing.limits import largest_accuracy
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.participation import Participation
from fedrho.privacy.sampling import SampledGaussian
from fedrho.privacy.statement import SENSITIVITY, Neighbours, PrivacyStatement, Unit, round_up
from fedrho.privacy.zcdp import gaussian_epsilon

COMMON = (
    "what a device adds to one round is finite and has an L2 norm of at most the clip norm, checked before it is added",
    "the noise of each node or row is drawn once, by a cryptographic generator, and seen by nobody but the aggregator",
    "the noise is that of real Gaussians; float64 ones rounded to whole units of a fine grid come close to it",
    "who takes part, and when, does not depend on the data of a device",
    "the sum is divided by a public constant, never by the number of reports that came",
    "nothing else that depends on the devices' data is published: no losses, counts or norms",
    "rounds beyond those priced here, other runs on the same devices, and settings chosen with their data cost extra",
    "for a person with several devices rho is larger by the square of their number: two devices, four times the rho",
)

LITTLE = 0.1
"""rho up to which an attacker who guesses gains little; so says docs/read-a-statement.md."""

MUCH = 2.0
"""rho above which a claim alone does not rule out that a third is recognised at 1 % of false alarms; so says the same page."""

HARDLY = 5.0
"""rho above which a claim by itself protects hardly anybody; so says the same page."""

LARGE_DELTA = 1e-3
"""From here on it is said what a delta is: there are few populations so small that it would be below one over their number."""


def claim(mechanism: Mechanism[Any], rounds: int, participation: Participation) -> PrivacyStatement:
    """The statement about `rounds` releases of `mechanism`; raises ValueError where the mechanism cannot be priced."""
    sensitivity = mechanism.sensitivity(rounds, participation)
    return PrivacyStatement(
        unit=Unit.DEVICE,
        neighbours=Neighbours.ZERO_OUT,
        rho=mechanism.cost(rounds, participation),
        assumptions=(_kept(participation), f"there are {rounds} rounds with noise {mechanism.described()}", *COMMON),
        exact=sensitivity.exact,
    )


def sampled_assumptions(run: SampledGaussian) -> tuple[str, ...]:
    """What an epsilon from Poisson sampling takes for granted; it has no rho, and its neighbours are add-or-remove."""
    return (
        f"each device joins each of {run.steps} rounds independently with probability {run.sampling.rate!r}; this is enforced by "
        f"{run.sampling.enforced_by}, and who was drawn stays secret",
        f"the noise is drawn anew for each round (independent-gaussian), noise multiplier {run.noise_multiplier!r}",
        *COMMON[:-1],
        "a person with several devices is not covered",
    )


def _kept(participation: Participation) -> str:
    limit = f"each device takes part in at most {participation.max_times} of the rounds"
    if participation.max_times == 1:
        return f"{limit}, and somebody enforces that"
    how = "whole multiples of" if participation.cyclic else "at least"
    apart = participation.min_separation
    return f"{limit}, any two of them {how} {apart} apart (difference of their numbers), and somebody enforces that"


def in_words(statement: PrivacyStatement, delta: float) -> list[str]:
    """The claim in paragraphs for someone who does not know what rho is; figures are rounded against us."""
    unit, accuracy = statement.unit.value, 100.0 * largest_accuracy(statement.rho)
    terms = (
        f"In the terms of the field: rho = {round_up(statement.rho)} zCDP, which implies (epsilon, delta)-DP with epsilon = "
        f"{round_up(statement.epsilon(delta))} at delta = {delta!r}. The same Gaussian noise satisfies it exactly with epsilon "
        f"= {round_up(gaussian_epsilon(statement.rho, delta))}. It comes from {SENSITIVITY[statement.exact]}."
    )
    if delta >= LARGE_DELTA:
        terms += (
            f" A delta of {delta!r} is large: with that chance such a claim alone would let everything of a {unit} be "
            f"published. It should be well below one over the number of {unit}s."
        )
    return [
        f"Take any one {unit}, and imagine a second world in which all that it contributed was replaced by zeros. This "
        "claim bounds how different everything that the run publishes can look in the two worlds, whatever the others' data, "
        "and whatever anybody knows or computes.",
        f"That is: someone who knows everything but this {unit}'s contributions, sees all that is published, and has to tell "
        f"which of the two worlds is real, is right at most {round_up(accuracy, 3)} % of the time. Guessing gives 50 %.",
        verdict(statement),
        terms,
        f"It does not hide that the {unit} takes part, nor what is true of everybody: a model may well show what is true of "
        "most. It protects against what is published, not against whoever holds the clipped updates before the noise is added.",
    ]


def verdict(statement: PrivacyStatement) -> str:
    """What the claim is worth, in one sentence, the same wherever fedrho says it."""
    where = f"at rho = {round_up(statement.rho)} (zCDP, one {statement.unit.value}, {statement.neighbours.value})"
    if statement.rho <= LITTLE:
        return f"This guarantee is strong: {where} an attacker who guesses gains little."
    if statement.rho <= MUCH:
        return (
            f"This guarantee is moderate: {where} it lies between {LITTLE:g}, up to which an attacker who guesses gains little, "
            f"and {MUCH:g}, above which it alone does not rule out that {RECOGNISED}."
        )
    if statement.rho <= HARDLY:
        return f"This guarantee is weak: {where} it alone does not rule out that {RECOGNISED}."
    return (
        f"This guarantee is weak: {where} it protects hardly anybody by itself; what is left are the assumptions and the "
        "attacker's ignorance."
    )


RECOGNISED = "a third of those who took part are recognised, where one in a hundred of the others may be accused wrongly"
