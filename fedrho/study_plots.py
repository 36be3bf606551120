"""Pictures of simulations, as bytes that depend on the numbers alone; what only a simulation can know says so in its title.

The style is that of `drawing.py`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedrho.drawing import GREY, MARKERS, PALE, accuracy_axis, drawn, dressed, legend_below, look, marked, noted, plain_numbers
from fedrho.privacy.progress import Progress, unwatched, watched
from fedrho.privacy.statement import Neighbours
from fedrho.simulations.claim import NO_GUARANTEE
from fedrho.simulations.paths import Walk, Way
from fedrho.simulations.records import Row, flat


@dataclass(frozen=True)
class Curve:
    """One study of a comparison: epsilon, rho or steps, and accuracy at each measured step, a line for each seed."""

    name: str
    price: NDArray[np.float64]
    accuracy: tuple[NDArray[np.float64], ...]


def of_study(
    name: str,
    data: str,
    rows: Sequence[Row],
    delta: float | None,
    clip_norm: float | None,
    progress: Progress = unwatched,
) -> dict[str, bytes]:
    """The pictures of one folder, by file name; without privacy, which has no delta, none of utility against it."""
    table = _columns(rows)
    pictures: dict[str, Callable[[Figure], None]] = {
        "accuracy": lambda figure: _accuracy(figure, name, data, table, delta),
        **({} if delta is None else {"utility": lambda figure: _utility(figure, name, data, table, delta)}),
        "simulation_only": lambda figure: _simulation_only(figure, name, table, clip_norm),
    }
    files = {}
    for title, draw in watched(pictures.items(), "picture", progress, "drawing"):
        for kind, content in drawn((7.2, 4.5), draw).items():
            files[f"{title}.{kind}"] = content
    return files


def _columns(rows: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
    """By column; NaN where a step has no such number."""
    values = [flat(row) for row in rows]
    return {name: np.array([np.nan if row[name] is None else row[name] for row in values], dtype=float) for name in values[0]}


def _accuracy(figure: Figure, name: str, data: str, table: Mapping[str, NDArray[np.float64]], delta: float | None) -> None:
    """Against steps, and what was spent by then."""
    axes = figure.add_subplot()
    private = not np.isnan(table["epsilon"]).all()
    title = f"{name}: accuracy and privacy spent" if private else f"{name}: accuracy, {NO_GUARANTEE}"
    dressed(axes, title, "steps released", "accuracy (share recognised)")
    measured = ~np.isnan(table["held_out.accuracy"])
    steps, accuracy = table["step"][measured], table["held_out.accuracy"][measured]
    label = f"accuracy on {int(table['held_out.examples'][measured][-1])} examples of no device ({data})"
    handles = axes.plot(steps, accuracy, linewidth=2, label=label, **marked(0, steps.size), **look(0))
    accuracy_axis(axes, [accuracy])
    _from_step_zero(axes, table["step"])
    if private:
        price, label = _price(table, delta)
        other = axes.twinx()
        other.spines["top"].set_visible(False)
        other.set(ylabel=label, ylim=(0, float(np.nanmax(price)) * 1.05 or 1))
        handles += other.step(table["step"], price, where="post", linewidth=1.6, label=label, **marked(1, price.size), **look(1))
    legend_below(figure, handles)


def _from_step_zero(axes: Axes, steps: NDArray[np.float64], ticks: int | None = None) -> None:
    """To a little beyond the last, so that its marker is whole."""
    axes.set_xlim(0, float(steps[-1]) * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(ticks or "auto", integer=True, steps=[1, 2, 5, 10]))


def _price(table: Mapping[str, NDArray[np.float64]], delta: float | None) -> tuple[NDArray[np.float64], str]:
    """rho where there is one; else epsilon, as under Poisson sampling."""
    if np.isnan(table["rho"]).all():
        return table["epsilon"], f"epsilon spent if deployed (one device, add-or-remove, delta = {delta:g})"
    return table["rho"], "rho spent if deployed (zCDP, one device, zero-out)"


def _relation(table: Mapping[str, NDArray[np.float64]]) -> Neighbours:
    """What a statement of this run compares: Poisson sampling, the one without rho, has a relation of its own."""
    return Neighbours.ADD_OR_REMOVE if np.isnan(table["rho"]).all() else Neighbours.ZERO_OUT


def _utility(figure: Figure, name: str, data: str, table: Mapping[str, NDArray[np.float64]], delta: float) -> None:
    axes = figure.add_subplot()
    x = f"epsilon spent if deployed (one device, {_relation(table).value}, delta = {delta:g})"
    dressed(axes, f"{name}: utility against privacy", x, "accuracy (share recognised)")
    measured = ~np.isnan(table["held_out.accuracy"])
    epsilon, accuracy = table["epsilon"][measured], table["held_out.accuracy"][measured]
    axes.plot(epsilon, accuracy, linewidth=2, marker="o", markersize=3, **look(0))
    accuracy_axis(axes, [accuracy])
    axes.set_xlim(left=0)
    last = int(table["step"][measured][-1])
    below = accuracy[-1] > axes.get_ylim()[1] / 2
    arrow = {"arrowstyle": "-", "color": GREY}
    text = f"after {last} step{'' if last == 1 else 's'}"
    beside = (0, -60 if below else 50)
    axes.annotate(text, (epsilon[-1], accuracy[-1]), beside, textcoords="offset points", ha="right", arrowprops=arrow)
    noted(figure, f"Measured on examples of no device ({data}). Neighbours: {_relation(table).value}.")


def _simulation_only(figure: Figure, name: str, table: Mapping[str, NDArray[np.float64]], clip_norm: float | None) -> None:
    """Loss, norms and clients: three small pictures under one title that says what they are."""
    figure.suptitle(f"{name}: simulation only, no real server could see this")
    loss, norms, clients = figure.subplots(1, 3)
    dressed(loss, "training loss\n(simulation only)", "steps released", "cross-entropy (nats)")
    _lines(loss, table, {"": "training_loss"})
    dressed(norms, "norm of updates\n(simulation only)", "steps released", "L2 norm before clipping")
    _lines(norms, table, {"median": "update_norm_median", "largest": "update_norm_largest"})
    if clip_norm is not None:
        norms.axhline(clip_norm, color=GREY, linewidth=1, linestyle=(0, (1, 1)), label=f"clip norm {clip_norm:g}")
    dressed(clients, "devices' own examples\n(simulation only)", "steps released", "accuracy (share recognised)")
    _clients(clients, table)
    for axes in (loss, norms):
        axes.set_ylim(bottom=0)
    for axes in (loss, norms, clients):
        _from_step_zero(axes, table["step"], 3)
        axes.title.set_fontsize(10)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18))


def _lines(axes: Axes, table: Mapping[str, NDArray[np.float64]], columns: Mapping[str, str]) -> None:
    """A line a column, by the name it has in the legend; a column without a number is said to be none."""
    for place, (label, column) in enumerate(columns.items()):
        values = table[f"simulation_only.{column}"]
        known = ~np.isnan(values)
        if not known.any():
            _missing(axes, "not measured")
            return
        style: dict[str, Any] = {"label": label} if label else {}
        axes.plot(table["step"][known], values[known], linewidth=1.6, **style, **marked(place, int(known.sum())), **look(place))


def _missing(axes: Axes, text: str) -> None:
    axes.annotate(text, (0.5, 0.5), xycoords="axes fraction", ha="center", color=GREY)


def _clients(axes: Axes, table: Mapping[str, NDArray[np.float64]]) -> None:
    known = ~np.isnan(table["simulation_only.client_accuracy_mean"])
    if not known.any():
        axes.set_ylim(0, 1)
        _missing(axes, "not measured\n(record.clients = 0)")
        return
    steps, mean = table["step"][known], table["simulation_only.client_accuracy_mean"][known]
    low, high = (table[f"simulation_only.client_accuracy_{end}_tenth"][known] for end in ("lowest", "highest"))
    if steps.size > 1:
        axes.fill_between(steps, low, high, color=PALE, linewidth=0, label="four in five")
    else:
        axes.vlines(steps, low, high, color=PALE, linewidth=6, label="four in five")
    axes.plot(steps, mean, linewidth=1.6, label="mean", **marked(0, steps.size), **look(0))
    accuracy_axis(axes, [high])


def comparison(curves: Sequence[Curve], title: str, x: str, note: str = "", kind: str = "png") -> bytes:
    """One line a study; where it has several seeds, their mean, and a band from least to largest. `kind` is png, svg or pdf."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        dressed(axes, title, x, "accuracy (share recognised)")
        for place, curve in enumerate(curves):
            _study(axes, curve, place)
        accuracy_axis(axes, [seed for curve in curves for seed in curve.accuracy])
        axes.set_xlim(0, 1.02 * max(float(curve.price.max()) for curve in curves))
        legend_below(figure, *axes.get_legend_handles_labels(), note)

    return drawn((7.2, 4.8), draw, [kind])[kind]


def _study(axes: Axes, curve: Curve, place: int) -> None:
    seeds = np.array(curve.accuracy)
    label = curve.name if len(seeds) == 1 else f"{curve.name} ({len(seeds)} seeds: mean, least to largest)"
    apart = max(1, curve.price.size // 12)
    style = {
        "marker": MARKERS[place % len(MARKERS)],
        "markersize": 4.5,
        "markevery": (place * apart // 4 % apart, apart),
        **look(place),
    }
    axes.plot(curve.price, seeds.mean(axis=0), linewidth=2, label=label, **style)
    if len(seeds) > 1:
        axes.fill_between(curve.price, seeds.min(axis=0), seeds.max(axis=0), color=style["color"], alpha=0.2, linewidth=0)


def sweep(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Accuracy against each value that was swept, a dot for each point; a line through the means of equal values."""
    keys = [key for key in rows[0] if key.startswith("set.")]

    def draw(figure: Figure) -> None:
        figure.suptitle(f"{name}: accuracy of {len(rows)} points")
        panels = np.atleast_1d(figure.subplots(1, len(keys), sharey=True))
        for place, (axes, key) in enumerate(zip(panels, keys, strict=True)):
            dressed(axes, "", key.removeprefix("set."), "accuracy (share recognised)" if not place else "")
            _swept(axes, [row[key] for row in rows], np.array([row["accuracy"] for row in rows]))
        accuracy_axis(panels[0], [[row["accuracy"] for row in rows]])
        handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        legend_below(figure, list(handles.values()), list(handles), f"on {rows[0]['measured_on']}")

    return drawn((max(6.0, 3.6 * len(keys)), 4.5), draw)


def _swept(axes: Axes, values: Sequence[Any], accuracy: NDArray[np.float64]) -> None:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    different = sorted(set(values)) if numbers else list(dict.fromkeys(map(str, values)))
    places = np.array([value if numbers else different.index(str(value)) for value in values], dtype=float)
    axes.plot(places, accuracy, "o", color=look(0)["color"], alpha=0.6, markersize=5, label="a point")
    axes.margins(x=0.1)
    each = np.unique(places)
    if each.size < places.size:
        means = [accuracy[places == place].mean() for place in each]
        style = {**look(1), **({} if numbers else {"linestyle": ""})}
        axes.plot(each, means, linewidth=1.6, marker="_", markersize=24, label="mean of the points at a value", **style)
    if numbers and each[0] > 0 and each[-1] >= 20 * each[0]:
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
    if numbers and len(each) <= 6:
        axes.set_xticks(each, [f"{value:g}" for value in each])
    elif not numbers:
        axes.set_xticks(range(len(different)), [textwrap.fill(text, 16) for text in different])
        axes.set_xlim(-0.5, len(different) - 0.5)


def ways(walk: Walk, three: Sequence[Way], means: Mapping[str, float], kind: str = "png") -> bytes:
    """Each noisy way beside the true one, on the same scale, with everything that makes them comparable."""

    def draw(figure: Figure) -> None:
        true, *noisy = three
        figure.suptitle(f"The path of the weights at equal privacy: rho = {walk.rho:g} (zCDP, one device), {walk.steps} steps")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for place, (axes, way) in enumerate(zip(panels, noisy, strict=True), 1):
            title = f"{way.name}: {way.away(true):.2f} away from the true path\n(mean over seeds: {means[way.name]:.2f})"
            dressed(axes, title, "first weight", "second weight" if place == 1 else "")
            style = {**look(3 - place), "linestyle": "-"}
            axes.plot(*way.weights.T, linewidth=1.2, label=f"{way.name}, noise multiplier {way.noise_multiplier:.3g}", **style)
            axes.plot(*true.weights.T, linewidth=2.2, color="#000000", label="no noise")
            axes.plot(*true.weights[0], "o", color="#000000", markersize=6)
            axes.plot(*way.weights[-1], "X", color=style["color"], markersize=9, markeredgecolor="white")
            axes.plot(*true.weights[-1], "X", color="#000000", markersize=9, markeredgecolor="white")
            axes.legend(frameon=False, fontsize=9, loc="upper left")
        figure.supxlabel(
            f"A quadratic in two dimensions; {walk.cohort} devices a step, each at most once, zero-out neighbours, clip norm "
            f"{walk.clip_norm:g}; no amplification by sampling.\nThe product's mechanisms, with noise from seed {walk.seed}. "
            "Dot: start, cross: end. Distance: root mean square over the steps.",
            fontsize=8,
            color=GREY,
        )

    return drawn((9.6, 5.0), draw, [kind])[kind]
