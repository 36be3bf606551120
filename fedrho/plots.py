"""Pictures of what the accountant says, each a file; the ending of its name chooses PNG, SVG or PDF. Style: `drawing.py`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from fedrho.console import BadInput, working
from fedrho.drawing import GREY, SETTINGS, UNDATED, dressed, legend_below, look, marked, plain_numbers
from fedrho.picture_files import kind_of
from fedrho.privacy.auditing.limits import largest_separation
from fedrho.privacy.participation import Participation
from fedrho.privacy.statement import round_up
from fedrho.privacy.zcdp import Rho, epsilon, gaussian_epsilon, simple_epsilon

PROMISE = "zCDP, one device, zero-out"
"""What the accountant's rho is about; an epsilon has its delta beside it, too."""


@dataclass(frozen=True)
class Plan:
    """What was priced, so that a picture can be read away from the command that drew it."""

    mechanism: str
    noise_multiplier: float
    rounds: int
    participation: Participation
    rho: float
    delta: float

    def __str__(self) -> str:
        """Two lines or three; figures are rounded as on the console, against us."""
        at_delta = f"epsilon {round_up(epsilon(Rho(self.rho), self.delta))} at delta = {self.delta:g}"
        parts = (
            f"{self.rounds:,} round{'s' if self.rounds > 1 else ''}; {limit(self.participation)}",
            f"noise multiplier {round_up(self.noise_multiplier, 6)}: rho {round_up(self.rho)}, {at_delta}",
        )
        return "\n".join(textwrap.fill(part, SUBTITLE) for part in parts)


SUBTITLE = 78
"""Characters of a line below a title, in letters that are smaller."""


def spent(path: Path, rounds: Sequence[int], rho: Sequence[float], plan: Plan) -> None:
    """rho after each of `rounds`: exact between two that follow one another, elsewhere never below the truth."""
    with picture(path, f"Privacy spent, {plan.mechanism}\n{plan}", "rounds released", f"rho ({PROMISE})") as axes:
        style = {"linewidth": 2, **marked(0, len(rounds)), **look(0)}
        rises = [rounds[0], *(later if later == earlier + 1 else earlier for earlier, later in pairwise(rounds))]
        axes.step([*rises, rounds[-1]], [*rho, rho[-1]], where="post", **style)
        _from_zero(axes)
        axes.set_ylim(top=1.1 * max(rho) or 1)  # room for what the end is called, above a line that never falls
        axes.annotate(f"rho {round_up(rho[-1])}", (rounds[-1], rho[-1]), (0, 6), textcoords="offset points", ha="right")


def spent_by_run(path: Path, runs: Sequence[tuple[str, Sequence[float]]], budget: float | None) -> None:
    """rho after each round of each run; of several, their sum, which is what the budget is about."""
    with picture(path, "Privacy spent, from the stores", "rounds released", f"rho ({PROMISE})") as axes:
        for place, (name, rho) in enumerate(runs):
            axes.step(range(len(rho)), rho, where="post", linewidth=2, label=name, **marked(place, len(rho)), **look(place))
        if len(runs) > 1:
            total = math.fsum(rho[-1] for _, rho in runs if rho)
            axes.axhline(total, color=GREY, linewidth=1.6, linestyle=(0, (1, 1)), label=f"sum rho {round_up(total)}")
        if budget is not None:
            axes.axhline(budget, color=GREY, linewidth=1)
            axes.annotate(f"budget {budget:g}", (0, budget), (4, 4), textcoords="offset points", color=GREY)
        _from_zero(axes)
        _named_below(axes)


def needed(path: Path, plan: Plan) -> None:
    """The noise multiplier that each budget around that of `plan` needs."""
    rho, multiplier = plan.rho, plan.noise_multiplier
    budgets = np.geomspace(rho / 10, rho * 10, 200)
    with picture(path, f"Noise that a budget needs, {plan.mechanism}\n{plan}", f"rho ({PROMISE})", "noise multiplier") as axes:
        axes.loglog(budgets, multiplier * np.sqrt(rho / budgets), linewidth=2, **look(0))
        axes.plot([rho], [multiplier], "o", color=look(0)["color"])
        label = f"rho {round_up(rho)}: {round_up(multiplier, 6)}"
        axes.annotate(label, (rho, multiplier), (8, 6), textcoords="offset points")
        plain_numbers(axes.xaxis, axes.yaxis)


def errors(path: Path, noise: Mapping[str, NDArray[np.float64]], rho: float, participation: Participation) -> None:
    """Standard deviation of the noise in the sum of the first t rounds, by mechanism, at one budget and with one limit."""
    title = f"Noise of the running sum at rho = {rho:g} ({PROMISE})\n{limit(participation)}"
    with picture(path, title, "round", "standard deviation (clip norms)") as axes:
        for place, (name, values) in enumerate(noise.items()):
            style = {"linewidth": 0.8 if name == "tree" else 2, **marked(place, values.size, 4 + 3 * place), **look(place)}
            if "marker" in style:  # hollow, each around those before: in round 1 all may be equal
                style |= {"markerfacecolor": "none", "markeredgewidth": 1.4}
            axes.plot(np.arange(1, values.size + 1), values, label=name, **style)
        axes.set_yscale("log")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        plain_numbers(axes.yaxis)
        _named_below(axes)


def limit(participation: Participation) -> str:
    """How often a device takes part at most: the more often, the more noise."""
    if participation.max_times == 1:
        return "a device takes part once at most"
    how = "whole multiples of" if participation.cyclic else "at least"
    times, apart = participation.max_times, participation.min_separation
    return f"a device takes part up to {times} times, {how} {apart} round{'s' if apart > 1 else ''} apart"


def conversions(path: Path, rho: Rho, delta: float) -> None:
    """epsilon against delta, by the three conversions."""
    deltas = np.geomspace(min(1e-12, delta), max(1e-3, delta), 60)
    kinds = {"simple": simple_epsilon, "optimal RDP": epsilon, "exact Gaussian": gaussian_epsilon}
    with picture(path, f"What rho = {rho:g} means ({PROMISE})", "delta", "epsilon at delta (one device, zero-out)") as axes:
        for place, (name, conversion) in enumerate(kinds.items()):
            axes.plot(deltas, [conversion(rho, value) for value in deltas], linewidth=2, label=name, **look(place))
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
    title = f"What rho = {round_up(rho)} allows an attacker ({PROMISE})"
    with picture(path, title, "false positives (share)", "true positives (share)") as axes:
        axes.fill_between(false, true, 1, color="#E5E5E5", linewidth=0)
        axes.plot(false, true, linewidth=2, label="best possible attack", **look(0))
        axes.plot(false, false, linewidth=1, label="guessing", color=GREY, linestyle=":")
        if points is not None:
            axes.plot(*points, linewidth=1.6, label="attack in this audit", **look(1))
        axes.annotate("excluded by the claim", (0.03, 0.96), va="top", color=GREY)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.legend(frameon=False, loc="lower right")


def audited(path: Path, rows: Sequence[tuple[str, float, float, float, float]], rho: float, delta: float) -> None:
    """Each attack's result with its interval, as a share of what the claim allows."""
    at_delta = f"epsilon = {round_up(epsilon(Rho(rho), delta))} at delta = {delta:g}"
    title = f"Attacks on a claim of rho = {round_up(rho)}, {at_delta}\n({PROMISE})"
    with picture(path, title, "measured / largest that the claim allows", "") as axes:
        for place, (_, low, estimate, high, limit) in enumerate(rows):
            axes.plot([low / limit, high / limit], [place, place], linewidth=2, **look(0))
            axes.plot([estimate / limit], [place], "o", color=look(0)["color"])
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
    if title.count("\n") > 1:
        axes.title.set_fontsize(10)
    yield axes
    try:
        with working("drawing the picture"), mpl.rc_context(SETTINGS):
            figure.savefig(path, metadata=UNDATED[kind_of(path)])
    except OSError as error:
        raise BadInput(f"--plot: {path} cannot be written ({error.strerror})") from error


def _from_zero(axes: Axes) -> None:
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # rounds


def _named_below(axes: Axes) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    legend_below(figure, *axes.get_legend_handles_labels())
