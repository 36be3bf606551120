"""Pictures of what the accountant says: axes with units, colours that the colour-blind can tell apart, lines told by shape too.

The colours are those of Okabe & Ito (2008). Every picture is a file; the ending of its name chooses PNG, SVG or PDF.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from fedrho.console import BadInput
from fedrho.privacy.auditing.limits import largest_separation
from fedrho.privacy.statement import round_up
from fedrho.privacy.zcdp import Rho, epsilon, gaussian_epsilon, simple_epsilon

STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "linestyle": "-"},
    {"color": "#D55E00", "linestyle": "--"},
    {"color": "#009E73", "linestyle": "-."},
    {"color": "#CC79A7", "linestyle": ":"},
    {"color": "#000000", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
)
GREY = "#595959"
FEW_POINTS = 12
"""Of one line: each gets a marker."""


def spent(path: Path, rounds: Sequence[int], rho: Sequence[float], mechanism: str) -> None:
    """rho after each round."""
    with picture(path, f"Privacy spent, {mechanism}", "rounds released", "rho (zCDP, one device)") as axes:
        look = {"linewidth": 2, **_seen(len(rounds)), **STYLES[0]}
        axes.step(rounds, rho, where="pre", **look)  # never below what a round between two of these costs
        _from_zero(axes)
        _note_end(axes, rounds[-1], rho[-1], f"rho {round_up(rho[-1])}")


def spent_by_run(path: Path, runs: Sequence[tuple[str, Sequence[float]]], budget: float | None) -> None:
    """rho after each round of each run; of several, their sum, which is what the budget is about."""
    with picture(path, "Privacy spent, from the stores", "rounds released", "rho (zCDP, one device)") as axes:
        for (name, rho), style in zip(runs, styles(), strict=False):
            axes.step(range(len(rho)), rho, where="post", linewidth=2, label=name, **_seen(len(rho)), **style)
        if len(runs) > 1:
            total = math.fsum(rho[-1] for _, rho in runs if rho)
            axes.axhline(total, color=GREY, linewidth=1.6, linestyle=(0, (1, 1)), label=f"sum rho {round_up(total)}")
        if budget is not None:
            axes.axhline(budget, color=GREY, linewidth=1)
            axes.annotate(f"budget {budget:g}", (0, budget), (4, 4), textcoords="offset points", color=GREY)
        _from_zero(axes)
        axes.legend(frameon=False)


def needed(path: Path, rho: float, sensitivity_squared: float, mechanism: str) -> None:
    """The noise multiplier that each budget around `rho` needs."""
    budgets = np.geomspace(rho / 10, rho * 10, 200)
    with picture(path, f"Noise that a budget needs, {mechanism}", "rho (zCDP, one device)", "noise multiplier") as axes:
        axes.loglog(budgets, np.sqrt(sensitivity_squared / 2 / budgets), linewidth=2, **STYLES[0])
        multiplier = (sensitivity_squared / 2 / rho) ** 0.5
        axes.plot([rho], [multiplier], "o", color=STYLES[0]["color"])
        axes.annotate(f"rho {rho:.3g}: {round_up(multiplier)}", (rho, multiplier), (8, 6), textcoords="offset points")
        _plain_numbers(axes)


def errors(path: Path, noise: Mapping[str, NDArray[np.float64]], rho: float) -> None:
    """Standard deviation of the noise in the sum of the first t rounds, by mechanism, at one budget."""
    title = f"Noise of the running sum at rho = {rho:g}"
    with picture(path, title, "round", "standard deviation (clip norms)") as axes:
        for (name, values), style in zip(noise.items(), styles(), strict=False):
            look = {"linewidth": 0.8 if name == "tree" else 2, **_seen(values.size), **style}
            axes.plot(np.arange(1, values.size + 1), values, label=name, **look)
        axes.set_yscale("log")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain_numbers(axes, x=False)
        axes.legend(frameon=False)


def conversions(path: Path, rho: Rho, delta: float) -> None:
    """epsilon against delta, by the three conversions."""
    deltas = np.geomspace(min(1e-12, delta), max(1e-3, delta), 60)
    kinds = {"simple": simple_epsilon, "optimal RDP": epsilon, "exact Gaussian": gaussian_epsilon}
    with picture(path, f"What rho = {rho:g} means", "delta", "epsilon (one device)") as axes:
        for (name, conversion), style in zip(kinds.items(), styles(), strict=False):
            axes.plot(deltas, [conversion(rho, value) for value in deltas], linewidth=2, label=name, **style)
        axes.axvline(delta, color=GREY, linewidth=1)
        axes.annotate(f"delta {delta:g}", (delta, 0), (4, 4), textcoords="offset points", color=GREY)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)


def attacker(path: Path, rho: Rho, points: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None) -> None:
    """The largest true positive rate at each false positive rate that `rho` allows, and what an attack reached."""
    false = np.linspace(0, 1, 400)
    with np.errstate(all="ignore"):
        true = ndtr(ndtri(false) + largest_separation(rho))
    title = f"What rho = {round_up(rho)} allows an attacker"
    with picture(path, title, "false positives (share)", "true positives (share)") as axes:
        axes.fill_between(false, true, 1, color="#E5E5E5", linewidth=0)
        axes.plot(false, true, linewidth=2, label="best possible attack", **STYLES[0])
        axes.plot(false, false, linewidth=1, label="guessing", color=GREY, linestyle=":")
        if points is not None:
            axes.plot(*points, linewidth=1.6, label="attack in this audit", **STYLES[1])
        axes.annotate("excluded by the claim", (0.03, 0.96), va="top", color=GREY)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.legend(frameon=False, loc="lower right")


def audited(path: Path, rows: Sequence[tuple[str, float, float, float, float]], rho: float) -> None:
    """Each attack's result with its interval, as a share of what the claim allows."""
    title = f"Attacks on a claim of rho = {round_up(rho)}"
    with picture(path, title, "measured / largest that the claim allows", "") as axes:
        for place, (_, low, estimate, high, limit) in enumerate(rows):
            axes.plot([low / limit, high / limit], [place, place], linewidth=2, **STYLES[0])
            axes.plot([estimate / limit], [place], "o", color=STYLES[0]["color"])
        end = max(1.5, *(1.1 * high / limit for *_, high, limit in rows))
        axes.axvspan(1, end, color="#EFEFEF", linewidth=0)
        axes.annotate("beyond the claim", (1, len(rows) - 0.3), (6, 0), textcoords="offset points", va="top")
        axes.set_yticks(range(len(rows)), [f"{name}\nat most {limit:.3g}" for name, *_, limit in rows])
        axes.set(xlim=(0, end), ylim=(-0.6, len(rows) - 0.2))


@contextmanager
def picture(path: Path, title: str, x: str, y: str) -> Iterator[Axes]:
    """One figure, saved under `path`; raises BadInput where it cannot be written."""
    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    dressed(axes, title, x, y)
    yield axes
    try:
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise BadInput(f"--plot: {path} cannot be written ({error.strerror})") from error


def dressed(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def styles() -> Iterator[dict[str, Any]]:
    while True:
        yield from STYLES


def _seen(points: int) -> dict[str, Any]:
    """Markers where there are so few points that a line alone could not be seen."""
    return {"marker": "o", "markersize": 4} if points <= FEW_POINTS else {}


def _from_zero(axes: Axes) -> None:
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # rounds


def _note_end(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), (-6, -14), textcoords="offset points", ha="right")


def _plain_numbers(axes: Axes, x: bool = True) -> None:
    """0.1, 0.2 and 0.5 instead of powers of ten."""
    for axis in (axes.xaxis, axes.yaxis) if x else (axes.yaxis,):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
