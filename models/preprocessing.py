"""Preprocessing layers that were adapted to examples, which no device may bring: constants in them must be public.

What `adapt` finds is computed from examples without noise, and would travel inside the model. The same layers take public
constants: `Normalization(mean=…, variance=…)`, `Discretization(bin_boundaries=…)`, `IntegerLookup(vocabulary=…)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedrho.models.backend import keras

ADAPTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "Normalization": (lambda layer: layer.input_mean is None, "mean=… and variance=…"),
    "Discretization": (lambda layer: layer.num_bins is not None, "bin_boundaries=…"),
    "IntegerLookup": (lambda layer: layer.input_vocabulary is None, "vocabulary=…"),
}
"""Of each layer that can be adapted whether it was, or would have to be, and how it is given constants."""


def why_adapted(layer: keras.layers.Layer) -> str:
    """The reason to refuse a layer, and what to do; empty for one that has nothing to adapt, or public constants."""
    adapted, given = ADAPTED.get(type(layer).__name__, (lambda _: False, ""))
    if not adapted(layer):
        return ""
    return f"{type(layer).__name__} is adapted to examples, which would be published with it; give it public constants, {given}"
