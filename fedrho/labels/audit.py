"""`fedrho labels audit`: the epsilon that is claimed for labels, beside what the matrix, draws and attackers find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrho import console
from fedrho.console import BadInput
from fedrho.output_options import Json
from fedrho.picture_files import check_picture
from fedrho.work import Work

if TYPE_CHECKING:
    from fedrho.privacy.labels.audit import Finding, LabelAudit, Settings

MOST_CLASSES, MOST_DRAWS, MOST_CANARIES, MOST_EPSILON = 200, 1_000_000, 1_000_000, 40.0
FEWEST = 1000
AROUND = (0.125, 0.25, 0.5, 1.0, 1.5, 2.0)
"""Times --epsilon: where the picture shows claims and findings."""


class Mechanism(Enum):
    """As in `fedrho.privacy.labels.audited.MECHANISMS`."""

    with_prior = "with-prior"
    rr = "rr"
    top_k = "top-k"
    per_bit = "per-bit"
    one_hot = "one-hot"
    bins = "bins"
    unbiased = "unbiased"
    histogram = "histogram"


class AuditFailed(RuntimeError):
    """What is claimed for labels does not hold."""


def audit(
    mechanism: Annotated[
        Mechanism | None,
        typer.Option(help="What answers labels; bins and unbiased take the classes as 0, 1, ...", show_default="with-prior"),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="What is claimed.", show_default="1; with --matrix what its file says")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="How many labels there are.", show_default="10, or as in --prior")] = None,
    prior: Annotated[
        str | None, typer.Option(metavar="P,P,...", help="Probability of each class, as 0.5,0.3,0.2.", show_default="uniform")
    ] = None,
    k: Annotated[int | None, typer.Option("--k", help="With top-k: how many labels may be told.", show_default="none")] = None,
    matrix: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv|json",
            help="Audit this matrix of conditional probabilities instead; rows are true labels.",
            show_default="none",
        ),
    ] = None,
    statement: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Audit every mechanism of this statement about labels.", show_default="none"),
    ] = None,
    draws: Annotated[int, typer.Option(help="Of each label.")] = 20_000,
    canaries: Annotated[int, typer.Option(help="Of the audit in one run.")] = 50_000,
    confidence: Annotated[float, typer.Option(help="Of the epsilon that an attack proves.")] = 0.9999,
    json: Json = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png|svg|pdf",
            callback=check_picture,
            help="Draw claimed against found epsilon, around --epsilon, into this file, too.",
            show_default="none",
        ),
    ] = None,
) -> None:
    """Attack what answers labels: its exact matrix, draws against it, and two attackers, beside what is claimed.

    Example: fedrho labels audit --mechanism with-prior --epsilon 1 --prior 0.5,0.25,0.15,0.1
    """
    from fedrho.labels import audit_input
    from fedrho.privacy.labels.audit import Settings

    given = {"--mechanism": mechanism, "--matrix": matrix, "--statement": statement}
    _one_of(given, plot)
    if k is not None and mechanism is not Mechanism.top_k:
        raise BadInput("--k: belongs to --mechanism top-k, and to no other")
    settings = Settings(
        _between("--draws", draws, FEWEST, MOST_DRAWS),
        _between("--canaries", canaries, FEWEST, MOST_CANARIES),
        confidence,
    )
    if not 0.5 <= confidence < 1:
        raise BadInput(f"--confidence: {confidence} is not allowed (0.5 to below 1); nearest: 0.9999")
    if epsilon is not None and not 0 <= epsilon <= MOST_EPSILON:
        raise BadInput(f"--epsilon: {epsilon} is not allowed (0 to {MOST_EPSILON:g})")
    weights = audit_input.prior_of(prior, classes, MOST_CLASSES)
    others: list[str] = []
    if matrix is not None:
        audits = [audit_input.of_matrix(matrix, epsilon, None if prior is None else weights)]
    elif statement is not None:
        audits, others = audit_input.of_statement(statement, epsilon, weights, settings)
    else:
        kind = (mechanism or Mechanism.with_prior).value
        claimed = 1.0 if epsilon is None else epsilon
        if kind == "histogram" and claimed == 0:
            raise BadInput("--epsilon: a histogram of epsilon 0 would be noise without end; give one above 0")
        audits = [_tried(kind, claimed, weights, settings, k)]
        if plot:
            _draw(plot, kind, claimed, weights, settings, k)
    _say(audits, others, json)
    failed = [f"{one.mechanism}: {check}" for one in audits for check in one.failed]
    if failed:
        raise AuditFailed(f"the claim does not hold: {'; '.join(failed)}")


def _one_of(given: Mapping[str, object], plot: Path | None) -> None:
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise BadInput(f"{named[1]}: says what is audited, and so does {named[0]}; leave one of them out")
    if plot and named and named[0] != "--mechanism":
        raise BadInput(f"--plot: draws one mechanism at several epsilons, and {named[0]} has one claim; leave it out")


def _between(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise BadInput(f"{name}: {value} is not allowed ({least} to {most}); nearest: {min(max(value, least), most)}")
    return value


def _tried(kind: str, epsilon: float, prior: Sequence[float], settings: Settings, k: int | None) -> LabelAudit:
    from fedrho.privacy.labels.audited import audited
    from fedrho.privacy.labels.chance import SystemChance

    try:
        with Work("auditing", f"{kind} at epsilon {epsilon:g}") as work:
            return audited(kind, epsilon, prior, SystemChance(), settings, k, work.progress)
    except ValueError as error:
        raise BadInput(str(error)) from error


def _draw(path: Path, kind: str, epsilon: float, prior: Sequence[float], settings: Settings, k: int | None) -> None:
    from fedrho.labels.audit_plot import claimed_and_found

    epsilons = [epsilon * share for share in AROUND if 0 < epsilon * share <= MOST_EPSILON]
    if not epsilons:
        raise BadInput("--plot: draws epsilons around --epsilon, which is 0 here; leave it out")
    tried = [_tried(kind, one, prior, settings, k) for one in epsilons]
    with console.working("drawing the picture"):
        claimed_and_found(path, tried)


def _say(audits: Sequence[LabelAudit], others: Sequence[str], json: bool) -> None:
    if json:
        holds = not any(one.failed for one in audits)
        console.print_json({"holds": holds, "audits": [one.as_json() for one in audits], "not_audited": list(others)})
        return
    from rich.table import Table

    for one in audits:
        claimed = "nothing claimed" if one.epsilon is None else f"claimed epsilon {one.epsilon:.6g}"
        table = Table("check", "measure", "claimed", "found", "verdict", "how", box=None)
        for finding in one.findings:
            verdict = "-" if finding.claimed is None else "holds" if finding.holds else "[bold red]fails[/]"
            table.add_row(finding.check, finding.measure, _claim(finding), f"{finding.found:.10g}", verdict, finding.detail)
        console.out.print(f"[bold]{one.mechanism}[/bold]: {claimed}, one label by substitution", highlight=False)
        console.out.print(table, highlight=False)
    for text in others:
        console.out.print(f"[bold]not audited[/bold], for it has no channel of single labels: {text}", highlight=False)


def _claim(finding: Finding) -> str:
    if finding.claimed is None:
        return "-"
    return f"{'' if finding.measure == 'epsilon' else 'at least '}{finding.claimed:.6g}"
