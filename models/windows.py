"""Models that guess what comes next after a window of ids: characters, words, movies. An embedding and a hidden layer each."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from fedrho.models.activations import activation as activated
from fedrho.models.base import ModelSpec, register

if TYPE_CHECKING:
    import keras
PAPER = "after Bengio et al. 2003, JMLR 3:1137"


def build_next(window: int, vocabulary: int, embedding: int, hidden: int, activation: str = "relu") -> keras.Model:
    """`window` ids below `vocabulary`, each embedded, side by side, to one score for every id."""
    from fedrho.models.backend import keras

    return keras.Sequential(
        [
            keras.Input((window,), dtype="int32"),
            keras.layers.Embedding(vocabulary, embedding, name="embedding"),
            keras.layers.Flatten(),
            keras.layers.Dense(hidden, activation=activated(activation), name="hidden"),
            keras.layers.Dense(vocabulary, name="logits"),
        ]
    )


def _register(name: str, summary: str, window: int, vocabulary: int, embedding: int, hidden: int, parameters: int) -> ModelSpec:
    build = partial(build_next, window, vocabulary, embedding, hidden)
    return register(
        ModelSpec(name, summary, (window,), vocabulary, build, "int32", vocabulary, paper=PAPER, parameters=parameters)
    )


CHARACTERS = _register("characters", "the next of 126 characters, after 20", 20, 126, 16, 128, 59_358)
WORDS = _register("words", "the next of 2,048 words, after 8", 8, 2048, 32, 64, 215_104)
MOVIES = _register("movies", "the next of 3,952 movies, after 8", 8, 3954, 16, 64, 328_530)
