"""A ready task three ways: as its study says, with DP-FedAvg at the same rho, and without privacy; the table of docs/tasks.md.

    python benchmarks/tasks.py NAME [--seeds 3] [--output FOLDER] [--set KEY=VALUE]

NAME is a study of examples/studies. Each way differs in its algorithm alone: the same model, cohort, steps, learning rates and
participation. Seeds go from 1 on: with seed 0 the settings were chosen. Differences are paired by seed. Intervals are Student's t
over the seeds, 95 %; seeds change who comes and all noise, and the weights at the start where the study has none of its own.
Prints Markdown and draws accuracy against steps; what is finished in FOLDER is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from fedrho.privacy.statement import round_up
from fedrho.simulations.opening import beginning, opened
from fedrho.simulations.study import make_study, read_values
from fedrho.simulations.toml_text import toml_text
from fedrho.simulations.training import Measuring

STUDIES = Path(__file__).parents[1] / "examples" / "studies"
WAYS = ("dp-ftrl", "dp-fedavg", "fedavg")
STRATEGY = ("mechanism", "coefficients", "decay", "scale", "restarts", "completed")
LEVEL = 0.95


def ways(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The study's values, and what of them another algorithm takes."""
    found = {way: deepcopy(dict(values)) for way in WAYS}
    for way, one in found.items():
        one["task"]["algorithm"] = way
    for key in STRATEGY:
        found["dp-fedavg"]["task"]["privacy"].pop(key, None)
    found["fedavg"]["task"]["privacy"] = "none"
    return found


def run(values: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """The summary of a finished study, run in a process of its own."""
    if not (folder / "summary.json").exists():
        study = folder.with_suffix(".toml")
        study.parent.mkdir(parents=True, exist_ok=True)
        study.write_text(toml_text({**values, "seed": seed}) + "\n", encoding="utf-8")
        place = ["--resume", str(folder)] if (folder / "study.toml").exists() else [str(study), "--output", str(folder)]
        subprocess.run([sys.executable, "-m", "fedrho", "simulate", "run", *place, "--quiet"], check=True)
    found: dict[str, Any] = json.loads((folder / "summary.json").read_bytes())
    return found


def interval(numbers: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its interval; NaN for one number."""
    if len(numbers) < 2:
        return float(np.mean(numbers)), math.nan
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, len(numbers) - 1) * np.std(numbers, ddof=1) / math.sqrt(len(numbers))
    return float(np.mean(numbers)), float(half)


def shown(numbers: Sequence[float], sign: str = "") -> str:
    mean, half = interval(numbers)
    return f"{mean:{sign}.4f}" if math.isnan(half) else f"{mean:{sign}.4f} ± {half:.4f}"


def table(found: Mapping[str, Sequence[Mapping[str, Any]]], values: Mapping[str, Any]) -> list[str]:
    """In Markdown."""
    task = values["task"]
    lines = [
        "| run | cohort | rounds | rho | epsilon | accuracy | minus no privacy |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, ends in found.items():
        deployed = ends[0]["if_deployed"]
        rho = "no guarantee" if deployed is None else round_up(deployed["rho"])
        epsilon = "no guarantee" if deployed is None else f"{round_up(deployed['epsilon'])} at delta = {deployed['delta']:g}"
        accuracy = [one["accuracy"] for one in ends]
        apart = "" if way == "fedavg" else shown(differences(found[way], found["fedavg"]), "+")
        cells = (way, task["round"]["goal"], task["steps"], rho, epsilon, shown(accuracy), apart)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def differences(these: Sequence[Mapping[str, Any]], those: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of accuracies, seed by seed."""
    return [one["accuracy"] - other["accuracy"] for one, other in zip(these, those, strict=True)]


def at_the_start(values: Mapping[str, Any]) -> float:
    """The accuracy of the weights that the study begins with."""
    study, dataset = make_study(values, "study", Path.cwd())
    with opened(study, dataset, "serial", 1) as (_, model):
        right, counted, _ = Measuring(model)(beginning(study, model), dataset.held_out)
    return right / counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="next-word, handwriting, census or shakespeare")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 1 on")
    parser.add_argument("--output", type=Path, default=None, help="folder for the runs; NAME-runs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value for the study")
    given = parser.parse_args()
    output = given.output or Path(f"{given.name}-runs")
    values = read_values(STUDIES / f"{given.name}.toml", given.set)
    if "start" in values["task"]:
        values["task"]["start"] = str(Path(values["task"]["start"]).resolve())
    seeds = range(1, given.seeds + 1)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for seed in seeds:
        for way, one in ways(values).items():
            found[way].append(run(one, seed, output / f"{way}-{seed}"))
    print("\n".join(table(found, values)))
    print(f"\ndp-ftrl minus dp-fedavg, paired by seed: {shown(differences(found['dp-ftrl'], found['dp-fedavg']), '+')}")
    print(f"{given.seeds} seeds, from 1 on; intervals: t, {LEVEL:.0%}. Accuracy on {found['fedavg'][0]['measured_on']}.")
    if "start" in values["task"]:
        print(f"The weights that all begin with, on the same: {at_the_start(values):.4f}.")
    picture = output / f"{given.name}.svg"
    folders = [str(output / f"{way}-{seed}") for way in WAYS for seed in seeds]
    compare = [sys.executable, "-m", "fedrho", "simulate", "compare", *folders, "--by", "steps", "--plot", str(picture), "--json"]
    subprocess.run(compare, check=True, stdout=subprocess.DEVNULL)
    print(f"picture: {picture}")


if __name__ == "__main__":
    main()
