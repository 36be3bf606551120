"""Pictures of numbers, all from the accountant: two worlds, the noise of running sums, and what an attacker can reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import ndtr, ndtri
from svg import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, WIDTH, Picture, Point

from fedrho.privacy.auditing.limits import largest_accuracy, largest_separation
from fedrho.privacy.banded import BandedToeplitz, optimal_bands
from fedrho.privacy.blt import BufferedToeplitz
from fedrho.privacy.blt_optimal import optimal_buffers
from fedrho.privacy.calibration import calibrated
from fedrho.privacy.independent import IndependentGaussian
from fedrho.privacy.mechanism import Mechanism
from fedrho.privacy.participation import Participation
from fedrho.privacy.statement import round_up
from fedrho.privacy.tree import BinaryTree
from fedrho.privacy.vectors import Grid
from fedrho.privacy.zcdp import Rho

STEPS, LIMITS, BUDGET = 512, Participation(max_times=4, min_separation=128), Rho(1.0)
LEFT, RIGHT, MIDDLE = 66, 24, WIDTH / 2
LABELS = {"independent": (190.0, 27.0), "tree": (300.0, 13.0), "BLT": (220.0, 3.2), "banded, dashed": (400.0, 3.2)}


def running_sums() -> str:
    """The noise in the sum of the first t steps, for four mechanisms of equal price."""
    picture = Picture(430, "Noise in the running sum over 512 steps, four mechanisms at equal rho")
    grid = Grid(1.0)
    mechanisms: Sequence[tuple[str, str, Mechanism[object]]] = (
        ("independent", ORANGE, IndependentGaussian(grid, 1.0)),
        ("tree", PURPLE, BinaryTree(grid, 1.0)),
        ("BLT", BLUE, BufferedToeplitz(grid, 1.0, *optimal_buffers(STEPS, LIMITS))),
        ("banded, dashed", GREEN, BandedToeplitz(grid, 1.0, optimal_bands(STEPS, LIMITS))),
    )
    top, bottom, low, high = 64, 350, 1.4, 40.0

    def place(step: float, stddev: float) -> Point:
        share = math.log(stddev / low) / math.log(high / low)
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - 1) / (STEPS - 1), bottom - (bottom - top) * share

    picture.words((20, 28), "noise of the sum of the first t steps, in clip norms", anchor="start", bold=True)
    picture.words((20, 48), "512 steps, a device at most 4 times, 128 apart; rho = 1", size=14, fill=GREY, anchor="start")
    for tick in (2, 5, 10, 20, 40):
        _level(picture, place(1, tick)[1], str(tick))
    for tick in (1, 128, 256, 384, 512):
        picture.words((min(place(tick, low)[0], 530), bottom + 20), str(tick), size=14)
    picture.words((MIDDLE, bottom + 42), "step t", size=14)
    for name, colour, bare in mechanisms:
        priced = calibrated(bare, STEPS, LIMITS, BUDGET)
        stddevs = priced.noise_multiplier * np.sqrt(priced.prefix_variances(STEPS))
        steps = sorted({*range(1, STEPS + 1, 1 if name == "tree" else 9), STEPS})
        picture.line(
            *(place(step, stddevs[step - 1]) for step in steps),
            stroke=colour,
            width=1 if name == "tree" else 2,
            dashed="dashed" in name,
        )
        picture.words(place(*LABELS[name]), name, fill=colour, bold=True)
    picture.words((MIDDLE, 414), "same price, same device protected: less of it stays in the model", size=14)
    return picture.text()


def _level(picture: Picture, y: float, name: str) -> None:
    picture.line((LEFT, y), (WIDTH - RIGHT, y), stroke="#dcdcd6", width=1)
    picture.words((LEFT - 8, y + 5), name, size=14, anchor="end")


def _bell(mean: float) -> Callable[[float], float]:
    return lambda x: math.exp(-((x - mean) ** 2) / 2)


def two_worlds() -> str:
    """What noise does: the published number in the world with a device's contribution and in the one without."""
    picture = Picture(400, "Two worlds, with and without one device: at small rho the two bells nearly coincide")
    for place, rho in enumerate((0.1, 2.0)):
        base, mean = 162 + 178 * place, largest_separation(Rho(rho))
        picture.words((20, base - 104), f"rho = {rho:g}", anchor="start", bold=True)
        right = f"best guess right at most {round_up(100 * largest_accuracy(Rho(rho)), 3)} % of the time"
        picture.words((540, base - 104), right, size=14, fill=GREY, anchor="end")
        picture.line((40, base), (520, base), stroke=GREY, width=1)
        for at, colour, name in ((0.0, BLUE, "without"), (mean, ORANGE, "with it")):
            xs = np.linspace(-3.5, 5.5, 91)
            curve = [(40 + 480 * (x + 3.5) / 9.0, base - 96 * _bell(at)(float(x))) for x in xs]
            picture.area([*curve, (520, base), (40, base)], colour, 0.18)
            picture.line(*curve, stroke=colour, width=2)
            side = -1 if colour == BLUE else 1
            x = 40 + 480 * (at + side * 1.25 + 3.5) / 9.0
            picture.words((x + side * 6, base - 40), name, size=14, fill=colour, anchor="end" if side < 0 else "start", bold=True)
        picture.words((MIDDLE, base + 20), "what is published, along the line that tells most", size=14, fill=GREY)
    picture.words((MIDDLE, 386), "Noise hides one device; it does not hide what all devices say.", size=14)
    return picture.text()


RHOS = ((0.1, GREEN), (0.5, BLUE), (1.0, PURPLE), (2.0, ORANGE))


def attacker() -> str:
    """The largest share of true alarms at every share of false ones: Phi(Phi^-1(false) + sqrt(2 rho))."""
    picture = Picture(520, "The most that any attacker can reach, for four values of rho")
    left, top, side = 76, 62, 360
    bottom = top + side
    picture.words((20, 28), "what any attacker can reach at most", anchor="start", bold=True)
    picture.words((20, 48), "each point: one way to decide who took part", size=14, fill=GREY, anchor="start")
    for tick in (0, 25, 50, 75, 100):
        x, y = left + side * tick / 100, bottom - side * tick / 100
        picture.line((left, y), (left + side, y), stroke="#dcdcd6", width=1)
        picture.line((x, top), (x, bottom), stroke="#dcdcd6", width=1)
        picture.words((left - 8, y + 5), f"{tick} %", size=14, anchor="end")
        picture.words((x, bottom + 20), f"{tick} %", size=14)
    picture.words((left + side / 2, bottom + 42), "false alarms: of those who stayed away", size=14)
    picture.words((left + side / 2, bottom + 64), "up: true alarms, of those who took part", size=14)
    picture.line((left, bottom), (left + side, top), stroke=GREY, dashed=True)
    false = np.concatenate([[0.0], np.geomspace(1e-4, 0.1, 25), np.linspace(0.12, 1.0, 45)])
    for rho, colour in RHOS:
        true = ndtr(ndtri(false) + largest_separation(Rho(rho)))
        picture.line(*((left + side * x, bottom - side * y) for x, y in zip(false, true, strict=True)), stroke=colour, width=2.5)
    for place, (rho, colour) in enumerate(reversed(RHOS)):
        y = top + 24 + 66 * place
        picture.line((448, y - 5), (466, y - 5), stroke=colour, width=3)
        picture.words((470, y), f"rho {rho:g}", fill=colour, anchor="start", bold=True)
        picture.words(
            (448, y + 20), f"right: {round_up(100 * largest_accuracy(Rho(rho)), 3)} %", size=14, fill=INK, anchor="start"
        )
    picture.line((448, top + 283), (466, top + 283), stroke=GREY, dashed=True)
    picture.words((470, top + 288), "guessing", size=14, fill=GREY, anchor="start")
    picture.words((448, top + 308), "right: 50 %", size=14, anchor="start")
    picture.words((MIDDLE, 508), "right: the share of right guesses, where half of all took part", size=14, fill=GREY)
    return picture.text()
