"""The commands `fedrho labels train`, `plot` and `export`: models from labels that stay private, in a folder of results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrho import completions, console
from fedrho.console import BadInput
from fedrho.output_options import Json, Quiet

if TYPE_CHECKING:
    from fedrho.labels.data import LabelData
    from fedrho.labels.settings import ExperimentFile

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that `fedrho labels train` wrote.")]


def train(
    experiment: Annotated[
        Path | None, typer.Argument(metavar="EXPERIMENT.toml", help="All of this as a file, stage by stage.", show_default=False)
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A benchmark of `fedrho data`, pooled.",
            show_default=False,
            autocompletion=completions.of(completions.LABEL_DATA),
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Records of your own: .npz or .csv.", show_default=False)
    ] = None,
    label: Annotated[str, typer.Option(metavar="COLUMN", help="With --data: the column, or array, of labels.")] = "",
    user: Annotated[str, typer.Option(metavar="COLUMN", help="With --data: whose each label is; no feature.")] = "",
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...", help="With --data: all values of a label, or a file with one a line.", show_default=False
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --data: records whose labels are public, to measure accuracy.", show_default=False
        ),
    ] = None,
    labels_are_public: Annotated[
        bool, typer.Option("--labels-are-public", help="With --data: everybody knows the labels; repeat as you like.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="A model of the zoo or a .keras file.",
            show_default="of the data set",
            autocompletion=completions.whole_models,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="lp-1st, lp-2st, cluster-prior, forward, consensus, alibi, per-bit, dp-sgd, non-private. Repeatable.",
            show_default="lp-2st",
            autocompletion=completions.of(completions.METHODS),
        ),
    ] = None,
    epsilon: Annotated[list[float] | None, typer.Option(help="What a label pays in all. Repeatable.", show_default=False)] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=10_000, help="Runs of each.", show_default="1")] = None,
    stages: Annotated[
        str | None,
        typer.Option(metavar="SHARES", help="lp-2st: shares of the stages, as 0.65,0.35; any number.", show_default="recipe"),
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(
            help="lp-2st: prior of later stages, model or denoised.",
            show_default="recipe",
            autocompletion=completions.of(("model", "denoised")),
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="lp-2st: of the prior `model`; below 1 sharpens.", show_default="recipe")
    ] = None,
    mixup: Annotated[float | None, typer.Option(min=0, help="Alpha of mixup; 0 for none.", show_default="recipe")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of each training.", show_default="recipe")] = None,
    epochs: Annotated[float | None, typer.Option(help="The same in epochs; not of DP-SGD.", show_default="recipe")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="For the results; goes on where it was broken off.", show_default="labels-NAME-1, ..."
        ),
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="The labels were answered before, or a killed run lost answers: pay again, and add it up."),
    ] = False,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Of TensorFlow; 0 takes one a core.")] = 1,
    trial: Annotated[
        bool, typer.Option("--trial", help="Cut short, to see that it runs: 1,000 records, two steps of each training.")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train models on labels that stay private: answers once, stages, priors, and beside them what they are compared with.

    Example: fedrho labels train --dataset digits --method lp-1st --method lp-2st --epsilon 1 --epsilon 2 --seeds 10
    """
    from fedrho.labels import recipes, runs, settings

    if out is not None:
        runs.check_out(out)
    options: dict[str, Any] = {
        "dataset": dataset,
        "data": None if data is None else str(data.resolve()),
        "label": label,
        "user": user,
        "classes": _classes(classes),
        "test": None if test is None else str(test.resolve()),
        "labels_are_public": labels_are_public,
        "model": str(Path(model).resolve()) if model and model.endswith(".keras") else model,
        "seeds": seeds,
    }
    changes = {"mixup": mixup, "steps": steps, "epochs": epochs}
    stage_changes = {"prior": prior, "temperature": temperature, "stages": stages}
    given = {
        key: value
        for key, value in {**options, **changes, **stage_changes, "method": method, "epsilon": epsilon}.items()
        if value or (isinstance(value, int | float) and not isinstance(value, bool))
    }
    if experiment is not None:
        _nothing_else(given, {"seeds"}, f"{experiment} says it")
        chosen = settings.read_experiment(experiment, seeds)
    elif not given and out is not None and (out / runs.EXPERIMENT).exists():
        chosen = settings.made(runs.stored(out), str(out / runs.EXPERIMENT))
    else:
        chosen = recipes.experiment(options, method or ["lp-2st"], epsilon or [], changes, stage_changes)
    if trial:
        chosen = settings.trial(chosen, "--trial")
    results = _run(chosen, out, again, threads, quiet or json)
    if json:
        console.print_json(results)
    elif not quiet:
        print_results(results)


def _classes(text: str | None) -> list[str]:
    """Names after commas, or the lines of a file."""
    if text is None:
        return []
    path = Path(text)
    if "," not in text and path.is_file():
        try:
            return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line]
        except (OSError, UnicodeDecodeError) as error:
            from fedrho.server.tasks import why_unreadable

            raise BadInput(f"--classes {path}: cannot be read as text ({why_unreadable(error)})") from error
    return [name.strip() for name in text.split(",")]


def _nothing_else(given: dict[str, Any], allowed: set[str], why: str) -> None:
    extra = sorted(set(given) - allowed)
    if extra:
        raise BadInput(f"--{extra[0].replace('_', '-')}: {why}; leave it out")


def _run(chosen: ExperimentFile, out: Path | None, again: bool, threads: int, quiet: bool) -> dict[str, Any]:
    from fedrho.labels import experiment
    from fedrho.labels.baseline import DpSgd
    from fedrho.labels.experiment import noted
    from fedrho.labels.plots import of_folder
    from fedrho.labels.progress import TrainProgress
    from fedrho.labels.training import Trainer, keras_learner, model_spec
    from fedrho.simulations.folder import fresh

    data = _opened(chosen, quiet)
    _threads(threads)
    progress = TrainProgress(experiment.trainings(chosen), quiet)
    learner = keras_learner(chosen, data, progress.fitting)
    baseline = DpSgd(model_spec(chosen.model), progress.fitting)
    trainer = Trainer(chosen, data, learner, dp_sgd=baseline, again=again, told=progress.fitting)
    path = out or fresh(f"labels-{(chosen.dataset or Path(chosen.data or '').stem)}", Path(), "--out")
    results = experiment.run(chosen, data, path, trainer, progress, lambda: noted(chosen, path, again))
    if not (path / "plots" / "accuracy.svg").exists():
        with console.working("drawing the picture", quiet):
            of_folder(path, None)
    return {**results, "folder": str(path)}


def _opened(chosen: ExperimentFile, quiet: bool) -> LabelData:
    from fedrho.labels.data import benchmark, own

    if chosen.dataset is not None:
        return benchmark(chosen.dataset, quiet, chosen.records)
    test = None if chosen.test is None else Path(chosen.test)
    return own(Path(chosen.data or ""), chosen.label, chosen.classes, test, chosen.labels_are_public, chosen.user)


def _threads(count: int) -> None:
    """With one thread, bits do not depend on the machine's cores."""
    from fedrho.models.backend import one_thread, tf

    if count == 1:
        one_thread()
    elif count:
        tf.config.threading.set_intra_op_parallelism_threads(count)
        tf.config.threading.set_inter_op_parallelism_threads(count)


def print_results(results: dict[str, Any]) -> None:
    """A row for each method and epsilon; what may be claimed; where everything is."""
    from rich.table import Table

    table = Table("method", "epsilon of a label", "delta", "accuracy", title=f"fedrho labels train: {results['dataset']}")
    for one in results["runs"]:
        delta = one["statement"]["delta"]
        table.add_row(one["name"], _epsilon(one), "0 (pure)" if not delta else f"{delta:g}", _accuracy(one))
    if results["constant_accuracy"] is not None:
        table.add_row("best constant predictor", "0", "0 (pure)", f"{results['constant_accuracy']:.4f}")
    console.out.print(table, highlight=False)
    for one in results["runs"]:
        if one.get("rmse_mean") is not None:
            console.out.print(
                f"  RMSE {one['rmse_mean']:.4f} ± {one['rmse_std']:.4f}: {one['name']}, epsilon {_epsilon(one)}", highlight=False
            )
    if results.get("constant_rmse") is not None:
        console.out.print(f"  RMSE {results['constant_rmse']:.4f}: best constant predictor", highlight=False)
    _print_claims(results["runs"])
    console.out.print(f"\nresults: {results['folder']}", highlight=False, soft_wrap=True)
    if results["trial"]:
        console.out.print("a trial: it runs, and its figures say nothing about any method", highlight=False)


def _print_claims(runs: list[dict[str, Any]]) -> None:
    """Of a single run its whole statement; of several what all of them assume, since their epsilons stand in the table."""
    from fedrho.privacy.labels.statement import LabelStatement

    if len(runs) > 1:
        console.out.print("these claims assume that", highlight=False)
        for text in dict.fromkeys(text for one in runs for text in one["statement"]["assumptions"]):
            console.out.print(f"  - {text}", highlight=False, soft_wrap=True)
        return
    told = runs[0]["statement"]
    unbounded = float("inf") if told["epsilon"] is None else told["epsilon"]
    values = {name: told[name] for name in ("delta", "mechanisms", "assumptions", "user_epsilon")}
    statement = LabelStatement(**{**values, "epsilon": unbounded})
    console.print_claim(statement.rows(), statement.assumptions, "from the ledger of the run")


def _epsilon(one: dict[str, Any]) -> str:
    from fedrho.privacy.statement import round_up

    return "none: true labels" if one["epsilon_total"] is None else round_up(one["epsilon_total"])


def _accuracy(one: dict[str, Any]) -> str:
    if one["accuracy_mean"] is None:
        return "not measured"
    spread = one["accuracy_std"] if len(one["accuracy_each"]) > 1 else one.get("accuracy_standard_error")
    return f"{one['accuracy_mean']:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


def plot(
    folder: FolderArgument,
    picture: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png|svg|pdf", help="The picture.", show_default="both, in FOLDER/plots")
    ] = None,
) -> None:
    """Draw accuracy against epsilon of a finished folder anew.

    Example: fedrho labels plot labels-digits-1 --plot digits.svg
    """
    from fedrho.labels.plots import of_folder

    with console.working("drawing the picture"):
        drawn = of_folder(folder, picture)
    for path in drawn:
        console.out.print(str(path), highlight=False, soft_wrap=True)


def export(
    folder: FolderArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="New file: .keras, .safetensors or .npz.", show_default=False)],
    run: Annotated[
        str | None, typer.Option(metavar="CELL", help="Which training; a name under FOLDER/cells.", show_default="the only one")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a trained model as a file that other tools read, with the privacy statement inside.

    Example: fedrho labels export labels-digits-1 --out digits.keras --run lp-2st-epsilon-2.0-seed-0
    """
    from fedrho.export import check_out, write_export, write_whole
    from fedrho.labels.runs import MODEL, RESULT, DiskMemory, damaged, read_json, stored
    from fedrho.labels.training import model_spec
    from fedrho.models.whole import WholeModel
    from fedrho.operator_client import Exported
    from fedrho.server.tasks import why_unreadable

    check_out(out, force)
    values = stored(folder)
    names = sorted(path.parent.name for path in (folder / "cells").glob(f"*/{RESULT}"))
    if not names:
        raise BadInput(f"{folder}: no training is finished; go on with `fedrho labels train --out {folder}`")
    chosen = run or (names[0] if len(names) == 1 else None)
    if chosen not in names:
        raise BadInput(f"--run: choose one of {', '.join(names)}")
    result = folder / "cells" / chosen / RESULT
    statement = read_json(result).get("statement")
    if not isinstance(statement, dict):
        raise damaged(result, "it has no statement")
    try:
        weights = DiskMemory(folder / "cells" / chosen).recall_weights(MODEL)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{folder / 'cells' / chosen}: its weights cannot be read ({why_unreadable(error)})") from error
    if weights is None:
        raise BadInput(f"{folder / 'cells' / chosen}: has no weights; remove its {RESULT}, and train again with --out {folder}")
    spec = model_spec(values["model"])
    told = {"model": spec.name, **statement}
    with console.working("writing the model"):
        whole = WholeModel(spec)
        if whole.has_others:
            whole.assign(weights)
            write_whole(out, whole, told)
        else:
            write_export(out, Exported(weights, told))
    console.out.print(str(out), highlight=False, soft_wrap=True)
