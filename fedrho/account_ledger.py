"""`fedrho account ledger`: what stores prove about what was spent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from fedrho import console
from fedrho.account import PlotOption
from fedrho.account_options import check_delta, check_positive
from fedrho.console import BadInput
from fedrho.output_options import Json
from fedrho.privacy.ledger import Ledger
from fedrho.privacy.statement import PrivacyStatement, combined
from fedrho.privacy.zcdp import Rho, gaussian_epsilon
from fedrho.work import Work

if TYPE_CHECKING:
    from fedrho.privacy.labels.statement import LabelStatement
    from fedrho.server.chain import History
    from fedrho.server.tasks import TaskFile


@dataclass(frozen=True)
class Checked:
    """A store whose history holds."""

    where: str
    history: History
    task: TaskFile
    statement: PrivacyStatement
    labels: LabelStatement | None

    @property
    def name(self) -> str:
        return f"{self.task.name} in {self.where}"


def ledger(
    stores: Annotated[
        list[str],
        typer.Argument(metavar="STORE...", help="Stores of the same devices: folders, database files, postgresql:// URLs."),
    ],
    budget: Annotated[
        float | None, typer.Option(help="rho that all of them together may have spent.", show_default="none")
    ] = None,
    link: Annotated[
        list[str] | None,
        typer.Option(metavar="STEP:LINK", help="A link noted earlier, which one of the stores must still have. Repeatable."),
    ] = None,
    delta: Annotated[
        float | None, typer.Option(help="Where epsilon is stated.", show_default="the smallest of the tasks'")
    ] = None,
    json: Json = False,
    plot: PlotOption = None,
) -> None:
    """Check the hash chain of every run in a store, and derive its statement anew; of several runs, their sum.

    Example: fedrho account ledger fedrho-run
    """
    if delta is not None:
        check_delta(delta, None)
    limit = Rho(check_positive("--budget", budget)) if budget is not None else None
    noted = [_noted(text) for text in link or []]
    runs = [run for where in stores for run in _check(where)]
    _refuse_twice(runs)
    for step, digest in noted:
        _check_link(runs, step, digest)
    total = combined({run.name: run.statement for run in runs})
    chosen = min(run.task.privacy.delta for run in runs) if delta is None else delta
    if plot:
        from fedrho import plots

        plots.spent_by_run(plot, [(run.name, [entry.rho for entry in run.history.entries]) for run in runs], budget)
    if json:
        console.print_json(_ledger_json(runs, total, chosen, budget))
    else:
        for run in runs:
            shown = _run_json(run)
            text = f"{shown['task']}: {shown['released']} of {shown['rounds']} rounds, chain whole, latest link {shown['link']}"
            console.out.print(text, highlight=False, soft_wrap=True)
        console.print_statement(total, chosen, f"derived anew from {_counted(len(stores), 'store')}{_of_runs(len(runs))}")
        for run in runs:
            if run.labels is not None:
                console.print_claim(
                    run.labels.rows(), run.labels.assumptions, f"about labels, of {run.task.name}; never added to the other"
                )
    if limit is not None:
        _charge_all(runs, limit)


def _counted(count: int, noun: str) -> str:
    return f"the {noun}" if count == 1 else f"{count} {noun}s"


def _of_runs(count: int) -> str:
    return "" if count == 1 else f", as the total of {count} runs"


def _check(where: str) -> list[Checked]:
    """Every run of a store. Raises StoreConflict without a run, HistoryBroken where a history does not hold."""
    from fedrho.server.chain import HistoryBroken, check, read_task
    from fedrho.server.storage.databases import shown
    from fedrho.server.storage.store import locate, read_histories

    found = []
    for history in read_histories(locate(where)):
        try:
            task = read_task(history)
            with Work("checking the chain", task.file.name) as work:
                statement = check(history, task, work.progress)
                found.append(Checked(shown(where), history, task.file, statement, task.label_statement()))
        except HistoryBroken as error:
            raise HistoryBroken(f"{shown(where)}, run {history.run.hex()[:8]}: {error}") from error
    return found


def _refuse_twice(runs: Sequence[Checked]) -> None:
    seen: dict[bytes, str] = {}
    for run in runs:
        if run.history.run in seen:
            raise BadInput(f"{run.where}: the same run is given twice, also as {seen[run.history.run]}")
        seen[run.history.run] = run.where


def _charge_all(runs: Sequence[Checked], budget: Rho) -> None:
    """Raises BudgetExhausted at the first run that does not fit."""
    book = Ledger(budget)
    for run in runs:
        book = book.charge(run.name, run.statement)


def _noted(text: str) -> tuple[int, bytes]:
    match = re.fullmatch(r"(\d{1,9}):([0-9a-fA-F]{64})", text)
    if not match:
        raise BadInput(f"--link: {text!r} is not STEP:LINK, a number of rounds and 64 hexadecimal digits as `ledger` prints them")
    return int(match[1]), bytes.fromhex(match[2])


def _check_link(runs: Sequence[Checked], step: int, link: bytes) -> None:
    from fedrho.server.chain import HistoryBroken

    if not any(step < len(run.history.links) and run.history.links[step] == link for run in runs):
        raise HistoryBroken(f"no store has the link noted for step {step}: its history was written anew, or it is another run's")


def _run_json(run: Checked) -> dict[str, object]:
    return {
        "store": run.where,
        "run": run.history.run.hex(),
        "task": run.task.name,
        "rounds": run.task.steps,
        "released": run.history.entries[-1].step,
        "rho": run.statement.rho,
        "link": run.history.links[-1].hex(),
        "labels": None if run.labels is None else dict(run.labels.to_json()),
    }


def _ledger_json(runs: Sequence[Checked], total: PrivacyStatement, delta: float, budget: float | None) -> dict[str, object]:
    return {
        "runs": [_run_json(run) for run in runs],
        "rho": total.rho,
        "budget": budget,
        "exact": total.exact,
        "epsilon": total.epsilon(delta),
        "epsilon_exact_gaussian": gaussian_epsilon(total.rho, delta),
        "delta": delta,
        "unit": total.unit.value,
        "neighbours": total.neighbours.value,
        "assumptions": list(total.assumptions),
    }
