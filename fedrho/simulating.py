"""The command `fedrho simulate`: a study from its file to a folder of results, and what is drawn from such folders."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from fedrho import completions, console
from fedrho.console import BadInput
from fedrho.output_options import Json, Quiet
from fedrho.usage import near

if TYPE_CHECKING:
    from fedrho.study_running import Ended, How

RUN = "run"


class RunsByDefault(TyperGroup):
    """`simulate STUDY.toml` is `simulate run STUDY.toml`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [RUN, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Options are those of `run`, before it is said as after."""
        if incomplete.startswith("-"):
            return list(self.commands[RUN].shell_complete(ctx, incomplete))
        return list(super().shell_complete(ctx, incomplete))


app = typer.Typer(
    cls=RunsByDefault,
    help="Simulate a run on virtual devices in virtual time: `fedrho simulate STUDY.toml` is `fedrho simulate run STUDY.toml`."
    "\n\nExample: fedrho simulate examples/studies/digits.toml",
    no_args_is_help=True,
)

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that a simulation wrote.")]


@app.command()
def run(
    study: Annotated[
        Path | None, typer.Argument(metavar="STUDY.toml", help="The study; with --resume it may be left out.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="New folder for the results.", show_default="NAME-1, NAME-2, ...")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Go on in this folder, where it was broken off.", show_default="none")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="auto, serial, processes or ray: changes no number.",
            show_default="as the study says",
            autocompletion=completions.of(completions.ENGINES),
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, max=10_000, help="Processes; 0 takes one a core.", show_default="as the study says")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another value for a key of the study. Repeatable.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help="Points of a sweep side by side.", show_default="as many as there are cores"),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Send it to MLflow too, as sqlite:///FILE or http://...: fedrho\\[mlflow].", show_default="none"
        ),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a study, or a sweep of them, into a folder of results. `run` may be left out.

    Example: fedrho simulate examples/studies/digits.toml --set seed=1
    """
    from fedrho import mlflow_runs, sweeping
    from fedrho.study_running import How

    how = How(engine, workers, quiet or json, mlflow)
    settings = set_ or []
    if study is None and resume is None:
        raise BadInput("STUDY.toml: missing; `fedrho simulate example` writes one to start from")
    if resume is not None and output is not None:
        raise BadInput("--output: a study goes on in its own folder; leave it out, or leave --resume out")
    if mlflow is not None:
        mlflow_runs.check(mlflow)
    if study is None and settings:
        raise BadInput("--set: a study goes on with its own values; leave it out")
    if sweeping.is_sweep(study, settings, resume):
        sweeping.run_sweep(study, settings, output, resume, how, jobs, json)
        return
    if jobs is not None:
        raise BadInput("--jobs: is for a study with a [sweep]; --workers is how many processes one study takes")
    ended = _run_one(study, settings, output, resume, how)
    if json:
        console.print_json(ended.as_json())
    elif not quiet:
        print_ended(ended)


def _run_one(study: Path | None, settings: list[str], output: Path | None, resume: Path | None, how: How) -> Ended:
    from fedrho import study_running

    given = study_running.open_study(study, settings, how.quiet) if study else None
    if resume is not None:
        return study_running.resume(resume, how, given)
    assert given is not None
    return study_running.run_new(*given, output, how)


def print_ended(ended: Ended) -> None:
    """The study in a short table, what may be claimed, and where everything is."""
    values = ended.summary
    deployed, only = values["if_deployed"], values["simulation_only"]
    table = Table(title=f"fedrho simulate: {values['name']}", show_header=False, title_justify="left")
    rate = f", {ended.steps_here / ended.seconds:.3g} steps/s" if ended.steps_here and ended.seconds else ""
    for name, value in (
        ("algorithm", values["algorithm"]),
        ("model", values["model"]),
        ("steps", f"{values['steps']}{rate}"),
        ("accuracy", f"{values['accuracy']:.4f} on {values['measured_on']}"),
        ("training loss", _shown(only["training_loss"], "simulation only")),
        ("updates clipped", _shown(only["clipped_share"], "share, simulation only")),
        ("devices' own examples", _shown(only.get("client_accuracy_mean"), "accuracy, simulation only")),
    ):
        table.add_row(name, value)
    console.out.print(table, highlight=False)
    if deployed is None:
        console.print_nothing(values["guarantee"], values["simulation"])
    else:
        _print_deployed(values, deployed)
    console.out.print(f"\nresults: {ended.path}", highlight=False, soft_wrap=True)


def _print_deployed(values: Mapping[str, Any], deployed: Mapping[str, Any]) -> None:
    rows = [("unit", f"one {deployed['unit']}"), ("neighbours", deployed["neighbours"])]
    if deployed["rho"] is not None:
        rows.append(("rho", f"{_up(deployed['rho'])} (zCDP)"))
    rows.append(("epsilon", f"{_up(deployed['epsilon'])} at delta = {deployed['delta']!r}"))
    console.print_claim(rows, [values["simulation"], *deployed["assumptions"]], "of a deployed run with these settings")
    if "labels" in values:
        labels = values["labels"]["if_deployed"]
        claim = [("unit", f"one {labels['unit']}"), ("neighbours", labels["neighbours"])]
        claim.append(("epsilon", f"{_up(labels['epsilon'])} (pure)"))
        of = "about labels, of a deployed run; never added to the other"
        console.print_claim(claim, [values["labels"]["simulation"], *labels["assumptions"]], of)


def _up(value: float) -> str:
    from fedrho.privacy.statement import round_up

    return round_up(value)


def _shown(value: float | None, mark: str) -> str:
    return "not measured" if value is None else f"{value:.4g} ({mark})"


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of studies, or of sweeps.")],
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png|svg|pdf", help="The picture.", show_default="comparison.png")
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="Privacy as epsilon or as rho; or steps, without privacy too.",
            autocompletion=completions.of(("epsilon", "rho", "steps")),
        ),
    ] = "epsilon",
    json: Json = False,
) -> None:
    """Draw utility against privacy: a curve for each study, a band where one was run with several seeds.

    `--by steps` draws accuracy against steps instead, where runs without privacy have their place.

    Example: fedrho simulate compare digits-1 digits-2 --plot digits.svg
    """
    from fedrho import comparing

    comparing.compare(folders, plot or Path("comparison.png"), by, json)


@app.command()
def plot(folder: FolderArgument) -> None:
    """Draw the pictures of a folder anew, of an unfinished study too.

    Example: fedrho simulate plot digits-1
    """
    from fedrho import comparing

    for path in comparing.draw_anew(folder):
        console.out.print(str(path), highlight=False, soft_wrap=True)


@app.command()
def export(
    folder: FolderArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="New file: .keras, .safetensors, .npz or .tflite.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write the weights of a finished study, with what its statement says inside.

    Example: fedrho simulate export digits-1 --out digits.keras
    """
    from fedrho import study_export

    with console.working("writing the model"):
        study_export.export_study(folder, out, force)
    console.out.print(str(out), highlight=False, soft_wrap=True)


@app.command()
def paths(
    picture: Annotated[Path, typer.Option("--plot", metavar="FILE.png|svg|pdf", help="The picture.")] = Path("paths.png"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the points and of the noise.")] = 0,
    steps: Annotated[int, typer.Option(min=2, max=4096, help="Steps of every path.")] = 256,
    rho: Annotated[float, typer.Option(min=1e-6, max=1e6, help="Price of every noisy path, zCDP, of one device.")] = 0.01,
    cohort: Annotated[int, typer.Option(min=1, max=10_000, help="Devices a step, each of which takes part once.")] = 10,
    json: Json = False,
) -> None:
    """Draw the path of the weights under DP-FTRL's and DP-SGD's noise beside the true one, at equal privacy.

    Example: fedrho simulate paths --plot paths.svg --seed 3
    """
    from fedrho import comparing
    from fedrho.simulations.paths import Walk

    comparing.draw_paths(Walk(steps=steps, cohort=cohort, rho=rho, seed=seed), picture, json)


@app.command()
def example(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Which; without it, all are listed.", show_default=False, autocompletion=completions.studies
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="PATH", help="New file for the study.", show_default="NAME.toml")] = None,
) -> None:
    """Write an example study to start from.

    Example: fedrho simulate example digits
    """
    import importlib.resources

    from fedrho.simulations import studies

    there = {Path(file.name).stem: file for file in importlib.resources.files(studies).iterdir() if file.name.endswith(".toml")}
    if name is None:
        for known in sorted(there):
            first = there[known].read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            console.out.print(f"{known}: {first}", highlight=False, soft_wrap=True)
        return
    if name not in there:
        raise BadInput(f"NAME: no example {name!r}; allowed: {', '.join(sorted(there))}{near(name, there)}")
    path = output or Path(f"{name}.toml")
    try:
        with path.open("x", encoding="utf-8") as file, there[name].open(encoding="utf-8") as source:
            shutil.copyfileobj(source, file)
    except FileExistsError as error:
        raise BadInput(f"{path}: is there already; choose another name with --output") from error
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror or error})") from error
    console.out.print(f"{path}: run it with `fedrho simulate {path}`", highlight=False, soft_wrap=True)
