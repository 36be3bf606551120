"""What people say about a run on the command line, made into the accountant's own objects; what cannot be is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

import typer

from fedrho.console import BadInput
from fedrho.privacy.banded import MOST_BAND_STEPS, BandedToeplitz, optimal_bands
from fedrho.privacy.blt import BufferedToeplitz
from fedrho.privacy.blt_optimal import optimal_buffers
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.participation import Participation
from fedrho.privacy.toeplitz import Objective, square_root_coefficients
from fedrho.privacy.tree import LONGEST_TREE, BinaryTree
from fedrho.privacy.vectors import Grid
from fedrho.privacy.zcdp import Rho, largest_rho
from fedrho.work import Work

MOST_ROUNDS = 1_000_000
GRID = Grid(1.0, bits=1)
"""No price depends on it; the coarsest has room for the most noise."""
EVERY_HOURS = 24.0
"""Between two participations of a device, where days are given and no hours."""
RUN = "The run"
MECHANISM = "The mechanism"
BUDGET = "The budget"


class Kind(Enum):
    """A mechanism's name on the command line."""

    tree = "tree"
    independent = "independent"
    banded = "banded"
    blt = "blt"


class Goal(Enum):
    """What a strategy is made best for."""

    rmse = "rmse"
    max = "max"

    @property
    def objective(self) -> Objective:
        return "rmse" if self is Goal.rmse else "max"


@dataclass(frozen=True)
class Run:
    """How many rounds, and how often a device takes part; in rounds, or in days."""

    rounds: Annotated[
        int | None, typer.Option(help="Rounds that are released.", show_default="the sum of --restarts", rich_help_panel=RUN)
    ] = None
    max_participations: Annotated[
        int | None,
        typer.Option(help="Rounds that one device takes part in at most.", show_default="from --days", rich_help_panel=RUN),
    ] = None
    min_separation: Annotated[
        int | None,
        typer.Option(
            help="Least difference j - i of two rounds that one device takes part in.",
            show_default="1, or from --days",
            rich_help_panel=RUN,
        ),
    ] = None
    cyclic: Annotated[
        bool,
        typer.Option("--cyclic", help="Differences are whole multiples of the separation, as in epochs.", rich_help_panel=RUN),
    ] = False
    days: Annotated[
        float | None,
        typer.Option(help="Days that the rounds are spread over, instead of the two numbers above.", rich_help_panel=RUN),
    ] = None
    every_hours: Annotated[
        float, typer.Option(help="With --days: each device takes part at most once in so many hours.", rich_help_panel=RUN)
    ] = EVERY_HOURS
    devices: Annotated[
        int | None, typer.Option(help="Devices of the population, to check that the run is possible.", rich_help_panel=RUN)
    ] = None
    cohort: Annotated[int | None, typer.Option(help="With --devices: reports of a round.", rich_help_panel=RUN)] = None
    restarts: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Tree: lengths of the trees, in rounds.", rich_help_panel=MECHANISM),
    ] = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """The trees' lengths as --restarts gives them."""
        return _integers("--restarts", self.restarts) if self.restarts is not None else ()

    @property
    def steps(self) -> int:
        """Raises BadInput where the number of rounds is missing, or cannot be."""
        lengths = self.lengths
        steps = self.rounds if self.rounds is not None else sum(lengths)
        if self.rounds is None and not lengths:
            raise BadInput("--rounds: missing; say how many rounds are released, for example --rounds 2000")
        check_between("--rounds", steps, 1, MOST_ROUNDS)
        if sum(lengths) > steps:
            raise BadInput(
                f"--restarts: {sum(lengths)} rounds of trees are more than the {steps} of the run; nearest: {steps} in sum"
            )
        return steps

    @property
    def before_last(self) -> tuple[int, ...]:
        """The lengths of all trees but the last."""
        return self.lengths[:-1] if sum(self.lengths) == self.steps else self.lengths

    @property
    def participation(self) -> Participation:
        """Raises BadInput where the limits are missing, contradict one another or the run."""
        steps = self.steps
        if self.days is None and self.every_hours != EVERY_HOURS:
            raise BadInput("--every-hours: needs --days; add it, or leave it out")
        if self.days is not None:
            found = self._from_days(self.days)
        elif self.max_participations is None:
            raise BadInput(
                "--max-participations: missing; say how often one device takes part at most, or give --days. Without a limit "
                f"it is --max-participations {steps}"
            )
        else:
            check_between("--max-participations", self.max_participations, 1)
            separation = 1 if self.min_separation is None else self.min_separation
            check_between("--min-separation", separation, 1)
            if separation > steps:
                or_once = ", or --max-participations 1" if self.max_participations > 1 else ""
                raise BadInput(
                    f"--min-separation: {separation} is longer than the run of {steps} rounds, so no device could take part "
                    f"twice; nearest: {steps}{or_once}"
                )
            found = Participation(self.max_participations, separation, self.cyclic)
        self._check_reachable(found)
        return found

    def _from_days(self, days: float) -> Participation:
        if self.max_participations is not None or self.min_separation is not None:
            raise BadInput("--days: says the same as --max-participations and --min-separation; give it or them")
        if self.cyclic:
            raise BadInput(
                "--cyclic: needs --max-participations and --min-separation instead of --days; leave it out, or give them"
            )
        for name, value in (("--days", days), ("--every-hours", self.every_hours)):
            check_positive(name, value, 1e-6, 1e6)
        return Participation.from_days(self.steps, days, self.every_hours)

    def check_population(self) -> None:
        """Refuses a population without a cohort, and a cohort that is larger than it."""
        if self.devices is None and self.cohort is None:
            return
        if self.devices is None or self.cohort is None:
            raise BadInput("--devices and --cohort: give both, or none")
        check_between("--devices", self.devices, 1)
        check_between("--cohort", self.cohort, 1, self.devices)

    def _check_reachable(self, participation: Participation) -> None:
        """Refuses a run that its population could not give."""
        self.check_population()
        if self.devices is None or self.cohort is None:
            return
        window = min(participation.min_separation, self.steps)
        if window * self.cohort > self.devices:
            nearest = f"--cohort {self.devices // window}" if self.devices >= window else f"--min-separation {self.devices}"
            raise BadInput(
                f"--cohort: {window} rounds of {self.cohort} different devices each need {window * self.cohort} devices; "
                f"nearest: {nearest}"
            )
        least = -(-self.steps * self.cohort // self.devices)
        if least > participation.max_times:
            raise BadInput(
                f"--max-participations: {self.devices} devices at {participation.max_times} times each cannot give "
                f"{self.steps} rounds of {self.cohort} reports; nearest: {least}"
            )


@dataclass(frozen=True)
class Shape:
    """Which mechanism, but for its noise."""

    completed: Annotated[
        bool,
        typer.Option(
            "--completed", help="Tree: complete each tree with virtual steps before a restart.", rich_help_panel=MECHANISM
        ),
    ] = False
    bands: Annotated[
        int | None,
        typer.Option(
            help="Banded: bands of the strategy.", show_default="as many as the separation allows", rich_help_panel=MECHANISM
        ),
    ] = None
    square_root: Annotated[
        bool,
        typer.Option(
            "--square-root", help="Banded: the square-root coefficients instead of the best ones.", rich_help_panel=MECHANISM
        ),
    ] = False
    buffers: Annotated[
        int | None, typer.Option(help="BLT: buffers of the strategy.", show_default="the best", rich_help_panel=MECHANISM)
    ] = None
    decay: Annotated[
        str | None, typer.Option(metavar="X,X,...", help="BLT: decays of a strategy of your own.", rich_help_panel=MECHANISM)
    ] = None
    scale: Annotated[
        str | None, typer.Option(metavar="X,X,...", help="BLT: with --decay, its scales.", rich_help_panel=MECHANISM)
    ] = None
    objective: Annotated[
        Goal, typer.Option(help="Banded and BLT: make the mean, or the largest error least.", rich_help_panel=MECHANISM)
    ] = Goal.rmse

    def optimised(self, kind: Kind) -> bool:
        """Whether this mechanism's strategy is looked for, so that --objective says something."""
        return (kind is Kind.banded and not self.square_root) or (kind is Kind.blt and self.decay is None)


@dataclass(frozen=True)
class Budget:
    """A limit: as rho, or as epsilon at a delta."""

    rho: Annotated[float | None, typer.Option(help="zCDP that may be spent.", rich_help_panel=BUDGET)] = None
    epsilon: Annotated[float | None, typer.Option(help="Instead of --rho: epsilon at --delta.", rich_help_panel=BUDGET)] = None
    delta: Annotated[float, typer.Option(help="Where epsilon is stated; far below 1 / devices.", rich_help_panel=BUDGET)] = 1e-6

    @property
    def name(self) -> str:
        """The option that says it."""
        return "--epsilon" if self.rho is None else "--rho"

    @property
    def limit(self) -> Rho:
        """Raises BadInput unless there is exactly one of rho and epsilon, and it can be kept."""
        check_delta(self.delta, None)
        if (self.rho is None) == (self.epsilon is None):
            raise BadInput("--rho or --epsilon: give one of them, for example --rho 0.81")
        if self.rho is not None:
            return Rho(check_positive("--rho", self.rho))
        assert self.epsilon is not None
        return largest_rho(check_positive("--epsilon", self.epsilon), self.delta)


def build(kind: Kind, run: Run, shape: Shape) -> Mechanism[Any]:
    """The mechanism at noise multiplier 1; finding a strategy may take seconds. Raises BadInput for options of another."""
    _check_belongs(kind, run, shape)
    return BUILDERS[kind](run, shape)


def _tree(run: Run, shape: Shape) -> Mechanism[Any]:
    if shape.completed and not run.before_last:
        raise BadInput(
            "--completed: only trees before a restart are completed, and there is none; add --restarts, or leave it out"
        )
    return BinaryTree(GRID, 1.0, run.before_last, shape.completed)


def _independent(run: Run, shape: Shape) -> Mechanism[Any]:
    return IndependentGaussian(GRID, 1.0)


def _banded(run: Run, shape: Shape) -> Mechanism[Any]:
    steps, participation = run.steps, run.participation
    repeated = participation.most_times(steps) > 1
    most = min(participation.min_separation, steps) if repeated else steps
    if shape.bands is not None and not 1 <= shape.bands <= most:
        why = f"the separation of two participations is {most}" if repeated else f"the run has {most} rounds"
        raise BadInput(
            f"--bands: {shape.bands} is not between 1 and {most}, because {why}; nearest: {max(1, min(shape.bands, most))}"
        )
    if shape.square_root:
        bands = shape.bands or min(most, max(1, MOST_BAND_STEPS // steps))
        return BandedToeplitz(GRID, 1.0, tuple(map(float, square_root_coefficients(bands))))
    with Work("finding the best bands", f"for {steps} rounds") as work:
        found = optimal_bands(steps, participation, shape.bands, shape.objective.objective, work.progress)
    return BandedToeplitz(GRID, 1.0, found)


def _blt(run: Run, shape: Shape) -> Mechanism[Any]:
    steps, participation = run.steps, run.participation
    if (shape.decay is None) != (shape.scale is None):
        raise BadInput("--decay and --scale: give both, or none")
    if shape.decay is not None and shape.scale is not None:
        if shape.buffers is not None:
            raise BadInput("--buffers: --decay and --scale say how many there are; leave it out")
        decay, scale = _numbers("--decay", shape.decay), _numbers("--scale", shape.scale)
        try:
            return BufferedToeplitz(GRID, 1.0, decay, scale)
        except ValueError as error:
            raise BadInput(f"--decay and --scale: {error}") from error
    if shape.buffers is not None:
        check_between("--buffers", shape.buffers, 1, 8)
    with Work("finding the best buffers", f"for {steps} rounds") as work:
        decay, scale = optimal_buffers(steps, participation, shape.buffers, shape.objective.objective, work.progress)
    return BufferedToeplitz(GRID, 1.0, decay, scale)


BUILDERS: dict[Kind, Callable[[Run, Shape], Mechanism[Any]]] = {
    Kind.tree: _tree,
    Kind.independent: _independent,
    Kind.banded: _banded,
    Kind.blt: _blt,
}


def _check_belongs(kind: Kind, run: Run, shape: Shape) -> None:
    """An option of another mechanism would be ignored in silence."""
    owners = {
        "--restarts": (Kind.tree, run.restarts is not None),
        "--completed": (Kind.tree, shape.completed),
        "--bands": (Kind.banded, shape.bands is not None),
        "--square-root": (Kind.banded, shape.square_root),
        "--buffers": (Kind.blt, shape.buffers is not None),
        "--decay": (Kind.blt, shape.decay is not None),
        "--scale": (Kind.blt, shape.scale is not None),
    }
    for name, (owner, given) in owners.items():
        if given and owner is not kind:
            raise BadInput(f"{name}: belongs to --mechanism {owner.value}, not {kind.value}; leave it out")
    if shape.objective is Goal.max and not shape.optimised(kind):
        why = f"{kind.value} has no strategy to look for" if kind in (Kind.tree, Kind.independent) else "the strategy is given"
        raise BadInput(f"--objective: {why}; leave it out")


def check_between(name: str, value: int, least: int, most: int | None = None) -> None:
    """Raises BadInput that names the nearest valid value."""
    if value < least or (most is not None and value > most):
        nearest = least if value < least else most
        allowed = f"at least {least}" if most is None else f"{least} to {most}"
        raise BadInput(f"{name}: {value} is not allowed ({allowed}); nearest: {nearest}")


def check_positive(name: str, value: float, least: float = 1e-9, most: float = 1e9) -> float:
    """The value; raises BadInput where it is not positive, or so far from any use that floats would fail."""
    if not least <= value <= most:
        nearest = most if value > most else least
        raise BadInput(f"{name}: {value:g} is not a number from {least:g} to {most:g}; nearest: {nearest:g}")
    return value


def check_delta(delta: float, devices: int | None) -> None:
    """A delta of 1 / devices allows one device's data to be published whole."""
    if not 0 < delta < 1:
        raise BadInput(
            f"--delta: {delta:g} is not strictly between 0 and 1; nearest: {0.999 if delta >= 1 else 1e-15:g}, sensible: 1e-6"
        )
    if devices is not None and delta * devices >= 1:
        raise BadInput(
            f"--delta: {delta:g} is not below 1 / devices = {1 / devices:.3g}, so it would allow publishing one device's data "
            f"whole; nearest: {0.99 / devices:.3g}"
        )


def _integers(name: str, text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise BadInput(f"{name}: {text!r} is not a list of whole numbers like 400,400") from error
    for value in values:
        check_between(name, value, 1, LONGEST_TREE)
    return values


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise BadInput(f"{name}: {text!r} is not a list of numbers like 0.99,0.7") from error
