"""An experiment from its values to its finished folder: trainings one by one, resumed where they broke off, then results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from fedrho.console import BadInput, Stopped
from fedrho.labels.answered import Answered, alone, former, note_of, remember
from fedrho.labels.data import LABELS, LabelData
from fedrho.labels.progress import TrainProgress
from fedrho.labels.runs import RESULT, RESULTS, DiskGroups, DiskMemory, ExperimentFolder, NotedIn, as_json, lost_reads, read_json
from fedrho.labels.settings import ExperimentFile, RunSection
from fedrho.labels.training import Cell, Trainer, cells, constant_accuracy, constant_rmse, priced
from fedrho.simulations.folder import FolderError

Results = dict[str, Any]
NOT_MEASURED = "no accuracy is measured: the labels are private"


def run(
    experiment: ExperimentFile,
    data: LabelData,
    path: Path,
    trainer: Trainer,
    progress: TrainProgress,
    earlier: Callable[[], Sequence[Answered]] = tuple,
) -> Results:
    """`earlier` says what the labels were answered before, and notes that they are now. What is finished is not done again.

    Of a private file nobody else is answered meanwhile: the statement has all that was asked before its end. Raises FolderError,
    Stopped, BadInput where another process answers these labels, and what trainings raise.
    """
    private = alone(Path(experiment.data)) if experiment.private and experiment.data is not None else nullcontext()
    with private, ExperimentFolder(path, experiment, data.describe()) as folder, progress:
        trainer.earlier = earlier()
        trainer.groups = DiskGroups(path / "groups")
        for cell in cells(experiment):
            try:
                _trained(cell, folder, trainer, progress)
            except (BadInput, ValueError):
                take_back(experiment, path)
                raise
            progress.ended()
            if progress.told_to_stop:
                raise Stopped(f"stopped; `fedrho labels train --out {path}` goes on")
        results = collected(experiment, data, folder.path)
        write_results(folder, results)
        return results


def noted(experiment: ExperimentFile, path: Path, again: bool) -> list[Answered]:
    """What a private file's labels were answered beside this folder's answers, which are noted next to the file; see `answered`.

    A folder has its entry while both know of each other: one that was deleted, copied or moved is another one. Where it has one,
    what others asked since counts as well, for labels may be read after that; whoever asked knew of this entry. Raises BadInput
    where labels were answered, and nobody said to pay again. *Assumes* that the file is held, see `alone`.
    """
    if not experiment.private or experiment.data is None:
        return []
    (cell,) = cells(experiment)
    data, mark = Path(experiment.data or ""), NotedIn(path / "cells" / cell.name)
    known, latest = former(data), _priced(experiment, cell, path, again)
    place = mark.place()
    mine = place is not None and place < len(known) and known[place].out == latest.out
    place = place if mine and place is not None else len(known)
    before = [answer for answer in (*known[:place], *known[place + 1 :]) if answer.label == latest.label]
    if not mine and before and not again:
        spent = sum(answer.epsilon for answer in before)
        raise BadInput(
            f"{data}: its labels were answered before, at epsilon {spent:g} in all ({note_of(data).name} says for what); --again "
            f"answers them once more, and the statement has the sum; or go on in {before[-1].out}"
        )
    if not mine or latest.epsilon > known[place].epsilon:
        remember(data, [*known[:place], latest, *known[place + 1 :]])
    mark.write(place)
    return before


def take_back(experiment: ExperimentFile, path: Path) -> None:
    """Of a training that was refused before it read a label, nothing stays in the note."""
    if not experiment.private or experiment.data is None:
        return
    (cell,), data = cells(experiment), Path(experiment.data)
    folder = path / "cells" / cell.name
    mark = NotedIn(folder)
    place = mark.place()
    if place is None or any((folder / "begun").glob("*")):
        return
    known = former(data)
    if place == len(known) - 1 and known[place].out == str(path.resolve()):
        remember(data, known[:place])
        mark.remove()


def _priced(experiment: ExperimentFile, cell: Cell, path: Path, again: bool) -> Answered:
    """What this folder asks of a label at most. Where answers were lost, and asked for again, the lost ones were paid for too."""
    assert cell.epsilon is not None
    times = 1 + (lost_reads(path / "cells" / cell.name) if again else 0)
    delta = 0.0 if cell.run.dp_sgd is None else cell.run.dp_sgd.delta
    out = str(path.resolve())
    return Answered(experiment.label or LABELS, f"training, {cell.run.name}", times * cell.epsilon, out, times * delta)


def _trained(cell: Cell, folder: ExperimentFolder, trainer: Trainer, progress: TrainProgress) -> None:
    name = f"cells/{cell.name}/{RESULT}"
    finished = (folder.path / name).exists()
    progress.begun(cell.title, trainer.planned(cell), finished)
    if finished:
        return
    try:
        figures, statement = trainer.train(cell, DiskMemory(folder.cell(cell.name)), progress.within)
    except OSError as error:
        reason = error.strerror or error
        raise FolderError(f"{folder.path}: cannot be written or read ({reason}); mend that and run it again to go on") from error
    folder.write(name, as_json({"seed": cell.seed, **figures, "statement": dict(statement.to_json())}).encode())


def write_results(folder: ExperimentFolder, results: Results) -> None:
    """What is written already is left alone: it would be the same."""
    text = as_json(results).encode()
    if (folder.path / RESULTS).exists() and (folder.path / RESULTS).read_bytes() == text:
        return
    records = results["records"]
    statements = [{"run": one["name"], "records": records, **one["statement"]} for one in results["runs"]]
    folder.write("statement.json", as_json(statements[0] if len(statements) == 1 else statements).encode())
    folder.write(RESULTS, text)


def collected(experiment: ExperimentFile, data: LabelData, path: Path) -> Results:
    """What the folder's finished trainings say; of a single run its figures stand at the top, too."""
    entries = [_entry(experiment, run, epsilon, path) for run in experiment.runs for epsilon in priced(run)]
    top: Results = {
        "dataset": data.name,
        "model": Path(experiment.model).name,
        "seeds": experiment.seeds,
        "records": len(data.features),
        "trial": experiment.trial,
        "measured_on": data.note if any(one["accuracy_mean"] is not None for one in entries) else NOT_MEASURED,
        "constant_accuracy": constant_accuracy(data),
        **({"constant_rmse": constant_rmse(data, experiment.values)} if experiment.values else {}),
    }
    return {**top, **(entries[0] if len(entries) == 1 else {}), "runs": entries}


def _entry(experiment: ExperimentFile, run: RunSection, epsilon: float | None, path: Path) -> Results:
    """Of one run at one epsilon: `epsilon_total` is what the ledgers of its trainings say, the largest of them."""
    names = [cell.name for cell in cells(experiment) if cell.run is run and cell.epsilon == epsilon]
    found = [read_json(path / "cells" / name / RESULT) for name in names]
    statement = max((one["statement"] for one in found), key=_price)
    return {
        "name": run.name,
        "kind": run.kind,
        "epsilon": epsilon,
        **summary("accuracy", found),
        **(summary("rmse", found) if "rmse" in found[0] else {}),
        **({"accuracy_standard_error": error} if (error := found[0].get("accuracy_standard_error")) is not None else {}),
        "epsilon_total": statement["epsilon"],
        "epsilon_all_runs": _sum([one["statement"]["epsilon"] for one in found]),
        "statement": statement,
    }


def summary(name: str, found: Sequence[Mapping[str, Any]]) -> Results:
    """Mean, standard deviation over seeds (of a sample; 0 of a single one), and each."""
    values = [one.get(name) for one in found]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {f"{name}_mean": None, f"{name}_std": None, f"{name}_each": values}
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
    return {f"{name}_mean": float(np.mean(known)), f"{name}_std": deviation, f"{name}_each": values}


def _price(statement: Mapping[str, Any]) -> float:
    return float("inf") if statement["epsilon"] is None else float(statement["epsilon"])


def _sum(epsilons: Sequence[float | None]) -> float | None:
    """Over all seeds, which asked each label anew; None where there is no bound."""
    return None if None in epsilons else float(sum(value for value in epsilons if value is not None))


def trainings(experiment: ExperimentFile) -> int:
    return sum(1 for _ in cells(experiment))
