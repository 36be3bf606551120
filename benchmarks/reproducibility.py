"""How far the predictions of models lie apart that were trained alike, with ReLU and with SmeLU.

`python benchmarks/reproducibility.py [MODEL] [ACTIVATION …]`: some minutes. Every model is trained from each of `SEEDS`: other
initial weights, and another order of the same 6,000 digits of MNIST, by plain SGD without privacy. Then all give probabilities of
its 10,000 test images. PD and PD_r are those of `fedrho.models.reproducibility`, true: PD_r of the true class alone.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from fedrho.labels.data import benchmark
from fedrho.models.backend import one_thread, tf
from fedrho.models.flat import FlatModel
from fedrho.models.reproducibility import differences
from fedrho.models.zoo import lookup

EXAMPLES, EPOCHS, BATCH, RATE = 6000, 5, 32, 0.1
SEEDS = (1, 2, 3, 4)
AT_ONCE = 1000
Images = NDArray[np.float32]
Labels = NDArray[np.int32]


def trained(name: str, images: Images, labels: Labels, seed: int) -> FlatModel:
    model, random = FlatModel(lookup(name), seed), np.random.default_rng(seed)
    for _ in range(EPOCHS):
        order = random.permutation(len(labels))
        for begin in range(0, len(order), BATCH):
            rows = order[begin : begin + BATCH]
            model.sgd_step(images[rows], labels[rows], RATE)
    return model


def probabilities(model: FlatModel, images: Images) -> NDArray[np.float64]:
    parts = [images[begin : begin + AT_ONCE] for begin in range(0, len(images), AT_ONCE)]
    logits = np.concatenate([np.asarray(model.keras_model(part)) for part in parts])
    return np.asarray(tf.nn.softmax(logits.astype(np.float64)))


def main(name: str = "mnist-small-cnn", *activations: str) -> None:
    one_thread()
    data = benchmark("mnist")
    images, labels = data.features[:EXAMPLES], data.labels[:EXAMPLES].astype(np.int32)
    print(f"{'model':36} {'accuracy':>16} {'PD':>8} {'PD_r':>8} {'true':>8} {'disagree':>8}")
    for one in (name, *(f"{name}+{activation}" for activation in activations or ("smelu-0.5", "smelu"))):
        models = [trained(one, images, labels, seed) for seed in SEEDS]
        found = np.stack([probabilities(model, data.test_features) for model in models])
        right = np.mean(found.argmax(axis=2) == data.test_labels, axis=1)
        told = differences(found, data.test_labels)
        print(
            f"{one:36} {right.mean():.4f} +- {right.std(ddof=1):.4f} {told.absolute:8.4f} {told.relative:8.4f} "
            f"{told.relative_true:8.4f} {told.disagreement:8.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
