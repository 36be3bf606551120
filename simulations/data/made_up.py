"""Made-up examples for a model of any input, at any size."""

from __future__ import annotations

import math

from fedrho.simulations.data.cache import Cache
from fedrho.simulations.data.entry import Entry, Licence, Load
from fedrho.simulations.data.options import Option, Options
from fedrho.simulations.data.pools import DRAWN_OPTIONS, MOST_EXAMPLES, SEED, MadeUp, MadeUpInputs, drawing_of

MOST_NUMBERS = 2**28
"""Of the centres together."""

OPTIONS = (
    Option("shape", "[64]", "one to four whole numbers", "of an example; [28, 28, 1] for `emnist-cnn`"),
    Option("classes", "10", "2 to 100000", "labels"),
    Option("vocabulary", "0", "0 to 1048576", "not 0: examples are ids of tokens below it, for models of text"),
    Option(
        "noise",
        "0.5",
        "above 0 to 100",
        "standard deviation around a class's centre; of tokens, the share that is random, at most 1",
    ),
    *DRAWN_OPTIONS,
    Option("test_examples", "1000", "1 to 1048576", "held out"),
    SEED,
)


def _configure(options: Options) -> Load:
    vocabulary = options.integer("vocabulary", 0, 0, 2**20)
    noise = options.number("noise", 0.5, 0, 1 if vocabulary else 100)
    inputs = MadeUpInputs(options.shape("shape", (64,)), options.integer("classes", 10, 2, 100_000), vocabulary, noise)
    if inputs.classes * math.prod(inputs.shape) > MOST_NUMBERS:
        raise options.wrong(
            "classes", f"{inputs.classes} classes of shape {list(inputs.shape)} are more than {MOST_NUMBERS} numbers"
        )
    drawing = drawing_of(options)
    tests = options.integer("test_examples", 1000, 1, MOST_EXAMPLES)

    def load(cache: Cache) -> MadeUp:
        return MadeUp(inputs, drawing, tests)

    return load


MADE_UP = Entry(
    "made-up",
    "normals around one centre a class, or tokens, for a model of any input",
    "a draw with its own mix of classes",
    "100 (any number)",
    "100 a device",
    "1,000, drawn alike",
    Licence("none needed", "made up by fedrho", "this package"),
    ("emnist-cnn", "mnist-cnn", "mnist-logistic", "digits-logistic", "digits-mlp", "any other"),
    OPTIONS,
    _configure,
)
