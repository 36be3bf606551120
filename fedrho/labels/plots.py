"""Accuracy against the epsilon of a label: a line a method with error bars over seeds, beside what needs no label, or all."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from pydantic import BaseModel, FiniteFloat, ValidationError

from fedrho.drawing import GREY, MARKERS, accuracy_axis, drawn, dressed, look, noted
from fedrho.picture_files import check_picture, kind_of

NAME = 26
"""Characters of a line of the legend, which stands beside the axes."""


class _Statement(BaseModel):
    delta: FiniteFloat


class _Run(BaseModel):
    name: str
    epsilon: FiniteFloat | None
    accuracy_mean: FiniteFloat | None
    accuracy_std: FiniteFloat | None = None
    accuracy_standard_error: FiniteFloat | None = None
    statement: _Statement


class _Drawn(BaseModel):
    """What a picture takes of `results.json`, which may have been damaged since."""

    dataset: str
    model: str
    seeds: int
    measured_on: str
    constant_accuracy: FiniteFloat | None
    runs: list[_Run]


def accuracy_picture(results: Mapping[str, Any], kinds: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """By kind; the same bytes for the same results."""
    return drawn((7.6, 5.2), lambda figure: _accuracy(figure, results), kinds)


def of_folder(path: Path, picture: Path | None) -> list[Path]:
    """Draws the picture of a finished folder anew, in it or as `picture`; raises BadInput, FolderError."""
    from fedrho.labels.runs import RESULTS, damaged, read_json, stored
    from fedrho.simulations.files import write_whole

    check_picture(picture)
    if not (path / RESULTS).exists():
        stored(path)  # a folder of something else is none that could be gone on with
    results = read_json(path / RESULTS)
    try:
        _Drawn.model_validate(results)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise damaged(path / RESULTS, f"{key}: {first['msg'][:1].lower()}{first['msg'][1:]}") from error
    if picture is not None:
        wanted = {picture: accuracy_picture(results, [kind_of(picture)])[kind_of(picture)]}
    else:
        contents = accuracy_picture(results)
        (path / "plots").mkdir(exist_ok=True)
        wanted = {path / "plots" / f"accuracy.{ending}": content for ending, content in contents.items()}
    for place, content in wanted.items():
        write_whole(place, content)
    return list(wanted)


def lines(results: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The measured runs of each method with an epsilon, by its name without the epsilon that a run's own name may end in."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in results["runs"]:
        if one["epsilon"] is not None and one["accuracy_mean"] is not None:
            found.setdefault(one["name"].removesuffix(f" {one['epsilon']:g}"), []).append(one)
    return {name: sorted(several, key=lambda one: float(one["epsilon"])) for name, several in found.items()}


def _accuracy(figure: Figure, results: Mapping[str, Any]) -> None:
    axes = figure.add_subplot()
    seeds = results["seeds"]
    bars = f"mean of {seeds} runs, bars: one standard deviation" if seeds > 1 else "one run each"
    bars = f"{bars}; a trial, whose figures say nothing" if results.get("trial") else bars
    title = f"{results['dataset']}, {results['model']}: accuracy against label privacy\n({bars})"
    dressed(axes, title, "epsilon of one label (substitution)", "accuracy (share recognised)")
    methods = lines(results)
    epsilons = sorted({float(one["epsilon"]) for runs in methods.values() for one in runs})
    moved = _beside(epsilons)
    for place, (name, runs) in enumerate(methods.items()):
        _line(axes, name, runs, place, moved, place - (len(methods) - 1) / 2)
    _levels(axes, results)
    accuracy_axis(axes, _heights(results))
    _epsilons(axes, epsilons)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    deltas = {one["statement"]["delta"] for one in results["runs"] if one["statement"]["delta"]}
    note = f"{results['measured_on']}." + (f" DP-SGD is of delta {max(deltas):g}, all others pure." if deltas else "")
    noted(figure, note, 110)


def _heights(results: Mapping[str, Any]) -> list[float]:
    """All that is drawn, with the ends of its bars."""
    known = [one for one in results["runs"] if one["accuracy_mean"] is not None]
    return [results["constant_accuracy"] or 0.0, *(one["accuracy_mean"] + _bar(one) for one in known)]


def _bar(one: Mapping[str, Any]) -> float:
    return float(one.get("accuracy_std") or one.get("accuracy_standard_error") or 0.0)


def _by_ratio(epsilons: Sequence[float]) -> bool:
    """Whether they lie so far apart, and all above 0, that a logarithmic axis shows them better."""
    return bool(epsilons) and epsilons[0] > 0 and epsilons[-1] >= 4 * epsilons[0]


def _beside(epsilons: Sequence[float]) -> Callable[[float, float], float]:
    """Where to draw the point of an epsilon so that bars of several methods do not hide one another: hardly moved."""
    if _by_ratio(epsilons):
        return lambda epsilon, steps: float(epsilon * 1.018**steps)
    gap = min((after - before for before, after in itertools.pairwise(epsilons)), default=1.0)
    return lambda epsilon, steps: epsilon + 0.04 * gap * steps


def _epsilons(axes: Axes, epsilons: Sequence[float]) -> None:
    if not epsilons:
        return
    if _by_ratio(epsilons):
        axes.set_xscale("log")
        axes.set_xlim(epsilons[0] / 1.2, epsilons[-1] * 1.2)
    else:
        axes.set_xlim(0, epsilons[-1] * (1.1 if len(epsilons) > 1 else 2) or 1)  # one epsilon stands in the middle
    if len(epsilons) <= 8:
        axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
        axes.xaxis.set_minor_locator(NullLocator())


def _line(
    axes: Axes, name: str, runs: Sequence[Mapping[str, Any]], place: int, moved: Callable[[float, float], float], steps: float
) -> None:
    axes.errorbar(
        [moved(float(one["epsilon"]), steps) for one in runs],
        [one["accuracy_mean"] for one in runs],
        yerr=[_bar(one) for one in runs] if any(map(_bar, runs)) else None,  # the legend draws none then
        label=textwrap.fill(name, NAME),
        **look(place),
        marker=MARKERS[place % len(MARKERS)],
        markersize=4.5,
        linewidth=1.6,
        elinewidth=1.0,
        capsize=2.5,
    )


def _levels(axes: Axes, results: Mapping[str, Any]) -> None:
    for one in results["runs"]:
        if one["epsilon"] is None and one["accuracy_mean"] is not None:
            axes.axhline(
                one["accuracy_mean"],
                color=GREY,
                linewidth=1.2,
                linestyle=(0, (5, 2)),
                label=textwrap.fill(str(one["name"]), NAME),
            )
    if results["constant_accuracy"] is not None:
        axes.axhline(
            results["constant_accuracy"], color=GREY, linewidth=1.2, linestyle=(0, (1, 2)), label="best constant predictor"
        )
