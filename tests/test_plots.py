"""Pictures that can be read: real files, labels on the axes, lines that differ without colour."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from fedrho import drawing, plots
from fedrho.account import VISIBLE, _prices
from fedrho.console import BadInput
from fedrho.picture_files import check_picture
from fedrho.privacy.blt import BufferedToeplitz
from fedrho.privacy.participation import Participation
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import Grid
from fedrho.privacy.zcdp import Rho

NOISE = {name: np.linspace(1, count, 50) for count, name in enumerate(("tree", "independent", "banded", "blt"), 2)}
PLAN = plots.Plan("binary-tree", 7.0, 2000, Participation(6, 314), 79 / 98, 1e-10)
TOLD = (
    "2,000 rounds; a device takes part up to 6 times, at least 314 rounds apart",
    "noise multiplier 7: rho 0.8062, epsilon 8.899 at delta = 1e-10",
)
Draw = Callable[[Path], None]
PICTURES: dict[str, tuple[Draw, tuple[str, ...]]] = {
    "spent": (
        lambda path: plots.spent(path, [1, 5, 9], [0.1, 0.2, 0.31], PLAN),
        ("rounds released", "rho", "binary-tree", *TOLD),
    ),
    "spent by run": (
        lambda path: plots.spent_by_run(path, [("one", [0.0, 0.1, 0.2]), ("two", [0.0, 0.3])], 1.0),
        ("rounds released", "rho", "one", "two", "budget 1"),
    ),
    "spent in one round": (
        lambda path: plots.spent(path, [1], [0.1], replace(PLAN, rounds=1, participation=Participation.single())),
        ("rounds released", "rho 0.1", "1 round; a device takes part once at most"),
    ),
    "sum of runs": (
        lambda path: plots.spent_by_run(path, [("one (a)", [0.0, 0.1, 0.2]), ("two (b)", [0.0, 0.3])], 1.0),
        ("one (a)", "two (b)", "sum rho 0.5", "budget 1"),
    ),
    "audited": (
        lambda path: plots.audited(path, [("separation", 1.0, 1.1, 1.2, 1.5), ("AUC", 0.6, 0.7, 0.8, 0.9)], 1.0, 1e-6),
        ("beyond the claim", "separation", "AUC", "rho = 1", "at delta = 1e-06", "one device, zero-out"),
    ),
    "needed": (
        lambda path: plots.needed(path, replace(PLAN, noise_multiplier=6.983221, rho=0.81)),
        ("rho", "noise multiplier 6.98323: rho 0.81, epsilon 8.923 at delta = 1e-10", "rho 0.81: 6.98323", TOLD[0]),
    ),
    "errors": (
        lambda path: plots.errors(path, NOISE, 1.0, Participation(6, 314)),
        (
            *("round", "standard deviation (clip norms)", "one device, zero-out", *NOISE),
            "a device takes part up to 6 times, at least 314 rounds apart",
        ),
    ),
    "errors of devices that come once": (
        lambda path: plots.errors(path, NOISE, 1.0, Participation.single()),
        ("a device takes part once at most",),
    ),
    "errors of devices in turn": (
        lambda path: plots.errors(path, NOISE, 1.0, Participation.epochs(2, 50)),
        ("a device takes part up to 2 times, whole multiples of 50 rounds apart",),
    ),
    "conversions": (
        lambda path: plots.conversions(path, Rho(0.81), 1e-10),
        ("delta", "epsilon at delta (one device, zero-out)", "simple", "optimal RDP", "exact Gaussian", "delta 1e-10"),
    ),
    "attacker": (
        lambda path: plots.attacker(path, Rho(0.81)),
        ("false positives", "true positives", "best possible attack", "one device, zero-out"),
    ),
    "attacker with points": (
        lambda path: plots.attacker(path, Rho(0.81), (np.array([0.0, 1.0]), np.array([0.0, 1.0]))),
        ("false positives", "attack in this audit"),
    ),
}


@pytest.mark.parametrize(("draw", "texts"), PICTURES.values(), ids=PICTURES.keys())
def test_an_svg_has_its_size_and_every_label_as_text(draw: Draw, texts: tuple[str, ...], tmp_path: Path) -> None:
    with mpl.rc_context({"svg.fonttype": "none"}):
        draw(tmp_path / "it.svg")
    root = xml.etree.ElementTree.parse(tmp_path / "it.svg").getroot()
    assert (root.get("width"), root.get("height")) == ("504pt", "324pt")
    shown = " | ".join("".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text"))
    for text in texts:
        assert text in shown


@pytest.mark.slow
@pytest.mark.parametrize("draw", [draw for draw, _ in PICTURES.values()], ids=PICTURES.keys())
def test_a_png_is_one(draw: Draw, tmp_path: Path) -> None:
    from matplotlib.image import imread

    draw(tmp_path / "it.PNG")
    pixels = imread(tmp_path / "it.PNG")
    assert pixels.shape[:2] == (675, 1050)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 10


def test_the_same_picture_is_the_same_file(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        with mpl.rc_context({"svg.hashsalt": "fixed"}):
            plots.conversions(tmp_path / name, Rho(1.0), 1e-6)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_lines_differ_without_colour() -> None:
    """By their dashes; the colours' luminance alone would not do."""
    looks = [drawing.look(place) for place in range(35)]
    assert len({(style["color"], str(style["linestyle"])) for style in looks}) == 35
    for one, other in itertools.combinations(looks[:5], 2):
        assert one["linestyle"] != other["linestyle"]
        assert to_rgb(one["color"]) != to_rgb(other["color"])
    for style in looks:
        luminance = np.dot(to_rgb(style["color"]), (0.299, 0.587, 0.114))
        assert luminance < 0.7, "too pale on white"


@pytest.mark.parametrize(
    ("largest", "top"),
    [
        (0.0, 1),
        (0.004, 0.005),
        (0.11, 0.2),
        (0.19, 0.2),
        (0.2, 0.5),
        (0.45, 0.5),
        (0.49, 1),
        (0.6, 1),
        (1.0, 1),
        (float("nan"), 1),
    ],
)
def test_an_axis_of_accuracy_holds_the_data_and_begins_at_zero(largest: float, top: float) -> None:
    figure = Figure()
    axes = figure.add_subplot()
    axes.set_ylabel("accuracy")
    drawing.accuracy_axis(axes, [[0.0, largest], float("nan")])
    assert axes.get_ylim() == pytest.approx((0, top))
    assert ("axis ends at" in axes.get_ylabel()) == (top < 1)


def drawn_by(method: str, draw: Draw, path: Path) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What `draw` handed to this method of its axes."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    original = getattr(Axes, method)

    def noted(self: Axes, *arguments: Any, **others: Any) -> Any:
        calls.append((arguments, others))
        return original(self, *arguments, **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Axes, method, noted)
        draw(path)
    return calls


def test_what_is_drawn_as_spent_is_exact_where_rounds_follow_one_another_and_nowhere_below_the_truth(tmp_path: Path) -> None:
    """Between two rounds that were computed, the line is at the later one's price."""
    rounds, rho = [1, 11, 12, 20], [0.1, 0.2, 0.3, 0.4]
    (((x, y), style),) = drawn_by("step", lambda path: plots.spent(path, rounds, rho, PLAN), tmp_path / "it.svg")
    assert style["where"] == "post"
    assert (x, y) == ([1, 1, 12, 12, 20], [0.1, 0.2, 0.3, 0.4, 0.4])


@pytest.mark.parametrize("steps", [300, 2000])
def test_every_jump_of_the_staircase_stands_where_it_is(steps: int) -> None:
    tree = BinaryTree(Grid(1.0), 7.0)
    rounds, prices = _prices(tree, steps, PLAN.participation)
    truth = [float(tree.cost(count, PLAN.participation)) for count in range(1, steps + 1)]
    jumps = [later for later in range(2, steps + 1) if truth[later - 1] != truth[later - 2]]
    drawn = [(low, high) for (low, one), (high, other) in pairwise(zip(rounds, prices, strict=True)) if one != other]
    assert drawn == [(later - 1, later) for later in jumps]
    assert prices == [truth[count - 1] for count in rounds]
    assert len(rounds) < 400, "of 2,000 not every one was priced"


def test_what_rises_smoothly_is_not_priced_at_every_step() -> None:
    """Each of 2000 steps of BLT noise costs more than the one before."""
    blt = BufferedToeplitz(Grid(1.0), 7.0, (0.9, 0.99), (0.2, 0.1))
    rounds, prices = _prices(blt, 2000, PLAN.participation)
    assert len(rounds) < 500
    for (low, one), (high, other) in pairwise(zip(rounds, prices, strict=True)):
        assert high == low + 1 or other - one <= VISIBLE * prices[-1]


def test_markers_on_one_point_are_all_seen(tmp_path: Path) -> None:
    same = {name: np.ones(1) for name in NOISE}
    calls = drawn_by("plot", lambda path: plots.errors(path, same, 1.0, Participation.single()), tmp_path / "it.svg")
    sizes = [style["markersize"] for _, style in calls]
    assert len(sizes) == len(NOISE)
    assert all(later - earlier >= 3 for earlier, later in pairwise(sizes))
    assert {style["markerfacecolor"] for _, style in calls} == {"none"}


@pytest.mark.parametrize("name", ["it.txt", "it", "it.jpeg", ".png", ".."])
def test_other_endings_are_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--plot: .*nearest: .*\.svg"):
        check_picture(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_picture(tmp_path / "it.svg") == tmp_path / "it.svg"
    (tmp_path / "folder.svg").mkdir()
    for path, why in ((tmp_path / "no" / "it.svg", "there is no folder"), (tmp_path / "folder.svg", "it is a folder")):
        with pytest.raises(BadInput, match=f"--plot: .* cannot be written .*{why}"):
            check_picture(path)
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(BadInput, match="permission denied"):
        check_picture(tmp_path / "it.svg")


@pytest.mark.parametrize(("points", "marked"), [(1, True), (2, True), (200, False)])
def test_few_points_are_marked(points: int, marked: bool, tmp_path: Path) -> None:
    draws: tuple[Draw, Draw] = (
        lambda path: plots.errors(path, {"tree": np.linspace(1, 2, points)}, 1.0, Participation.single()),
        lambda path: plots.spent(path, list(range(points)), [0.1] * points, PLAN),
    )
    for draw in draws:
        markers = [style.get("marker") for _, style in drawn_by("plot", draw, tmp_path / "it.svg")]
        assert markers == ["o" if marked else None]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written"):
        plots.conversions(tmp_path / "no" / "it.svg", Rho(1.0), 1e-6)
