"""What all pictures have in common: colours that the colour-blind can tell apart, lines told by shape too, axes, legends, files.

The colours are those of Okabe & Ito (2008), but for their yellow, which is too pale on white. An axis of accuracy begins at 0
always, so no difference looks larger than it is; it ends at 1, or, where nothing is above a half, at 0.5, 0.2, 0.1, 0.05 and so
on, whatever is the least that holds the data, and then says so beside it.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
DASHES: Final[tuple[Any, ...]] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY: Final = "#595959"
PALE: Final = "#C9E0EF"
FEW_POINTS: Final = 12
"""Of one line: each gets a marker."""
SETTINGS: Final[Any] = {"svg.hashsalt": "fedrho", "svg.fonttype": "none"}
UNDATED: Final[dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""So that equal pictures are equal files."""
LONG_NAME: Final = 44
"""Characters, from which on the entries of a legend stand below one another."""
ROW: Final = 0.2
"""Inches of a row of a legend."""
NOTE_ROW: Final = 0.15


def look(place: int) -> dict[str, Any]:
    """Colour and dashes of the line at `place`; 35 differ."""
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place % len(DASHES)]}


def marked(place: int, points: int, size: float = 4) -> dict[str, Any]:
    """A marker of its own at each point where there are few, so that a line of one point is seen, too."""
    return {"marker": MARKERS[place % len(MARKERS)], "markersize": size} if points <= FEW_POINTS else {}


def dressed(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def accuracy_axis(axes: Axes, values: Iterable[Any]) -> None:
    """From 0 to where the rule at the head of this file says; `values` are all that is drawn, NaN among them."""
    top = accuracy_top(values)
    axes.set_ylim(0, top)
    parts = 4 if f"{top:.0e}".startswith("2") else 5
    axes.set_yticks([top * part / parts for part in range(parts + 1)], [f"{top * part / parts:g}" for part in range(parts + 1)])
    if top < 1 and axes.get_ylabel():
        axes.set_ylabel(f"{axes.get_ylabel()}\naxis ends at {top:g}, not at 1")


def accuracy_top(values: Iterable[Any]) -> float:
    arrays = [np.ravel(np.asarray(value, dtype=float)) for value in values]
    known = np.concatenate([*arrays, np.zeros(1)])
    largest = 1.05 * float(known[np.isfinite(known)].max())  # room for the marker
    tops = [digit * 10.0**-power for power in (3, 2, 1) for digit in (1, 2, 5)]
    return next((top for top in tops if 0 < largest <= top), 1.0)


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str] = (), note: str = "") -> None:
    """Under the axes, where it hides nothing, and under it `note` in small letters; the figure grows with both."""
    names = [textwrap.fill(str(name), 96) for name in labels or [handle.get_label() for handle in handles]]
    columns = 1 if max(map(len, names)) > LONG_NAME else min(2, len(names))
    rows = -(-sum(name.count("\n") + 1 for name in names) // columns)
    text = textwrap.fill(note, 118)
    lowest = NOTE_ROW * (text.count("\n") + 1.5) if note else 0.0
    free = lowest + ROW * rows + 0.12
    width, height = figure.get_size_inches()
    height += max(0.0, free - 0.6)
    figure.set_size_inches(width, height)
    figure.set_layout_engine("constrained", rect=(0.0, free / height, 1.0, 1.0 - free / height))
    place: Any = {"loc": "lower center", "bbox_to_anchor": (0.5, lowest / height)}
    figure.legend(handles, names, frameon=False, fontsize=9, ncols=columns, handlelength=3.2, borderpad=0.2, **place)
    figure.text(0.5, 0.05 / height, text, ha="center", va="bottom", fontsize=8, color=GREY)


def noted(figure: Figure, note: str, width: int = 118) -> None:
    """What the numbers are of, in small grey letters below; beside a legend that is there, too, this is `legend_below`'s."""
    figure.supxlabel(textwrap.fill(note, width), fontsize=8, color=GREY)


def plain_numbers(*axes: Any) -> None:
    """On logarithmic axes: 0.1, 0.2 and 0.5 instead of powers of ten."""
    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def drawn(size: tuple[float, float], draw: Callable[[Figure], None], kinds: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """What `draw` draws, by kind; bytes that depend on nothing else."""
    files = {}
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        for kind in kinds:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=UNDATED[kind])
            files[kind] = buffer.getvalue()
    return files
