"""A model of ratings, as classes: who rates what, both as ids (MovieLens-1M in Ghazi et al. 2021, appendix B)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedrho.models.activations import activation as activated
from fedrho.models.base import ModelSpec, register

if TYPE_CHECKING:
    import keras

USERS, MOVIES = 6041, 3953
"""Ids of MovieLens-1M, from 1; the place of 0 is nobody's."""


def build_ratings(activation: str = "relu") -> keras.Model:
    """Ids (user, USERS + movie) to logits of 1 to 5 stars: embeddings of 32, two hidden layers of 64; 328,453 parameters."""
    from fedrho.models.backend import keras

    return keras.Sequential(
        [
            keras.Input((2,), dtype="int32"),
            keras.layers.Embedding(USERS + MOVIES, 32, name="ids"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation=activated(activation), name="first"),
            keras.layers.Dense(64, activation=activated(activation), name="second"),
            keras.layers.Dense(5, name="logits"),
        ]
    )


RATINGS = register(
    ModelSpec(
        "movielens-ratings",
        "who gives which film how many stars",
        (2,),
        5,
        build_ratings,
        "int32",
        USERS + MOVIES,
        paper="Ghazi et al. 2021, arXiv 2102.06062",
        parameters=328_453,
    )
)
