"""How pure clusters of images are, by what is clustered, and how often an answer with their prior is the true label.

`python benchmarks/clusters.py [mnist|fashion-mnist]`: some minutes. Seeds are 0 but for a second start of k-means, 1, on what the
encoder makes; noise and answers come from the operating system, so shares of answers vary by tenths of a percent.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrho.labels.data import benchmark
from fedrho.models.simclr import CLOTHES, GREY, Alterations, SimclrSettings, train_encoder
from fedrho.privacy.labels.chance import SystemChance
from fedrho.privacy.labels.clusters import kmeans, principal
from fedrho.privacy.labels.priors import histogram_prior, uniform
from fedrho.privacy.labels.private import PrivateLabels
from fedrho.privacy.labels.randomizers import WithPrior

IMAGES = 10_000
CLUSTERS = (20, 100)
STEPS = {"mnist": 1000, "fashion-mnist": 800}
BATCH = 128
EPSILONS = (0.5, 1.0, 2.0)
HISTOGRAM = 0.25
"""Share of epsilon."""
FLIPPED = Alterations(turn=0.0, slant=0.0, flip=True)
ALTERED = {"mnist": {"SimCLR": GREY}, "fashion-mnist": {"SimCLR": FLIPPED, "SimCLR, altered less": CLOTHES}}
Groups = NDArray[np.int64]


def purity(groups: Groups, labels: Groups) -> float:
    """The share of records whose label is the commonest of their cluster."""
    return sum(int(np.bincount(labels[groups == one]).max()) for one in np.unique(groups)) / len(labels)


def encoded(name: str, images: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any], int]]:
    """What is clustered, by its name, and how many starts k-means has on it."""
    yield "pixels", images.reshape(len(images), -1), 1
    yield "50 principal coordinates", principal(images.reshape(len(images), -1), 50), 1
    for said, alterations in ALTERED[name].items():
        if said == "SimCLR":
            begun = train_encoder(images, SimclrSettings(steps=1, batch=BATCH, alterations=alterations))
            yield "SimCLR before training", begun.encode(images), 1
        yield (
            said,
            train_encoder(images, SimclrSettings(steps=STEPS[name], batch=BATCH, alterations=alterations)).encode(images),
            2,
        )


def right(labels: Groups, classes: int, groups: Groups | None, count: int, epsilon: float) -> float:
    """The share of answers that are the true label; `epsilon` is the price of all."""
    private = PrivateLabels(labels, classes, epsilon)
    places = np.arange(len(labels))
    priors, rest = uniform(len(labels), classes), epsilon
    if groups is not None:
        counts = private.histogram(places, groups, count, epsilon * HISTOGRAM, SystemChance())
        priors, rest = histogram_prior(counts)[groups], epsilon * (1 - HISTOGRAM)
    answers = private.answer(places, WithPrior(rest), priors, SystemChance())
    return float((answers.labels == labels).mean())


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "mnist"
    data = benchmark(name)
    images, labels = data.features[:IMAGES], data.labels[:IMAGES]
    print(f"{IMAGES} images of {name}, {STEPS[name]} steps of {BATCH}; purity in %, and answers that are the true label in %")
    print(f"{'':26}" + "".join(f"{count:>14} clusters" for count in CLUSTERS) + "".join(f"  eps {one:g}" for one in EPSILONS))
    row("no prior", [], [right(labels, data.classes, None, 0, epsilon) for epsilon in EPSILONS])
    for said, rows, starts in encoded(name, images):
        several = [[kmeans(rows, count, seed) for seed in range(starts)] for count in CLUSTERS]
        found = [[purity(groups, labels) for groups in one] for one in several]
        told = [right(labels, data.classes, several[-1][0], CLUSTERS[-1], epsilon) for epsilon in EPSILONS]
        row(said, found, told)


def row(said: str, pure: list[list[float]], told: list[float]) -> None:
    cells = ["  ".join(f"{100 * one:.1f}" for one in starts) for starts in pure] or [""] * len(CLUSTERS)
    print(f"{said:26}" + "".join(f"{cell:>23}" for cell in cells) + "".join(f"{100 * one:9.1f}" for one in told), flush=True)


if __name__ == "__main__":
    main()
