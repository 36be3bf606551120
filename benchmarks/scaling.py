"""What the guarantee of a ready task becomes with more devices, at the noise that a small run has shown to be harmless.

    python benchmarks/scaling.py FOLDER... [--tolerance 0.001] [--most-cohort 20000] [--plot scaling.svg]

FOLDERs are finished runs of one study with several values of task.privacy.rho, one of them so large that its noise is nothing.
Measured in each: accuracy; the noise in the running sum of the means, per coordinate, in clip norms (root mean square over the
steps, e below); the norm of that noise beside the length of the path that the means take without noise.

With more devices the cohort grows and nothing else: steps T, clip norm and model stay, and so does e. For N devices

    cohort m = min(N m0 / N0, most)      separation b = N / m, at most T      participations k = ceil(T m / N)
    rho = (L(T, k, b) / (m e))^2 / 2

where L is the loss of the best banded strategy: the noise of a running sum at rho = 1/2, in clip norms (privacy/loss.py). Assumes
that clipped means do not get shorter as the population grows, that every device takes part at most k times and b steps apart,
which its own history enforces, and the server's trust of any run here. Zero-out, no amplification. delta = N**-1.1.
"""

from __future__ import annotations

import argparse
import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedrho.drawing import drawn, dressed, look, plain_numbers
from fedrho.picture_files import check_picture, kind_of
from fedrho.privacy.banded import BandedToeplitz, optimal_bands
from fedrho.privacy.loss import rmse_loss
from fedrho.privacy.participation import Participation
from fedrho.privacy.statement import round_up
from fedrho.privacy.vectors import Grid
from fedrho.privacy.zcdp import Rho, epsilon

POPULATIONS = (10_000, 100_000, 1_000_000, 10_000_000)
SILENT = 1e-3
"""Noise, in the measure e, that is as good as none."""


@dataclass(frozen=True)
class Small:
    """A finished run: `noise` is e, `norm` the L2 norm of that noise, `path` the summed norms of the means; both in weights."""

    values: dict[str, Any]
    rho: float
    accuracy: float
    noise: float
    norm: float
    path: float

    @staticmethod
    def of(folder: Path) -> Small:
        values = tomllib.loads((folder / "study.toml").read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        with np.load(folder / "weights.npz") as weights:
            size = sum(weights[name].size for name in weights.files if name != "privacy_statement")
        stddev = math.sqrt(np.mean([row["sum_stddev"] ** 2 for row in rows]))
        privacy = values["task"]["privacy"]
        path = math.fsum(row["mean_norm"] for row in rows)
        accuracy = json.loads((folder / "summary.json").read_bytes())["accuracy"]
        return Small(values, privacy["rho"], accuracy, stddev / privacy["clip_norm"], stddev * math.sqrt(size), path)


def harmless(found: Sequence[Small], tolerance: float) -> Small:
    """The noisiest whose accuracy is within `tolerance` of that of the quietest."""
    quiet = min(found, key=lambda one: one.noise)
    if quiet.noise > SILENT:
        raise SystemExit(f"the quietest run has noise of {quiet.noise:.3g} clip norms; add one with --set task.privacy.rho=1e6")
    return max((one for one in found if one.accuracy >= quiet.accuracy - tolerance), key=lambda one: one.noise)


@dataclass(frozen=True)
class Large:
    devices: int
    cohort: int
    participation: Participation
    rho: float

    @property
    def delta(self) -> float:
        return float(f"{self.devices**-1.1:.1e}")

    @property
    def epsilon(self) -> float:
        return epsilon(Rho(self.rho), self.delta)


def scaled(small: Small, devices: int, most_cohort: int) -> Large:
    """The same steps at the same noise."""
    task = small.values["task"]
    steps = task["steps"]
    cohort = min(devices * task["round"]["goal"] // task["population"], most_cohort)
    separation = max(1, min(devices // cohort, steps))
    participation = Participation(-(-steps * cohort // devices), separation)
    strategy = BandedToeplitz(Grid(1.0), 1.0, optimal_bands(steps, participation))
    loss = rmse_loss(strategy, steps, participation)
    return Large(devices, cohort, participation, (loss / (cohort * small.noise)) ** 2 / 2)


def tell(found: Sequence[Small], chosen: Small, rows: Sequence[Large], tolerance: float) -> None:
    task = chosen.values["task"]
    quiet = min(found, key=lambda one: one.noise)
    print(f"Measured with {task['population']:,} devices, {task['round']['goal']} a step, {task['steps']} steps:\n")
    print("| rho | e, clip norms | norm of the noise / path of the means | accuracy |\n|---|---|---|---|")
    for one in sorted(found, key=lambda one: one.rho):
        print(f"| {one.rho:g} | {one.noise:.2g} | {one.norm / quiet.path:.2g} | {one.accuracy:.4f} |")
    print(
        f"\nTaken: e = {chosen.noise:.3g}, the most within {tolerance:g} of the accuracy without noise ({quiet.accuracy:.4f}).\n"
    )
    print("| devices | cohort | times, separation | rho | epsilon | delta |\n|---|---|---|---|---|---|")
    for row in rows:
        limits = f"{row.participation.max_times}, {row.participation.min_separation}"
        cells = (f"{row.devices:,}", f"{row.cohort:,}", limits, round_up(row.rho), round_up(row.epsilon), f"{row.delta:g}")
        print(f"| {' | '.join(cells)} |")


def draw(rows: Sequence[Large], most: int, path: Path) -> None:
    def drawing(figure: Figure) -> None:
        axes = figure.add_subplot()
        dressed(axes, "The guarantee at equal noise in the model", "devices", "for one device, zero-out")
        devices = [row.devices for row in rows]
        axes.loglog(devices, [row.rho for row in rows], marker="o", linewidth=2, label="rho (zCDP)", **look(0))
        label = "epsilon at delta = devices^-1.1"
        axes.loglog(devices, [row.epsilon for row in rows], marker="s", linewidth=2, label=label, **look(1))
        plain_numbers(axes.yaxis)
        axes.legend(frameon=False, title=f"cohort grows with the devices, to {most:,} at most")

    path.write_bytes(drawn((7.2, 4.2), drawing, [kind_of(path)])[kind_of(path)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--tolerance", type=float, default=0.001, help="of accuracy, for noise that counts as harmless")
    parser.add_argument("--most-cohort", type=int, default=20_000, help="devices of a step, at most")
    parser.add_argument("--plot", type=Path, default=None, help="the picture, .png, .svg or .pdf")
    given = parser.parse_args()
    check_picture(given.plot)
    found = [Small.of(folder) for folder in given.folders]
    chosen = harmless(found, given.tolerance)
    rows = [scaled(chosen, devices, given.most_cohort) for devices in POPULATIONS]
    tell(found, chosen, rows, given.tolerance)
    if given.plot is not None:
        draw(rows, given.most_cohort, given.plot)
        print(f"\npicture: {given.plot}")


if __name__ == "__main__":
    main()
