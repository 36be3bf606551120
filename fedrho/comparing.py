"""What is drawn from the folders of simulations: several beside one another, one anew, and the paths under noise."""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from fedrho import console
from fedrho.console import BadInput
from fedrho.picture_files import check_picture, kind_of
from fedrho.privacy.statement import round_up
from fedrho.server.tasks import why_unreadable
from fedrho.simulations import folder as folders
from fedrho.simulations import records
from fedrho.simulations.claim import NO_GUARANTEE
from fedrho.simulations.files import write_whole
from fedrho.simulations.nonprivate import NONE
from fedrho.simulations.records import Row
from fedrho.work import Work

if TYPE_CHECKING:
    from fedrho.simulations.paths import Walk

AXES = ("epsilon", "rho", "steps")
PATH_SEEDS = 5
"""Seeds over which the distance of a path is averaged, so that one lucky seed is no argument."""


@dataclass(frozen=True, eq=False)
class Read:
    """A folder as it stands: its study's values, and the rows that were measured."""

    path: Path
    values: Mapping[str, Any]
    measured: Sequence[Row]

    @property
    def group(self) -> str:
        """The same for studies that differ in their seed alone."""
        return json_text.dumps({key: value for key, value in self.values.items() if key != "seed"}, sort_keys=True)

    @property
    def delta(self) -> float | None:
        """None without privacy."""
        return None if self.values["task"]["privacy"] == NONE else float(self.values["task"]["privacy"]["delta"])

    @property
    def neighbours(self) -> str:
        """Whom the promise is about; empty where nothing is promised."""
        if self.delta is None:
            return ""
        return "add-or-remove" if "sampling" in self.values else "zero-out"

    @property
    def data(self) -> str:
        return f"{self.measured[-1]['held_out']['examples']} examples of no device ({self.values['data']['name']})"


def read(path: Path) -> list[Read]:
    """A study's folder, or those of a sweep's points; raises FolderError, BadInput where nothing was measured yet."""
    values = folders.stored_values(path)
    if "sweep" in values:
        points = sorted(point for point in (path / "points").glob("*") if (point / "metrics.jsonl").exists())
        return [one for point in points for one in read(point)]
    try:
        rows = records.rows((path / "metrics.jsonl").read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path / 'metrics.jsonl'}: cannot be read ({why_unreadable(error)})") from error
    measured = [row for row in rows if row["held_out"]]
    if not measured:
        raise BadInput(f"{path}: no accuracy was measured yet; go on with `fedrho simulate --resume {path}`")
    return [Read(path, values, measured)]


def compare(paths: Sequence[Path], plot: Path, by: str, json: bool) -> None:
    """Raises BadInput, FolderError."""
    from fedrho import study_plots

    if by not in AXES:
        raise BadInput(f"--by: must be {', '.join(AXES)}, not {by!r}")
    check_picture(plot)
    groups = _groups([one for path in paths for one in read(path)])
    if not groups:
        raise BadInput("FOLDER...: none of these has measured anything yet")
    if by != "steps":
        _check_priced(groups)
    deltas = {one.delta for group in groups.values() for one in group if one.delta is not None}
    if by == "epsilon" and len(deltas) > 1:
        raise BadInput(f"epsilon at different deltas ({', '.join(map(str, sorted(deltas)))}) is no comparison; take --by rho")
    curves = [_curve(name, group, by) for name, group in groups.items()]
    title = "Accuracy against steps" if by == "steps" else "Utility against privacy"
    relations = " or ".join(sorted({group[0].neighbours for group in groups.values()} - {""}))
    unit = {"steps": "steps", "rho": f"rho (zCDP, one device, {relations})"}.get(by)
    unit = unit or f"epsilon (one device, {relations}, delta = {deltas.pop():g})"
    with console.working("drawing the picture"):
        content = study_plots.comparison(curves, title, unit, _note(groups), kind_of(plot))
    _write(plot, content)
    rows = [_row(name, group) for name, group in groups.items()]
    if json:
        console.print_json({"plot": str(plot), "studies": rows})
        return
    table = Table("study", "seeds", "steps", "accuracy (least to largest)", "rho", "epsilon", "delta", "neighbours", box=None)
    for row in rows:
        spread = "" if row["seeds"] == 1 else f" ({row['accuracy_least']:.4f} to {row['accuracy_largest']:.4f})"
        rho, epsilon = ("-" if row[name] is None else round_up(row[name]) for name in ("rho", "epsilon"))
        delta = "-" if row["delta"] is None else f"{row['delta']:g}"
        accuracy = f"{row['accuracy']:.4f}{spread}"
        numbers = (str(row["seeds"]), str(row["steps"]), accuracy, rho, epsilon, delta)
        table.add_row(row["study"], *numbers, row["neighbours"] or NO_GUARANTEE)
    console.out.print(table, highlight=False)
    console.out.print(f"{_note(groups)}\npicture: {plot}", highlight=False, soft_wrap=True)


def _groups(found: Sequence[Read]) -> dict[str, list[Read]]:
    """By name: studies that differ in their seed alone are one. A name that several have gets what differs beside it."""
    by_values: dict[str, list[Read]] = {}
    for one in found:
        seeds = by_values.setdefault(one.group, [])
        if all(one.values["seed"] != other.values["seed"] for other in seeds):  # equal studies have equal bytes
            seeds.append(one)
    names = [group[0].values["name"] for group in by_values.values()]
    several = {name: [group[0] for group in by_values.values() if group[0].values["name"] == name] for name in names}
    return {_label(group[0], several[name]): group for name, group in zip(names, by_values.values(), strict=True)}


def _label(one: Read, same_name: Sequence[Read]) -> str:
    """Its name, and the values in which it differs from others of that name."""
    name = str(one.values["name"])
    if len(same_name) == 1:
        return name
    algorithms = [other.values["task"]["algorithm"] for other in same_name]
    if len({*algorithms}) == len(algorithms):
        return f"{name}: {one.values['task']['algorithm']}"
    every = [_flat(other.values) for other in same_name]
    keys = sorted({key for other in every for key in other if len({repr(values.get(key)) for values in every}) > 1})
    mine = _flat(one.values)
    told = [f"{key.rpartition('.')[2]} {mine.get(key, 'none')}" for key in keys if key not in ("seed", "chosen_from")]
    return f"{name}: {', '.join(told[:3])}" if told[:3] else f"{name} ({one.path.name})"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _curve(name: str, group: Sequence[Read], by: str) -> Any:
    from fedrho.study_plots import Curve

    length = min(len(one.measured) for one in group)
    price = [row["step" if by == "steps" else by] for row in group[0].measured[:length]]
    if any(value is None for value in price):
        raise BadInput(f"--by {by}: {group[0].path} has none, because its sampling is Poisson; take --by epsilon")
    seeds = tuple(np.array([row["held_out"]["accuracy"] for row in one.measured[:length]]) for one in group)
    promise = "" if by != "steps" else f", {_promise(group[0])}"
    return Curve(f"{name}{promise}", np.array(price), seeds)


def _promise(one: Read) -> str:
    """What a line in a picture without an axis of privacy has to say."""
    last = one.measured[-1]
    if one.delta is None:
        return NO_GUARANTEE
    if last["rho"] is None:
        return f"epsilon = {round_up(last['epsilon'])} at delta = {one.delta:g}"
    return f"rho = {round_up(last['rho'])}"


def _check_priced(groups: Mapping[str, Sequence[Read]]) -> None:
    """Raises BadInput where a study has no price: it would stand at a place that is none."""
    for group in groups.values():
        if group[0].delta is None:
            raise BadInput(f"--by: {group[0].path} ran without privacy, and has no epsilon or rho; take --by steps")


def _note(groups: Mapping[str, Sequence[Read]]) -> str:
    everyone = [one for group in groups.values() for one in group]
    measured, relations = sorted({one.data for one in everyone}), sorted({one.neighbours for one in everyone} - {""})
    text = f"Accuracy on {' and on '.join(measured)}."
    if not relations:
        return f"{text} Without privacy: {NO_GUARANTEE}."
    text += f" Neighbours: {' or '.join(relations)}."
    text += " What deployed runs with these settings would cost; a simulation protects nobody."
    return text + (" Different neighbours are not the same promise." if len(relations) > 1 else "")


def _row(name: str, group: Sequence[Read]) -> dict[str, Any]:
    last = [one.measured[-1] for one in group]
    accuracies = [row["held_out"]["accuracy"] for row in last]
    return {
        "study": name,
        "folders": [str(one.path) for one in group],
        "seeds": len(group),
        "steps": last[0]["step"],
        "accuracy": float(np.mean(accuracies)),
        "accuracy_least": min(accuracies),
        "accuracy_largest": max(accuracies),
        "rho": last[0]["rho"],
        "epsilon": last[0]["epsilon"],
        "delta": group[0].delta,
        "neighbours": group[0].neighbours,
        "measured_on": group[0].data,
    }


def draw_anew(path: Path) -> list[Path]:
    """The pictures of a study's folder, of what there is so far."""
    from fedrho import study_plots

    values = folders.stored_values(path)
    if "sweep" in values:
        raise BadInput(f"{path}: is a sweep; `fedrho simulate compare {path}` draws its points")
    read(path)
    rows = records.rows((path / "metrics.jsonl").read_bytes())
    privacy = values["task"]["privacy"]
    delta, norm = (None, None) if privacy == NONE else (privacy["delta"], privacy["clip_norm"])
    with Work("drawing") as work:
        pictures = study_plots.of_study(values["name"], values["data"]["name"], rows, delta, norm, work.progress)
    for name, picture in pictures.items():
        _write(path / "plots" / name, picture)
    return [path / "plots" / name for name in pictures]


def draw_paths(walk: Walk, picture: Path, json: bool) -> None:
    from fedrho import study_plots
    from fedrho.simulations.paths import ways_and_distances

    check_picture(picture)
    with Work("walking", f"each at rho {walk.rho:g}, over {PATH_SEEDS} seeds") as work:
        three, away = ways_and_distances(walk, PATH_SEEDS, work.progress)
    with console.working("drawing the picture"):
        content = study_plots.ways(walk, three, away, kind_of(picture))
    _write(picture, content)
    true, *noisy = three
    values: dict[str, object] = {
        "plot": str(picture),
        "seed": walk.seed,
        "steps": walk.steps,
        "cohort": walk.cohort,
        "rho": walk.rho,
        "neighbours": "zero-out",
        "max_times": 1,
        "clip_norm": walk.clip_norm,
        "paths": [{"name": way.name, "noise_multiplier": way.noise_multiplier, "distance": way.away(true)} for way in noisy],
        "mean_distances": {"seeds": PATH_SEEDS, **away},
    }
    if json:
        console.print_json(values)
        return
    table = Table("path", "noise multiplier", "distance from the true path", f"mean over {PATH_SEEDS} seeds", box=None)
    for way in noisy:
        table.add_row(way.name, f"{way.noise_multiplier:.4g}", f"{way.away(true):.3g}", f"{away[way.name]:.3g}")
    console.out.print(table, highlight=False)
    console.out.print(
        f"Equal privacy: rho = {walk.rho:g} (zCDP, one device, zero-out), {walk.steps} steps, {walk.cohort} devices each, every "
        f"device once at most, no amplification. Seed {walk.seed}.\npicture: {picture}",
        highlight=False,
        soft_wrap=True,
    )


def _write(path: Path, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written ({error.strerror or error})") from error
