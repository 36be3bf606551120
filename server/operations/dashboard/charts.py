"""The charts of a run, drawn by matplotlib as SVG that stands in the page and takes the page's colours, in light and in dark.

matplotlib, which the accountant's plots use, places ticks, dates and labels better than anything of our own would; pygal, the
alternative, brings scripts and styles of its own into the page, which the page's policy forbids. Its import takes a second and
some memory, so it waits until somebody looks.

matplotlib writes colours and fonts as inline styles, which the policy forbids as well: here they become attributes, and each
colour a variable of the style sheet.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedrho.privacy.statement import round_up

SVG: Final = "http://www.w3.org/2000/svg"
INK, GRID, LINE, AHEAD, LIMIT = "#010203", "#010204", "#010205", "#010206", "#010207"
COLOURS: Final = {INK: "var(--muted)", GRID: "var(--grid)", LINE: "var(--line)", AHEAD: "var(--ahead)", LIMIT: "var(--limit)"}
"""Colours that only stand for those of the style sheet."""
FAMILY: Final = "var(--sans)"
SIZE: Final = (4.4, 2.6)
"""Inches of 72 units: about as wide as a phone, so that its letters stay readable there."""
ROOM: Final = (0.0, 0.0, 1.0, 0.9)
"""What axes and their labels have of it; the legend stands above."""
KEPT: Final = (
    "fill",
    "stroke",
    "stroke-width",
    "stroke-dasharray",
    "stroke-linecap",
    "stroke-linejoin",
    "text-anchor",
    "opacity",
)

Point = tuple[float, float]


def spent(name: str, past: Sequence[Point], ahead: Sequence[Point], budget: float) -> str:
    """rho against time in seconds since 1970: what was charged, what is to come, and the limit."""
    title = f"rho spent by {name}, against its budget"
    (began, _), (at, rho) = past[0], past[-1]
    text = f"A line that rises in steps from {_day(began)}, to rho {round_up(rho)} of {budget:g} at {_day(at)}."
    if ahead:
        text += f" A dashed line goes on to rho {round_up(ahead[-1][1])} at {_day(ahead[-1][0])}."
    with _drawn(f"spent-{name}", title, text) as (axes, done):
        axes.plot(*_dated(past), color=LINE, linewidth=2, drawstyle="steps-post", label="charged")
        if ahead:
            axes.plot(
                *_dated(ahead), color=AHEAD, linewidth=1.8, drawstyle="steps-post", linestyle=(0, (4, 2.5)), label="to come"
            )
        axes.axhline(budget, color=LIMIT, linewidth=1.2, linestyle=(0, (1, 1.5)), label="budget")
        axes.set_ylim(0, budget * 1.12)
        axes.set_ylabel("rho")
        locator = AutoDateLocator(minticks=3, maxticks=6)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))  # type: ignore[no-untyped-call]
        axes.set_xlabel("time (UTC)")
        _legend(axes)
    return done[0]


def durations(name: str, steps: Sequence[int], seconds: Sequence[float], median: float) -> str:
    """How long each step took, from the opening of the attempt that was released to its release."""
    title = f"How long each step of {name} took"
    text = f"Steps {steps[0]} to {steps[-1]}; the latest took {seconds[-1]:.3g} seconds, half of them at most {median:.3g}."
    with _drawn(f"durations-{name}", title, text) as (axes, done):
        axes.plot(steps, seconds, color=LINE, linewidth=0, marker="o", markersize=4 if len(steps) < 60 else 2.2, label="a step")
        axes.axhline(median, color=AHEAD, linewidth=1.4, linestyle=(0, (4, 2.5)), label="median")
        _from_zero_or_log(axes, seconds, median)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.set_xlabel("step")
        axes.set_ylabel("seconds")
        _legend(axes)
    return done[0]


# -- how they look ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _drawn(name: str, title: str, text: str) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw into; the SVG is in the list afterwards. Only one thread may draw: matplotlib's settings are global."""
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 10,
        "axes.edgecolor": GRID,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "timezone": "UTC",
    }
    done: list[str] = []
    with mpl.rc_context(settings):
        figure = Figure(figsize=SIZE, layout=ConstrainedLayoutEngine(rect=ROOM))
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, pad=6)
        yield axes, done
        buffer = io.StringIO()
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=unsaid)  # type: ignore[no-untyped-call]
    done.append(_in_page(buffer.getvalue(), name, title, text))


def _legend(axes: Axes) -> None:
    """Above the axes, where no line is."""
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "ncols": 3, "frameon": False}
    legend = axes.legend(**place, fontsize=9, handlelength=2.2, columnspacing=1.2)
    legend.set_in_layout(False)  # or the axes would become narrower for it; ROOM is its own


def _from_zero_or_log(axes: Axes, seconds: Sequence[float], median: float) -> None:
    """One step that took far longer than the others must not hide them."""
    least, most = min(seconds), max(seconds)
    if least > 0 and most > 20 * median:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(0, max(most, median) * 1.15 or 1.0)


def _dated(points: Sequence[Point]) -> tuple[Any, Any]:
    """Dates, which matplotlib takes and its types do not know; and values."""
    return [datetime.fromtimestamp(at, UTC) for at, _ in points], [value for _, value in points]


def _day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"


# -- from matplotlib's SVG to the page's -----------------------------------------------------------------------------------------


def _in_page(text: str, name: str, title: str, description: str) -> str:
    """Without styles, sizes and metadata; with a title and a description for those who do not see it."""
    ET.register_namespace("", SVG)
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ET.fromstring(text)
    named = set(re.findall(r"#([\w-]+)", text))  # other identities would be the same in every chart of a page
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        _restyle(element)
        if element.get("id", "") not in named:
            element.attrib.pop("id", None)
    for side in ("width", "height"):
        root.attrib.pop(side, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-text")
    for place, (tag, part, words) in enumerate((("title", "title", title), ("desc", "text", description))):
        child = ET.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{part}"})
        child.text = words
        root.insert(place, child)
    return ET.tostring(root, encoding="unicode")


def _restyle(element: ET.Element) -> None:
    """Styles become attributes, colours variables."""
    for key, value in _styles(element.attrib.pop("style", "")):
        size = re.search(r"([\d.]+)px", value) if key in ("font", "font-size") else None
        if size:
            element.set("font-size", size[1])
            element.set("font-family", FAMILY)
        elif key in KEPT:
            element.set(key, COLOURS.get(value, value))


def _styles(text: str) -> Iterator[tuple[str, Any]]:
    for part in text.split(";"):
        key, colon, value = part.partition(":")
        if colon:
            yield key.strip(), value.strip()
