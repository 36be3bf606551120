"""Pictures of simulations, as bytes that depend on the numbers alone; what only a simulation can know says so in its title.

The colours are those of `plots.py`.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedrho.plots import GREY, dressed, styles
from fedrho.simulations.claim import NO_GUARANTEE
from fedrho.simulations.paths import Walk, Way
from fedrho.simulations.records import Row, flat

MARKERS = ("o", "s", "^", "D", "v")
SETTINGS: Any = {"svg.hashsalt": "fedrho", "svg.fonttype": "none"}


@dataclass(frozen=True)
class Curve:
    """One study of a comparison: epsilon, rho or steps, and accuracy at each measured step, a line for each seed."""

    name: str
    price: NDArray[np.float64]
    accuracy: tuple[NDArray[np.float64], ...]


def drawn(size: tuple[float, float], draw: Callable[[Figure], None]) -> dict[str, bytes]:
    """What `draw` draws as `png` and `svg`."""
    files = {}
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            files[kind] = buffer.getvalue()
    return files


def of_study(name: str, data: str, rows: Sequence[Row], delta: float | None, clip_norm: float | None) -> dict[str, bytes]:
    """The pictures of one folder, by file name; without privacy, which has no delta, none of utility against it."""
    table = _columns(rows)
    pictures: dict[str, Callable[[Figure], None]] = {
        "accuracy": lambda figure: _accuracy(figure, name, data, table),
        **({} if delta is None else {"utility": lambda figure: _utility(figure, name, data, table, delta)}),
        "simulation_only": lambda figure: _simulation_only(figure, name, table, clip_norm),
    }
    files = {}
    for title, draw in pictures.items():
        for kind, content in drawn((7.2, 4.5), draw).items():
            files[f"{title}.{kind}"] = content
    return files


def _columns(rows: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
    """By column; NaN where a step has no such number."""
    values = [flat(row) for row in rows]
    return {name: np.array([np.nan if row[name] is None else row[name] for row in values], dtype=float) for name in values[0]}


def _accuracy(figure: Figure, name: str, data: str, table: Mapping[str, NDArray[np.float64]]) -> None:
    """Against steps, and what was spent by then."""
    axes = figure.add_subplot()
    private = not np.isnan(table["epsilon"]).all()
    title = f"{name}: accuracy and privacy spent" if private else f"{name}: accuracy, {NO_GUARANTEE}"
    dressed(axes, title, "steps released", "accuracy (share recognised)")
    measured = ~np.isnan(table["held_out.accuracy"])
    steps, accuracy = table["step"][measured], table["held_out.accuracy"][measured]
    examples = int(table["held_out.examples"][measured][-1])
    (left,) = axes.plot(steps, accuracy, linewidth=2, label=f"accuracy on {examples} examples of no device ({data})", **_style(0))
    axes.set(ylim=(0, 1), xlim=(0, table["step"][-1]))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not private:
        figure.legend(handles=[left], frameon=False, loc="outside lower center", fontsize=9)
        return
    price, label = _price(table)
    other = axes.twinx()
    other.spines["top"].set_visible(False)
    other.set(ylabel=label, ylim=(0, float(np.nanmax(price)) * 1.05))
    (right,) = other.step(table["step"], price, where="post", linewidth=1.6, label=label, **_style(1))
    figure.legend(handles=[left, right], frameon=False, loc="outside lower center", ncols=2, fontsize=9)


def _price(table: Mapping[str, NDArray[np.float64]]) -> tuple[NDArray[np.float64], str]:
    """rho where there is one; else epsilon, as under Poisson sampling."""
    if np.isnan(table["rho"]).all():
        return table["epsilon"], "epsilon spent if deployed (one device)"
    return table["rho"], "rho spent if deployed (zCDP, one device)"


def _utility(figure: Figure, name: str, data: str, table: Mapping[str, NDArray[np.float64]], delta: float) -> None:
    axes = figure.add_subplot()
    x = f"epsilon spent if deployed (one device, delta = {delta:g})"
    dressed(axes, f"{name}: utility against privacy", x, "accuracy (share recognised)")
    measured = ~np.isnan(table["held_out.accuracy"])
    epsilon, accuracy = table["epsilon"][measured], table["held_out.accuracy"][measured]
    axes.plot(epsilon, accuracy, linewidth=2, marker="o", markersize=3, **_style(0))
    last = f"after {int(table['step'][measured][-1])} steps"
    arrow = {"arrowstyle": "-", "color": GREY}
    axes.annotate(last, (epsilon[-1], accuracy[-1]), (0, -60), textcoords="offset points", ha="right", arrowprops=arrow)
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.annotate(f"measured on examples of no device ({data})", (1, 0.02), xycoords="axes fraction", ha="right", color=GREY)


def _simulation_only(figure: Figure, name: str, table: Mapping[str, NDArray[np.float64]], clip_norm: float | None) -> None:
    """Loss, norms and clients: three small pictures under one title that says what they are."""
    figure.suptitle(f"{name}: simulation only, no real server could see this")
    loss, norms, clients = figure.subplots(1, 3)
    steps = table["step"]
    dressed(loss, "training loss\n(simulation only)", "steps released", "cross-entropy (nats)")
    loss.plot(steps, table["simulation_only.training_loss"], linewidth=1.6, **_style(0))
    dressed(norms, "norm of updates\n(simulation only)", "steps released", "L2 norm before clipping")
    norms.plot(steps, table["simulation_only.update_norm_median"], linewidth=1.6, label="median", **_style(0))
    norms.plot(steps, table["simulation_only.update_norm_largest"], linewidth=1.6, label="largest", **_style(1))
    if clip_norm is not None:
        norms.axhline(clip_norm, color=GREY, linewidth=1, linestyle=(0, (1, 1)), label=f"clip norm {clip_norm:g}")
    norms.legend(frameon=False, fontsize=8)
    dressed(clients, "devices' own examples\n(simulation only)", "steps released", "accuracy (share recognised)")
    _clients(clients, table)
    for axes in (loss, norms, clients):
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * (1.3 if axes is norms else 1))  # room for its legend
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.title.set_fontsize(10)


def _clients(axes: Axes, table: Mapping[str, NDArray[np.float64]]) -> None:
    known = ~np.isnan(table["simulation_only.client_accuracy_mean"])
    axes.set_ylim(0, 1)
    if not known.any():
        axes.annotate("not measured\n(record.clients = 0)", (0.5, 0.5), xycoords="axes fraction", ha="center", color=GREY)
        return
    low, high = (table[f"simulation_only.client_accuracy_{end}_tenth"][known] for end in ("lowest", "highest"))
    axes.fill_between(table["step"][known], low, high, color="#C9E0EF", linewidth=0, label="four in five")
    axes.plot(
        table["step"][known], table["simulation_only.client_accuracy_mean"][known], linewidth=1.6, label="mean", **_style(0)
    )
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def comparison(curves: Sequence[Curve], title: str, x: str, note: str = "") -> dict[str, bytes]:
    """One line a study; where it has several seeds, their mean, and a band from the least to the largest."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        dressed(axes, title, x, "accuracy (share recognised)")
        for place, curve in enumerate(curves):
            look = {"marker": MARKERS[place % len(MARKERS)], "markersize": 4, **_style(place)}
            seeds = np.array(curve.accuracy)
            label = curve.name if len(seeds) == 1 else f"{curve.name} ({len(seeds)} seeds: mean, least to largest)"
            few = max(1, curve.price.size // 12)
            axes.plot(curve.price, seeds.mean(axis=0), linewidth=2, label=label, markevery=few, **look)
            if len(seeds) > 1:
                axes.fill_between(curve.price, seeds.min(axis=0), seeds.max(axis=0), color=look["color"], alpha=0.2, linewidth=0)
        axes.set_ylim(0, 1)
        axes.set_xlim(left=0)
        axes.legend(frameon=False, fontsize=9, loc="lower right")
        if note:
            figure.supxlabel(textwrap.fill(note, 118), fontsize=8, color=GREY)

    return drawn((7.2, 4.8), draw)


def _style(place: int) -> dict[str, Any]:
    for count, style in enumerate(styles()):
        if count == place:
            return style
    raise AssertionError


def sweep(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Accuracy against each value that was swept, a dot for each point; a line through the means of equal values."""
    keys = [key for key in rows[0] if key.startswith("set.")]

    def draw(figure: Figure) -> None:
        figure.suptitle(f"{name}: accuracy of {len(rows)} points")
        panels = np.atleast_1d(figure.subplots(1, len(keys), sharey=True))
        for place, (axes, key) in enumerate(zip(panels, keys, strict=True)):
            dressed(axes, "", key.removeprefix("set."), "accuracy (share recognised)" if not place else "")
            _swept(axes, [row[key] for row in rows], np.array([row["accuracy"] for row in rows]))
        figure.supxlabel(f"on {rows[0]['measured_on']}", fontsize=8, color=GREY)

    return drawn((max(6.0, 3.6 * len(keys)), 4.5), draw)


def _swept(axes: Axes, values: Sequence[Any], accuracy: NDArray[np.float64]) -> None:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    different = sorted(set(values)) if numbers else list(dict.fromkeys(map(str, values)))
    places = np.array([value if numbers else different.index(str(value)) for value in values], dtype=float)
    axes.plot(places, accuracy, "o", color=_style(0)["color"], alpha=0.6, markersize=5)
    each = np.unique(places)
    if each.size < places.size:
        look = {**_style(1), **({} if numbers else {"linestyle": "", "marker": "_", "markersize": 40})}
        axes.plot(each, [accuracy[places == place].mean() for place in each], linewidth=1.6, label="mean", **look)
        axes.legend(frameon=False, loc="lower right")
    if numbers and each[0] > 0 and each[-1] >= 20 * each[0]:
        axes.set_xscale("log")
    elif not numbers:
        axes.set_xticks(range(len(different)), different)
        axes.set_xlim(-0.5, len(different) - 0.5)
    axes.set_ylim(0, 1)


def ways(walk: Walk, three: Sequence[Way], means: Mapping[str, float]) -> dict[str, bytes]:
    """Each noisy way beside the true one, on the same scale, with everything that makes them comparable."""

    def draw(figure: Figure) -> None:
        true, *noisy = three
        figure.suptitle(f"The path of the weights at equal privacy: rho = {walk.rho:g} (zCDP, one device), {walk.steps} steps")
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        for place, (axes, way) in enumerate(zip(panels, noisy, strict=True), 1):
            title = f"{way.name}: {way.away(true):.2f} away from the true path\n(mean over seeds: {means[way.name]:.2f})"
            dressed(axes, title, "first weight", "second weight" if place == 1 else "")
            look = {**_style(3 - place), "linestyle": "-"}
            axes.plot(*way.weights.T, linewidth=1.2, label=f"{way.name}, noise multiplier {way.noise_multiplier:.3g}", **look)
            axes.plot(*true.weights.T, linewidth=2.2, color="#000000", label="no noise")
            axes.plot(*true.weights[0], "o", color="#000000", markersize=6)
            axes.plot(*way.weights[-1], "X", color=look["color"], markersize=9, markeredgecolor="white")
            axes.plot(*true.weights[-1], "X", color="#000000", markersize=9, markeredgecolor="white")
            axes.legend(frameon=False, fontsize=9, loc="upper left")
        figure.supxlabel(
            f"A quadratic in two dimensions; {walk.cohort} devices a step, each at most once, zero-out neighbours, clip norm "
            f"{walk.clip_norm:g}; no amplification by sampling.\nThe product's mechanisms, with noise from seed {walk.seed}. "
            "Dot: start, cross: end. Distance: root mean square over the steps.",
            fontsize=8,
            color=GREY,
        )

    return drawn((9.6, 5.0), draw)
