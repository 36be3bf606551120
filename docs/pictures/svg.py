"""A small SVG writer: shapes and words on a card of its own, so that a picture reads the same on a light and on a dark page.

Every number is written with one decimal, so equal input gives equal bytes on every machine. Colours are those of Okabe & Ito,
which people with any kind of colour vision tell apart; nothing is said by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

INK, GREY, PALE, CARD, EDGE = "#1b1b1b", "#555555", "#ececE6".lower(), "#fcfcfa", "#b9b9b2"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#00795a", "#8f4d77"
WIDTH = 560
Point = tuple[float, float]


def number(value: float) -> str:
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


class Picture:
    """Shapes in the order they are drawn; `text()` is the file."""

    def __init__(self, height: int, title: str) -> None:
        self._height, self._title = height, title
        self._parts: list[str] = []

    def add(self, tag: str, inside: str = "", **attributes: float | str) -> None:
        named = ((name.replace("_", "-"), value) for name, value in attributes.items())
        said = "".join(f' {name}="{value if isinstance(value, str) else number(value)}"' for name, value in named)
        self._parts.append(f"<{tag}{said}>{inside}</{tag}>" if inside else f"<{tag}{said}/>")

    def box(self, at: Point, size: Point, fill: str = CARD, edge: str = INK, dashed: bool = False) -> None:
        dash = {"stroke_dasharray": "6 4"} if dashed else {}
        where: dict[str, float | str] = {"x": at[0], "y": at[1], "width": size[0], "height": size[1], "rx": 8}
        self.add("rect", **where, fill=fill, stroke=edge, stroke_width=1.5, **dash)

    def words(self, at: Point, *lines: str, size: int = 15, fill: str = INK, anchor: str = "middle", bold: bool = False) -> None:
        """Lines below one another; `at` is the baseline of the first."""
        weight: dict[str, float | str] = {"font_weight": "bold"} if bold else {}
        for place, line in enumerate(lines):
            y = at[1] + place * size * 1.3
            self.add("text", escape(line), x=at[0], y=y, font_size=size, fill=fill, text_anchor=anchor, **weight)

    def line(self, *points: Point, stroke: str = INK, width: float = 1.5, dashed: bool = False, arrow: bool = False) -> None:
        more: dict[str, float | str] = {"stroke_dasharray": "6 4"} if dashed else {}
        joined = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self.add("polyline", points=joined, fill="none", stroke=stroke, stroke_width=width, **more)
        if arrow:
            self._head(points[-2], points[-1], stroke)

    def _head(self, start: Point, end: Point, fill: str) -> None:
        x, y = end[0] - start[0], end[1] - start[1]
        length = (x * x + y * y) ** 0.5 or 1.0
        x, y = x / length, y / length
        corners = (end, (end[0] - 10 * x - 5 * y, end[1] - 10 * y + 5 * x), (end[0] - 10 * x + 5 * y, end[1] - 10 * y - 5 * x))
        self.add("polygon", points=" ".join(f"{number(a)},{number(b)}" for a, b in corners), fill=fill)

    def dot(self, at: Point, radius: float, fill: str, edge: str = "none") -> None:
        self.add("circle", cx=at[0], cy=at[1], r=radius, fill=fill, stroke=edge, stroke_width=1.5)

    def area(self, points: Sequence[Point], fill: str, opacity: float = 0.25) -> None:
        joined = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self.add("polygon", points=joined, fill=fill, fill_opacity=f"{opacity:g}")

    def text(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self._height}" width="{WIDTH}" '
            f'height="{self._height}" role="img" font-family="Helvetica, Arial, sans-serif">'
        )
        card = f'<rect x="1" y="1" width="{WIDTH - 2}" height="{self._height - 2}" rx="10" fill="{CARD}" stroke="{EDGE}"/>'
        return "\n".join([head, f"<title>{escape(self._title)}</title>", card, *self._parts, "</svg>", ""])
