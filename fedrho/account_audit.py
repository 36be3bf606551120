"""`fedrho account audit` and `membership`: what an attacker measures, beside what is claimed."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.lib.npyio import NpzFile
from rich.table import Table

from fedrho import console
from fedrho.account import DeltaOption, MechanismOption, NoiseOption, PlotOption, with_noise
from fedrho.account_options import Kind, Run, Shape, build, check_between, check_delta, check_positive
from fedrho.console import BadInput
from fedrho.gathered import gathered
from fedrho.output_options import Json
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.statement import round_up
from fedrho.privacy.vectors import Grid
from fedrho.privacy.zcdp import Rho
from fedrho.work import Work

if TYPE_CHECKING:
    from fedrho.privacy.auditing.audit import AuditReport
    from fedrho.privacy.auditing.membership import MembershipReport


LEAST_NOISE = 1e-3
"""Of an audit: with less, the rounding of the canaries to the grid shows beside the noise."""
SMALLEST_SIZE, MOST_SIZE = 1000, 200_000
FEWEST_CANARIES, MOST_CANARIES = 100, 100_000
CONFIDENCE = (0.5, 0.999999)


class AuditFailed(RuntimeError):
    """An attack beat the claim, or the mechanism broke its contract."""


@gathered
def audit(
    run: Run,
    shape: Shape,
    noise_multiplier: NoiseOption,
    mechanism: MechanismOption = Kind.tree,
    delta: DeltaOption = 1e-6,
    canaries: Annotated[int, typer.Option(help="Clients whose participation is to be guessed.")] = 1000,
    size: Annotated[int, typer.Option(help="Coordinates of the simulated model.")] = 10_000,
    confidence: Annotated[float, typer.Option(help="Of each interval that is shown.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the canaries; never of the noise.")] = 0,
    json: Json = False,
    plot: PlotOption = None,
) -> None:
    """Attack a simulation of the mechanism: what an attacker measures, beside what is claimed.

    Example: fedrho account audit --noise-multiplier 4 --rounds 64 --max-participations 4 --min-separation 16
    """
    from fedrho.privacy.auditing import audit as attacks
    from fedrho.privacy.auditing.checks import check_mechanism
    from fedrho.privacy.noise import SystemNoise

    check_delta(delta, run.devices)
    check_positive("--noise-multiplier", noise_multiplier, LEAST_NOISE)
    check_between("--size", size, SMALLEST_SIZE, MOST_SIZE)
    check_between("--canaries", canaries, FEWEST_CANARIES, min(MOST_CANARIES, size))
    check_positive("--confidence", confidence, *CONFIDENCE)
    check_between("--rounds", run.steps, 1, attacks.MOST_STEPS)
    noisy = _on_a_fine_grid(with_noise(build(mechanism, run, shape), noise_multiplier))
    try:
        settings = attacks.Settings(canaries=canaries, size=size, confidence=confidence, seed=seed)
        rho = noisy.cost(run.steps, run.participation)
        with Work(f"preparing {run.steps} rounds", f"claimed rho {round_up(rho)}") as work:
            report = attacks.audit(noisy, run.steps, run.participation, delta, SystemNoise(), settings, progress=work.progress)
            found = check_mechanism(noisy, run.steps, run.participation, progress=work.progress)
        findings = [str(finding) for finding in found]
    except ValueError as error:
        raise BadInput(str(error)) from error
    if plot:
        from fedrho import plots

        plots.audited(plot, _measured(report), report.claim.rho, delta)
    if json:
        console.print_json(report.as_json() | {"findings": findings})
    else:
        _print_audit(report, findings)
    if report.contradicts_claim or findings:
        raise AuditFailed(f"the claim does not hold: {'; '.join([*report.contradictions, *findings])}")


def _on_a_fine_grid(mechanism: Mechanism[Any]) -> Mechanism[Any]:
    """The same on the grid that tasks use, or on the finest that has room for the noise: a coarse one rounds canaries away."""
    for bits in range(Grid(1.0).bits, 1, -1):
        try:
            return replace(mechanism, grid=Grid(1.0, bits))
        except ValueError:
            continue
    return mechanism


def _measured(report: AuditReport) -> list[tuple[str, float, float, float, float]]:
    """Of each attack: name, low end, estimate and high end of what was measured, and the most that the claim allows."""
    rows = [("separation", report.separation), ("AUC", report.auc), ("accuracy", report.accuracy)]
    measured = [(name, row.interval.low, row.interval.estimate, row.interval.high, row.limit) for name, row in rows]
    one_run = report.one_run
    return [*measured, ("epsilon, one run", one_run.low, one_run.low, one_run.low, one_run.limit)]


def _print_audit(report: AuditReport, findings: Sequence[str]) -> None:
    claim, settings = report.claim, report.settings
    console.out.print(
        f"{report.mechanism}, {report.steps} rounds: claimed rho {round_up(claim.rho)}, epsilon {round_up(claim.epsilon)} at "
        f"delta {claim.delta!r}. {settings.canaries} canaries on {settings.size} coordinates, in rounds "
        f"{', '.join(map(str, report.worst_steps[:12]))}{', ...' if len(report.worst_steps) > 12 else ''}.",
        highlight=False,
    )
    table = Table("attack", "measured", f"{settings.confidence:.0%} interval", "claim allows", "verdict", box=None)
    for name, low, estimate, high, limit in _measured(report):
        interval = "at least" if low == high else f"{low:.4g} to {high:.4g}"
        beaten = name.lower().replace(", ", "_").replace("epsilon_one run", "one_run") in report.contradictions
        table.add_row(name, f"{estimate:.4g}", interval, round_up(limit), "[bold red]above[/]" if beaten else "within")
    console.out.print(table, highlight=False)
    console.out.print(
        f"One-shot estimate for someone who sees the last model only: epsilon {report.one_shot.epsilon:.3g}. Contract of the "
        f"mechanism: {'; '.join(findings) if findings else 'nothing found'}.",
        highlight=False,
    )


def membership(
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS.npz", help="Saved predictions of a model; see docs/auditing.md.")
    ],
    rho: Annotated[float | None, typer.Option(help="The claim to compare with.", show_default="none")] = None,
    by_class: Annotated[bool, typer.Option("--by-class", help="Attack each class on its own, too.")] = False,
    tensorflow_privacy: Annotated[
        bool, typer.Option("--tensorflow-privacy", help="Run the attacks of TensorFlow Privacy itself, where it is installed.")
    ] = False,
    json: Json = False,
) -> None:
    """Membership inference on a trained model's saved predictions, beside what a claim allows.

    Example: fedrho account membership predictions.npz --rho 0.81
    """
    from fedrho.privacy.auditing.membership import membership_report, own_attacks
    from fedrho.privacy.auditing.membership_tfp import tensorflow_privacy_attacks

    claimed = None if rho is None else Rho(check_positive("--rho", rho))
    try:
        with _arrays(predictions) as arrays, Work("attacking", "" if rho is None else f"claimed rho {rho:g}") as work:
            attacks = tensorflow_privacy_attacks if tensorflow_privacy else partial(own_attacks, progress=work.progress)
            report = membership_report(arrays, claimed, by_class=by_class, attacks=attacks)
    except FileNotFoundError as error:
        raise BadInput(f"{predictions}: no such file") from error
    except (OSError, EOFError, zipfile.BadZipFile, ValueError) as error:
        raise BadInput(f"{predictions}: {_what_is_wrong(predictions, error)}") from error
    if json:
        console.print_json(report.as_json())
    else:
        _print_membership(report)
    if report.contradicts_claim:
        raise AuditFailed("an attack on the predictions reaches more than the claim allows")


def _arrays(path: Path) -> NpzFile:
    """Raises ValueError for a file of one array, which has no names."""
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, NpzFile):
        raise ValueError("holds one array and no names")
    return loaded


def _print_membership(report: MembershipReport) -> None:
    table = Table("attack", "examples", "AUC", "95% interval", "advantage", "claim allows", box=None)
    allowed = "-" if report.largest_auc is None else f"AUC {report.largest_auc:.3f}"
    for result in report.results:
        outcome, auc = result.outcome, result.auc
        verdict = f"{allowed} [bold red]exceeded[/]" if result.exceeds_claim else allowed
        interval = f"{auc.low:.3f} to {auc.high:.3f}"
        table.add_row(outcome.attack, outcome.examples, f"{outcome.auc:.3f}", interval, f"{outcome.advantage:.3f}", verdict)
    console.out.print(table, highlight=False)


def _what_is_wrong(path: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    if not zipfile.is_zipfile(path):
        return "is no .npz file; docs/auditing.md says how to write one"
    return str(error)
