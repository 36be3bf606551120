"""Models for images: 28x28 grey, of digits or of digits and letters, and 32x32 in colour. Values are scaled to [0, 1]."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fedrho.models.activations import activation as activated
from fedrho.models.base import ModelSpec, register

if TYPE_CHECKING:
    import keras

GREY = (28, 28, 1)
COLOUR = (32, 32, 3)
CNN_PAPER = "Reddi et al. 2021, arXiv 2003.00295"


def build_logistic() -> keras.Model:
    """Multinomial logistic regression from zero weights: 784 * 10 + 10 = 7,850 parameters, convex."""
    from fedrho.models.backend import keras

    return keras.Sequential(
        [keras.Input(GREY), keras.layers.Flatten(), keras.layers.Dense(10, kernel_initializer="zeros", name="logits")]
    )


def build_cnn(classes: int, activation: str = "relu") -> keras.Model:
    """Two convolutions, a maximum of four, a hidden layer of 128: 1,206,590 parameters for 62 classes.

    The network of the benchmarks of federated learning (Reddi et al. 2021, arXiv 2003.00295), without its dropout, whose random
    state would pass from one training to the next.
    """
    from fedrho.models.backend import keras

    return keras.Sequential(
        [
            keras.Input(GREY),
            keras.layers.Conv2D(32, 3, activation=activated(activation), name="first"),
            keras.layers.Conv2D(64, 3, activation=activated(activation), name="second"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation=activated(activation), name="hidden"),
            keras.layers.Dense(classes, name="logits"),
        ]
    )


def build_small_cnn(activation: str = "relu") -> keras.Model:
    """Three convolutions of 3x3 and a linear layer: 54,666 parameters, some 2 million multiplications an image.

    Stands in for the small Inception of Ghazi et al. 2021, appendix E, where two processor cores train: what limits it is
    arithmetic, of which this is about a tenth of `mnist-cnn`.
    """
    from fedrho.models.backend import keras

    return keras.Sequential(
        [
            keras.Input(GREY),
            keras.layers.Conv2D(16, 3, padding="same", activation=activated(activation), name="first"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Conv2D(32, 3, padding="same", activation=activated(activation), name="second"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Conv2D(64, 3, padding="same", activation=activated(activation), name="third"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, name="logits"),
        ]
    )


def build_cifar(activation: str = "relu") -> keras.Model:
    """Two convolutions of 5x5, each followed by a maximum of four, and two hidden layers; after McMahan et al. 2017."""
    from fedrho.models.backend import keras

    return keras.Sequential(
        [
            keras.Input(COLOUR),
            keras.layers.Conv2D(32, 5, activation=activated(activation), name="first"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Conv2D(64, 5, activation=activated(activation), name="second"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation=activated(activation), name="hidden"),
            keras.layers.Dense(10, name="logits"),
        ]
    )


LOGISTIC = register(ModelSpec("mnist-logistic", "logistic regression on 28x28 digits", GREY, 10, build_logistic, parameters=7850))
MNIST_CNN = register(
    ModelSpec(
        "mnist-cnn",
        "a convolutional network on 28x28 digits",
        GREY,
        10,
        partial(build_cnn, 10),
        paper=CNN_PAPER,
        parameters=1_199_882,
    )
)
SMALL_CNN = register(
    ModelSpec(
        "mnist-small-cnn",
        "a small convolutional network on 28x28 grey",
        GREY,
        10,
        build_small_cnn,
        paper="after Ghazi et al. 2021, arXiv 2102.06062",
        parameters=54_666,
    )
)
EMNIST_CNN = register(
    ModelSpec(
        "emnist-cnn",
        "the same network on 62 digits and letters",
        GREY,
        62,
        partial(build_cnn, 62),
        paper=CNN_PAPER,
        parameters=1_206_590,
    )
)
CIFAR_CNN = register(
    ModelSpec(
        "cifar-cnn",
        "a small convolutional network on 32x32 photographs",
        COLOUR,
        10,
        build_cifar,
        paper="after McMahan et al. 2017, arXiv 1602.05629",
        parameters=259_914,
    )
)
