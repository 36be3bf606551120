"""`fedrho account`: what a run costs, what a budget needs, and what a claim means. Exit codes as for every command."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table

from fedrho import console
from fedrho.account_options import EVERY_HOURS, Budget, Goal, Kind, Run, Shape, build, check_delta, check_positive
from fedrho.console import BadInput
from fedrho.gathered import gathered
from fedrho.output_options import Json
from fedrho.picture_files import check_picture
from fedrho.privacy.banded import BandedToeplitz
from fedrho.privacy.blt import BufferedToeplitz
from fedrho.privacy.calibration import calibrated, least_cohort, most_steps
from fedrho.privacy.claims import claim, in_words, sampled_assumptions
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.loss import lower_bound, max_loss, rmse_loss
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.participation import Participation
from fedrho.privacy.progress import Progress
from fedrho.privacy.sampling import PoissonSampling, SampledGaussian, SamplingNotEnforced
from fedrho.privacy.statement import Neighbours, PrivacyStatement, Unit, round_down, round_up
from fedrho.privacy.zcdp import Rho, best_order, epsilon, gaussian_epsilon, largest_rho, rdp_epsilon, simple_epsilon
from fedrho.work import Work

app = typer.Typer(
    help="Compute privacy budgets: what a run costs, what a budget needs, and what a claim means.\n\n"
    "Example: fedrho account spend --noise-multiplier 7 --rounds 2000 --days 6",
    no_args_is_help=True,
)

MechanismOption = Annotated[
    Kind,
    typer.Option("--mechanism", metavar="NAME", help="How noise is spread over the rounds: tree, independent, banded or blt."),
]
NoiseOption = Annotated[
    float, typer.Option("--noise-multiplier", help="Standard deviation of a node's noise on the sum, per unit of clip norm.")
]
DeltaOption = Annotated[float, typer.Option("--delta", help="Where epsilon is stated; far below 1 / devices.")]
PlotOption = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="FILE.png|svg|pdf",
        callback=check_picture,
        help="Draw a picture into this file, too.",
        show_default="none",
    ),
]


class Find(Enum):
    """What `calibrate` looks for, while the rest stays as it is."""

    noise = "noise"
    rounds = "rounds"
    cohort = "cohort"


@app.command()
@gathered
def spend(
    run: Run,
    shape: Shape,
    noise_multiplier: NoiseOption,
    mechanism: MechanismOption = Kind.tree,
    delta: DeltaOption = 1e-6,
    sampling_rate: Annotated[
        float | None, typer.Option(help="Independent noise: probability with which each device joins each round (Poisson).")
    ] = None,
    sampling_enforced_by: Annotated[
        str, typer.Option(help="With --sampling-rate: who flips the coins and keeps them secret.", show_default="nobody")
    ] = "",
    json: Json = False,
    plot: PlotOption = None,
) -> None:
    """What a run costs.

    Example: fedrho account spend --noise-multiplier 7 --rounds 2000 --max-participations 6 --min-separation 314 --delta 1e-10
    """
    check_delta(delta, run.devices)
    check_positive("--noise-multiplier", noise_multiplier)
    if sampling_rate is not None:
        if plot:
            raise BadInput("--plot: draws rho, and with --sampling-rate there is none; leave it out")
        _spend_sampled(mechanism, noise_multiplier, run, shape, sampling_rate, sampling_enforced_by, delta, json)
        return
    if sampling_enforced_by:
        raise BadInput("--sampling-enforced-by: says who enforces --sampling-rate, which is not given")
    steps, participation = run.steps, run.participation
    noisy = with_noise(build(mechanism, run, shape), noise_multiplier)
    statement = _priced(noisy, run, steps)
    if plot:
        from fedrho import plots

        plan = plots.Plan(noisy.name, noise_multiplier, steps, participation, statement.rho, delta)
        plots.spent(plot, *_prices(noisy, steps, participation), plan)
    if json:
        console.print_json(_spend_json(noisy, steps, participation, statement, delta))
    else:
        console.print_statement(statement, delta, "computed from the numbers given")


def _spend_json(
    mechanism: Mechanism[Any], rounds: int, participation: Participation, statement: PrivacyStatement, delta: float
) -> dict[str, object]:
    return {
        "mechanism": mechanism.name,
        "noise_multiplier": mechanism.noise_multiplier,
        "rounds": rounds,
        "max_participations": participation.max_times,
        "min_separation": participation.min_separation,
        "cyclic": participation.cyclic,
        "sensitivity_squared": mechanism.sensitivity(rounds, participation).squared,
        "exact": statement.exact,
        "rho": statement.rho,
        "epsilon": statement.epsilon(delta),
        "epsilon_exact_gaussian": gaussian_epsilon(statement.rho, delta),
        "delta": delta,
        "unit": statement.unit.value,
        "neighbours": statement.neighbours.value,
        "assumptions": list(statement.assumptions),
        "strategy": strategy(mechanism),
    }


def strategy(mechanism: Mechanism[Any]) -> dict[str, Any]:
    """What a mechanism has besides its noise: enough to build the same one again."""
    return {
        part.name: getattr(mechanism, part.name) for part in fields(mechanism) if part.name not in ("grid", "noise_multiplier")
    }


def _spend_sampled(
    kind: Kind, noise_multiplier: float, run: Run, shape: Shape, rate: float, enforced_by: str, delta: float, json: bool
) -> None:
    if kind is not Kind.independent:
        raise BadInput(
            f"--sampling-rate: amplification is proved for independent noise, not {kind.value}; add --mechanism independent"
        )
    build(kind, run, shape)  # refuses the options of other mechanisms
    run.check_population()
    for name, given in (
        ("--max-participations", run.max_participations is not None),
        ("--min-separation", run.min_separation is not None),
        ("--days", run.days is not None),
        ("--every-hours", run.every_hours != EVERY_HOURS),
        ("--cyclic", run.cyclic),
    ):
        if given:
            raise BadInput(f"{name}: with --sampling-rate each device may come in every round; leave it out")
    check_positive("--sampling-rate", rate, most=1.0)
    check_positive("--noise-multiplier", noise_multiplier, *SAMPLED_NOISE)
    try:
        sampled = SampledGaussian(noise_multiplier, PoissonSampling(rate, enforced_by), run.steps)
    except SamplingNotEnforced as error:
        raise BadInput(f"--sampling-enforced-by: {error}") from error
    try:
        with Work("pricing", f"at delta {delta:g}") as work:
            values = _sampled_json(sampled, delta, work.progress)
    except MemoryError as error:
        raise BadInput(
            f"--noise-multiplier: with {noise_multiplier:g} over {run.steps} rounds the privacy loss distribution does not fit "
            "into memory; such a run has hardly any privacy, so take more noise, or fewer --rounds"
        ) from error
    if json:
        console.print_json(values)
        return
    rows = [
        ("unit", f"one {Unit.DEVICE.value}"),
        ("neighbours", f"{Neighbours.ADD_OR_REMOVE.value}: {Neighbours.ADD_OR_REMOVE.meaning}"),
        ("epsilon", f"{round_up(values['epsilon'])} at delta = {delta!r}, amplified by sampling; there is no rho"),
    ]
    console.print_claim(rows, sampled_assumptions(sampled), "computed from the numbers given")


SAMPLED_NOISE = (0.1, 1e6)
"""With less, the privacy loss distribution does not fit into memory; such a run has no privacy anyway."""


def _sampled_json(sampled: SampledGaussian, delta: float, progress: Progress) -> dict[str, Any]:
    by_distribution, by_rdp = sampled.epsilon(delta, progress=progress), sampled.epsilon(delta, "rdp")
    return {
        "mechanism": "independent-gaussian",
        "noise_multiplier": sampled.noise_multiplier,
        "rounds": sampled.steps,
        "sampling_rate": sampled.sampling.rate,
        "sampling_enforced_by": sampled.sampling.enforced_by,
        "sensitivity_squared": 1,
        "exact": False,
        "rho": None,
        "epsilon": min(by_distribution, by_rdp),  # both are bounds, and the first may be infinite
        "epsilon_rdp": by_rdp,
        "delta": delta,
        "unit": Unit.DEVICE.value,
        "neighbours": Neighbours.ADD_OR_REMOVE.value,
        "assumptions": list(sampled_assumptions(sampled)),
    }


@app.command()
@gathered
def calibrate(
    run: Run,
    shape: Shape,
    budget: Budget,
    mechanism: MechanismOption = Kind.tree,
    find: Annotated[Find, typer.Option(help="What to look for; the rest stays as given.")] = Find.noise,
    noise_multiplier: Annotated[float | None, typer.Option(help="To find rounds: the noise that there is.")] = None,
    mean_noise: Annotated[
        float | None, typer.Option(help="To find a cohort: bearable noise of a round's mean, noise multiplier / cohort.")
    ] = None,
    toml: Annotated[bool, typer.Option("--toml", help="The lines of a task file's \\[privacy] that say the same.")] = False,
    json: Json = False,
    plot: PlotOption = None,
) -> None:
    """What a budget needs: the least noise, the most rounds, or the least cohort.

    Example: fedrho account calibrate --rho 0.81 --rounds 2000 --max-participations 6 --min-separation 314
    """
    steps, participation, limit = run.steps, run.participation, budget.limit
    check_delta(budget.delta, run.devices)
    if toml and (json or find is not Find.noise):
        raise BadInput("--toml: prints the noise that --find noise finds, for a task file; leave out --json and --find")
    for name, value, needed_by in (
        ("--noise-multiplier", noise_multiplier, Find.rounds),
        ("--mean-noise", mean_noise, Find.cohort),
    ):
        if value is not None and find is not needed_by:
            raise BadInput(f"{name}: belongs to --find {needed_by.value}, not {find.value}; leave it out")
    quiet = build(mechanism, run, shape)
    cohort = None
    try:
        if find is Find.rounds:
            noisy = with_noise(quiet, _needed("--noise-multiplier", noise_multiplier, find))
            with Work("pricing") as work:
                steps = most_steps(noisy, participation, limit, steps, work.progress)
        else:
            noisy = calibrated(quiet, steps, participation, limit)
        if find is Find.cohort:
            cohort = least_cohort(quiet, steps, participation, limit, _needed("--mean-noise", mean_noise, find))
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"{budget.name}: {limit:g} of rho cannot be kept by this run ({error})") from error
    if steps == 0:
        raise BadInput(f"--noise-multiplier: {noisy.noise_multiplier:g} is too little for one round; find the noise instead")
    statement = _priced(noisy, run, steps)
    if plot:
        from fedrho import plots

        plots.needed(plot, plots.Plan(noisy.name, noisy.noise_multiplier, steps, participation, statement.rho, budget.delta))
    if json:
        console.print_json(_calibrate_json(noisy, steps, participation, statement, budget.delta, cohort))
        return
    if toml:
        console.print_plain(_task_lines(mechanism, noisy, limit, budget.delta))
        return
    answers = {
        Find.noise: f"noise multiplier {round_up(noisy.noise_multiplier, 6)} on the sum of each round",
        Find.rounds: f"{steps} rounds with noise multiplier {noisy.noise_multiplier:g}",
        Find.cohort: f"{cohort} reports a round, with noise multiplier {round_up(noisy.noise_multiplier, 6)}",
    }
    console.out.print(f"[bold]{answers[find]}[/bold]", highlight=False)
    console.print_statement(statement, budget.delta, "computed from the numbers given")


def _task_lines(kind: Kind, mechanism: Mechanism[Any], rho: Rho, delta: float) -> list[str]:
    """[privacy] of a task file with this mechanism; which clip norm is for the task to say, it costs nothing."""
    lines = ["[privacy]", "clip_norm = 1.0  # of your task", f"rho = {float(rho)!r}", f"delta = {delta!r}"]
    if kind is not Kind.independent:
        lines.append(f'mechanism = "{kind.value}"')
    lines.append(f"noise_multiplier = {mechanism.noise_multiplier!r}")
    for key, value in strategy(mechanism).items():
        if value:
            lines.append(f"{key} = {'true' if value is True else list(value)}")
    return lines


def _calibrate_json(
    mechanism: Mechanism[Any],
    rounds: int,
    participation: Participation,
    statement: PrivacyStatement,
    delta: float,
    cohort: int | None,
) -> dict[str, object]:
    return _spend_json(mechanism, rounds, participation, statement, delta) | {"cohort": cohort}


@app.command()
@gathered
def compare(
    run: Run,
    shape: Shape,
    rho: Annotated[float, typer.Option(help="Budget at which the noise of the prefix sums is shown.")] = 1.0,
    json: Json = False,
    plot: PlotOption = None,
) -> None:
    """Tree, banded, BLT and independent noise at one budget: error against rounds.

    Example: fedrho account compare --rounds 2000 --max-participations 6 --min-separation 314 --plot compare.svg
    """
    steps, participation = run.steps, run.participation
    check_positive("--rho", rho)
    if shape.objective is Goal.max and not any(map(shape.optimised, Kind)):
        raise BadInput("--objective: both strategies are given, by --square-root and by --decay; leave it out")
    mechanisms = {kind.value: build(kind, *_only(kind, run, shape)) for kind in Kind}
    losses = {}
    with Work("comparing", f"at rho {rho:g}") as work:
        for done, (name, mechanism) in enumerate(mechanisms.items()):
            work.progress("part", done, len(mechanisms), f"pricing {name} noise over {steps} rounds")
            losses[name] = _losses(mechanism, steps, participation, rho)
    bound = lower_bound(steps, participation)
    if plot:
        from fedrho import plots

        sums = {name: prefix_noise(it, steps, participation, Rho(rho)) for name, it in mechanisms.items()}
        plots.errors(plot, sums, rho, participation)
    if json:
        settings = {"rounds": steps, "max_participations": participation.max_times}
        settings |= {"min_separation": participation.min_separation, "cyclic": participation.cyclic}
        console.print_json(losses | {"lower_bound": {"rmse_loss": bound}, "settings": settings | {"rho": rho}})
        return
    table = Table("mechanism", "rmse loss", "max loss", "over the bound", "noise multiplier", "vectors kept", box=None)
    for name, row in losses.items():
        ratio = f"{row['rmse_loss'] / bound:.2f} x"
        noise, vectors = round_up(row["noise_multiplier"]), str(row["vectors"])
        table.add_row(name, f"{row['rmse_loss']:.5g}", f"{row['max_loss']:.5g}", ratio, noise, vectors)
    console.out.print(table, highlight=False)
    console.out.print(
        "loss: noise of a running sum at rho = 1/2, in clip norms: root mean square over the rounds, and largest. No "
        f"factorisation is below {round_down(bound)}. Noise multipliers are for rho = {rho:g}.",
        highlight=False,
    )


def _only(kind: Kind, run: Run, shape: Shape) -> tuple[Run, Shape]:
    """Of the options of all mechanisms, those of this one."""
    kept = {name: getattr(shape, name) for name in OWN[kind]}
    if shape.optimised(kind):
        kept["objective"] = shape.objective
    return (run if kind is Kind.tree else replace(run, rounds=run.steps, restarts=None)), Shape(**kept)


OWN: dict[Kind, tuple[str, ...]] = {
    Kind.tree: ("completed",),
    Kind.independent: (),
    Kind.banded: ("bands", "square_root"),
    Kind.blt: ("buffers", "decay", "scale"),
}


def prefix_noise(mechanism: Mechanism[Any], steps: int, participation: Participation, rho: Rho) -> NDArray[np.float64]:
    """Standard deviation of the noise in the sum of the first t rounds, t = 1 ... steps, at this cost, in clip norms."""
    deviations: NDArray[np.float64] = np.sqrt(mechanism.prefix_variances(steps))
    return math.sqrt(mechanism.sensitivity(steps, participation).squared / (2 * rho)) * deviations


def _losses(mechanism: Mechanism[Any], steps: int, participation: Participation, rho: float) -> dict[str, Any]:
    sensitivity = mechanism.sensitivity(steps, participation)
    return {
        "rmse_loss": rmse_loss(mechanism, steps, participation),
        "max_loss": max_loss(mechanism, steps, participation),
        "sensitivity_squared": sensitivity.squared,
        "exact": sensitivity.exact,
        "noise_multiplier": calibrated(mechanism, steps, participation, Rho(rho)).noise_multiplier,
        "vectors": _vectors(mechanism, steps),
        "strategy": strategy(mechanism),
    }


def _vectors(mechanism: Mechanism[Any], steps: int) -> int:
    """Model-sized vectors that the mechanism keeps between rounds at most."""
    if isinstance(mechanism, BandedToeplitz):
        return mechanism.bands - 1
    if isinstance(mechanism, BufferedToeplitz):
        return len(mechanism.decay)
    return 0 if isinstance(mechanism, IndependentGaussian) else 2 * steps.bit_length()


@app.command()
def convert(
    rho: Annotated[float | None, typer.Option(help="zCDP, to be told as epsilon.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Epsilon, to be told as the largest rho.")] = None,
    rdp_order: Annotated[float | None, typer.Option(help="Order of a Renyi DP guarantee, with --rdp-epsilon.")] = None,
    rdp_epsilon: Annotated[float | None, typer.Option(help="Renyi DP at --rdp-order, to be told as epsilon.")] = None,
    delta: DeltaOption = 1e-6,
    json: Json = False,
    plot: PlotOption = None,
) -> None:
    """rho, Renyi DP and (epsilon, delta), each as the others.

    Example: fedrho account convert --rho 0.81 --delta 1e-10
    """
    check_delta(delta, None)
    if rdp_order is not None and rdp_epsilon is None and rho is None and epsilon is None:
        raise BadInput("--rdp-order and --rdp-epsilon: give both, or none")
    if [rho is None, epsilon is None, rdp_epsilon is None].count(False) != 1:
        raise BadInput("--rho, --epsilon or --rdp-epsilon: give one of them, for example --rho 0.81")
    if (rdp_order is None) != (rdp_epsilon is None):
        raise BadInput("--rdp-order and --rdp-epsilon: give both, or none")
    if rho is not None:
        values = _from_rho(Rho(check_positive("--rho", rho)), delta)
    elif epsilon is not None:
        values = _from_epsilon(check_positive("--epsilon", epsilon), delta)
    else:
        assert rdp_order is not None
        assert rdp_epsilon is not None
        values = _from_rdp(rdp_order, check_positive("--rdp-epsilon", rdp_epsilon), delta)
    if plot:
        from fedrho import plots

        if rho is None:
            raise BadInput("--plot: draws epsilon against delta for a given --rho")
        plots.conversions(plot, Rho(rho), delta)
    if json:
        console.print_json(values)
        return
    table = Table.grid(padding=(0, 2))
    for name, value in values.items():
        table.add_row(name, repr(value) if name == "delta" else ROUNDED[epsilon is None](float(value), 6))
    console.out.print(table, highlight=False)


ROUNDED = {True: round_up, False: round_down}
"""An epsilon is rounded up; a rho that may be spent, down."""


def _from_rho(rho: Rho, delta: float) -> dict[str, float]:
    order = best_order(rho, delta)
    return {
        "rho": float(rho),
        "delta": delta,
        "simple": simple_epsilon(rho, delta),
        "optimal_rdp": epsilon(rho, delta),
        "exact_gaussian": gaussian_epsilon(rho, delta),
        "rdp_order": order,
        "rdp_epsilon": order * rho,
    }


def _from_epsilon(allowed: float, delta: float) -> dict[str, float]:
    return {
        "epsilon": allowed,
        "delta": delta,
        "rho_simple": largest_rho(allowed, delta, simple_epsilon),
        "rho_optimal_rdp": largest_rho(allowed, delta, epsilon),
        "rho_exact_gaussian": largest_rho(allowed, delta, gaussian_epsilon),
    }


def _from_rdp(order: float, value: float, delta: float) -> dict[str, float]:
    try:
        found = rdp_epsilon(order, value, delta)
    except ValueError as error:
        raise BadInput(f"--rdp-order: {error}; nearest: 1.01") from error
    return {"rdp_order": order, "rdp_epsilon": value, "delta": delta, "epsilon": found}


@app.command()
@gathered
def explain(
    run: Run,
    shape: Shape,
    noise_multiplier: NoiseOption,
    mechanism: MechanismOption = Kind.tree,
    delta: DeltaOption = 1e-6,
    json: Json = False,
    plot: PlotOption = None,
) -> None:
    """The claim in plain words, with everything that it assumes.

    Example: fedrho account explain --noise-multiplier 7 --rounds 2000 --days 6 --delta 1e-10
    """
    check_delta(delta, run.devices)
    check_positive("--noise-multiplier", noise_multiplier)
    statement = _priced(with_noise(build(mechanism, run, shape), noise_multiplier), run, run.steps)
    paragraphs = in_words(statement, delta)
    if plot:
        from fedrho import plots

        plots.attacker(plot, statement.rho)
    if json:
        console.print_json({"text": paragraphs, "rho": statement.rho, "delta": delta, "assumptions": list(statement.assumptions)})
        return
    console.out.print("\n\n".join(paragraphs), highlight=False)
    console.print_statement(statement, delta, "computed from the numbers given")


def with_noise(mechanism: Mechanism[Any], noise_multiplier: float) -> Mechanism[Any]:
    try:
        return replace(mechanism, noise_multiplier=noise_multiplier)
    except ValueError as error:
        raise BadInput(f"--noise-multiplier: {error}") from error


def _priced(mechanism: Mechanism[Any], run: Run, rounds: int) -> PrivacyStatement:
    """The claim about the first `rounds` of the run; limits that come from days rest on an even pace, so it says that, too."""
    try:
        statement = claim(mechanism, rounds, run.participation)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if run.days is None:
        return statement
    pace = f"the rounds are spread evenly over {run.days:g} days"
    if rounds != run.steps:
        pace = f"the rounds come at an even pace of {run.steps} in {run.days:g} days"
    even = f"{pace}; where they came faster, the separation is smaller than said"
    return replace(statement, assumptions=(*statement.assumptions, even))


def _needed(name: str, value: float | None, find: Find) -> float:
    if value is None:
        raise BadInput(f"{name}: missing; --find {find.value} needs it")
    return check_positive(name, value)


VISIBLE = 1 / 500
"""Of the height of a picture: what rises by less from one number of rounds to the next is a smooth line in it."""


def _prices(mechanism: Mechanism[Any], steps: int, participation: Participation) -> tuple[list[int], list[float]]:
    """Numbers of rounds, and what each costs; dearer ones take longer.

    Up to 200 are evenly spread. Between two of them whose prices differ so much that it is seen, halves are priced, until the
    round is found with which rho rises.
    """
    with Work("pricing") as work:
        total: int | None = None

        def price(count: int) -> float:
            if count not in known:
                known[count] = float(mechanism.cost(count, participation))
                work.progress("price", len(known), total, f"{count} rounds cost rho {round_up(known[count])}")
            return known[count]

        known: dict[int, float] = {}
        rounds = _some_rounds(steps)
        total = len(rounds)
        seen = VISIBLE * max(map(price, rounds))
        total, between = None, list(pairwise(rounds))
        while between:
            low, high = between.pop()
            if high - low > 1 and abs(price(high) - price(low)) > seen:
                middle = (low + high) // 2
                price(middle)
                between += [(low, middle), (middle, high)]
    return sorted(known), [known[count] for count in sorted(known)]


def _some_rounds(steps: int, most: int = 200) -> list[int]:
    """Up to `most` numbers of rounds, evenly spread, the last one among them."""
    stride = max(1, steps // most)
    return sorted({*range(1, steps + 1, stride), steps})
