"""What answers of a second stage tell about labels, by the temperature of its prior: how many tell nothing, how much the rest.

`python benchmarks/temperatures.py [FOLDER]`: of runs of two stages in a folder of `fedrho labels train`, on a benchmark; without
one it trains digits at epsilon 1 and 2 first, in seconds. Nothing is drawn: matrices are exact, and labels are public.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.labels import settings
from fedrho.labels.data import LabelData, benchmark
from fedrho.labels.runs import DiskMemory, in_force
from fedrho.labels.training import cells, keras_learner
from fedrho.privacy.labels.priors import tempered
from fedrho.privacy.labels.randomizers import WithPrior
from fedrho.privacy.labels.stages import split

TEMPERATURES = (0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
CALIBRATING = np.geomspace(0.25, 4.0, 33)
RECORDS, CHUNK = 20_000, 2000
Rows = NDArray[np.float64]


def told(
    predicted: Rows, likely: Rows, labels: NDArray[np.int64], epsilon: float, temperature: float
) -> tuple[float, float, float]:
    """Share of answers that tell nothing; how often one is the true label; what one tells of it, in nats.

    The last is the mean of log(posterior / prior) of the true label, for whoever has `likely` for a prior.
    """
    alone = right = gained = 0.0
    for first in range(0, len(labels), CHUNK):
        chunk, true = slice(first, first + CHUNK), labels[first : first + CHUNK]
        priors, mechanism, rows = tempered(predicted[chunk], temperature), WithPrior(epsilon), np.arange(len(true))
        matrix = mechanism.matrix(priors)
        own, answers = matrix[rows, true], np.einsum("by,byo->bo", likely[chunk], matrix)
        alone += float((mechanism.sizes(priors) == 1).sum())
        right += float(own[rows, true].sum())
        gained += float((own * np.log(np.where(own > 0, own, 1.0) / np.where(own > 0, answers, 1.0))).sum())
    return alone / len(labels), right / len(labels), gained / len(labels)


def calibrated(predicted: Rows, labels: NDArray[np.int64]) -> Rows:
    """At the temperature that makes the true labels likeliest."""
    every = [tempered(predicted, temperature) for temperature in CALIBRATING]
    return max(every, key=lambda rows: float(np.log(np.maximum(rows[np.arange(len(labels)), labels], 1e-12)).mean()))


def second_stages(folder: Path) -> Iterator[tuple[str, float, float, Rows, NDArray[np.int64]]]:
    """Of each training: its name, epsilon and temperature, predictions for the second stage's records, and their labels."""
    experiment = settings.made(in_force(folder), str(folder))
    if experiment.dataset is None:
        raise SystemExit(f"{folder}: holds private labels; only those of a benchmark may be looked at")
    data: LabelData = benchmark(experiment.dataset, quiet=True, records=experiment.records)
    make = keras_learner(experiment, data, None)
    for cell in cells(experiment):
        trained = folder / "cells" / cell.name
        two = len(cell.run.stages) > 1 and cell.run.stages[1].prior == "model" and cell.epsilon is not None
        weights = DiskMemory(trained).recall_weights("stage-1") if two and trained.exists() else None
        if weights is None or cell.epsilon is None:
            continue
        shares = [stage.share for stage in cell.run.stages]
        part: NDArray[Any] = split(len(data.features), shares, experiment.split_seed)[1][:RECORDS]
        predicted = make(cell.run.stages[0].training or experiment.training).probabilities(weights, data.features[part])
        yield cell.name, cell.epsilon, cell.run.stages[1].temperature, predicted.astype(np.float64), data.labels[part]


def show(folder: Path) -> None:
    for name, epsilon, used, predicted, labels in second_stages(folder):
        likely = calibrated(predicted, labels)
        print(f"\n{name}: predictions of the first stage are right {(predicted.argmax(axis=1) == labels).mean():.1%} of the time")
        print("temperature  tell nothing  are the true label  tell of it, in nats")
        for temperature in TEMPERATURES:
            alone, right, gained = told(predicted, likely, labels, epsilon, temperature)
            mark = "  as trained" if temperature == used else ""
            print(f"{temperature:11g}  {alone:12.1%}  {right:18.1%}  {gained:19.4f}{mark}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        show(Path(sys.argv[1]))
    else:
        with TemporaryDirectory() as scratch:
            digits = Path(scratch, "digits")
            options = ["--dataset", "digits", "--method", "lp-2st", "--epsilon", "1", "--epsilon", "2", "--quiet", "--out"]
            subprocess.run([sys.executable, "-m", "fedrho", "labels", "train", *options, str(digits)], check=True)
            show(digits)
