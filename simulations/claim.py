"""What a simulation may say about privacy: what a deployed run would claim, and that it protects nobody itself."""

from __future__ import annotations

from dataclasses import dataclass

from fedrho.privacy.labels.statement import LabelStatement
from fedrho.privacy.sampling import SampledGaussian
from fedrho.privacy.statement import Neighbours, PrivacyStatement, Unit, round_up

PROTECTS_NOBODY = (
    "this was a simulation: its noise grew from a published seed, and the real data were in its hands, so it protects nobody; "
    "what follows is what a deployed run with these settings would claim"
)

ANSWERS_VOID = (
    "this was a simulation: its answers for labels grew from a published seed, and whoever knows it can tell labels from "
    "answers, so they protect nobody; what follows is what a deployed run with these settings would claim"
)


@dataclass(frozen=True)
class SampledStatement:
    """DP-FedAvg over enforced Poisson samples: (epsilon, delta) as the PLD accountant finds it. There is no rho.

    Guarantees: what `mechanism` released satisfies that for one device, if every assumption holds. Before the first release there
    is no mechanism, and epsilon is 0.
    """

    mechanism: SampledGaussian | None
    assumptions: tuple[str, ...]
    unit: Unit = Unit.DEVICE
    neighbours: Neighbours = Neighbours.ADD_OR_REMOVE

    def epsilon(self, delta: float) -> float:
        return 0.0 if self.mechanism is None else self.mechanism.epsilon(delta)

    def rows(self, delta: float) -> list[tuple[str, str]]:
        """The claim in words, as names and values; epsilon is rounded upward."""
        return [
            ("unit", f"one {self.unit.value}"),
            ("neighbours", f"{self.neighbours.value}: {self.neighbours.meaning}"),
            ("epsilon", f"{round_up(self.epsilon(delta))} at delta = {delta!r} (privacy loss distribution; Poisson sampling)"),
        ]


NO_GUARANTEE = "no guarantee: nothing was added"
AGAINST_NOBODY = (
    "this was a simulation of a run without privacy, for comparison: nothing was clipped and nothing was added, so it protects "
    "nobody, no deployed run could be made with these settings, and no server would take its task"
)


@dataclass(frozen=True)
class NoGuarantee:
    """What may be claimed about a run without privacy: nothing. It has no rho and no epsilon, not even infinite ones."""

    assumptions: tuple[str, ...] = ()

    def epsilon(self, delta: float | None) -> None:
        """There is none."""

    def rows(self, delta: float | None) -> list[tuple[str, str]]:
        return [("guarantee", NO_GUARANTEE)]


@dataclass(frozen=True)
class SimulatedStatement:
    """Not a `PrivacyStatement`, and nothing that adds statements takes it: `claim` holds for no run but a deployed one.

    `broken` are assumptions of the claim that the study's own devices do not keep.
    """

    claim: PrivacyStatement | SampledStatement | NoGuarantee
    broken: tuple[str, ...] = ()
    labels: LabelStatement | None = None
    """What a deployed run would claim about labels, beside the other claim; void here, where answers grow from the seed."""

    @property
    def assumptions(self) -> tuple[str, ...]:
        """First of all that nobody was protected."""
        return (self.simulation, *self.broken, *self.claim.assumptions)

    @property
    def simulation(self) -> str:
        """Why nobody was protected."""
        return AGAINST_NOBODY if isinstance(self.claim, NoGuarantee) else PROTECTS_NOBODY

    def epsilon_if_deployed(self, delta: float | None) -> float | None:
        """None where nothing is guaranteed."""
        return None if isinstance(self.claim, NoGuarantee) or delta is None else self.claim.epsilon(delta)

    def rows(self, delta: float | None) -> list[tuple[str, str]]:
        """In words: every line of the claim says that it is one of a deployed run."""
        if isinstance(self.claim, NoGuarantee) or delta is None:
            return [("simulation", AGAINST_NOBODY), ("guarantee", NO_GUARANTEE)]
        return [("simulation", PROTECTS_NOBODY), *((f"{name}, if deployed", text) for name, text in self.claim.rows(delta))]

    def label_rows(self) -> list[tuple[str, str]]:
        """The same about labels; empty where nothing would be claimed about them."""
        if self.labels is None:
            return []
        return [("simulation", ANSWERS_VOID), *((f"{name}, if deployed", text) for name, text in self.labels.rows())]
