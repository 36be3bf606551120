"""Training in bfloat16: sums of products in float32, what goes into them in 16 bits; weights and answers stay float32.

Mixed precision (Micikevicius et al. 2018, arXiv 1710.03740) with a type of float32's range, so that no loss has to be scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fedrho.models.backend import keras
from fedrho.models.base import ModelSpec, UnknownModel

POLICY = "mixed_bfloat16"


@dataclass(frozen=True)
class Mixed:
    """Builds what `build` builds, in Keras's policy of that name."""

    build: Callable[[], keras.Model]

    def __call__(self) -> keras.Model:
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(POLICY)
        try:
            return self.build()
        finally:
            keras.config.set_dtype_policy(before)


def in_bfloat16(spec: ModelSpec) -> ModelSpec:
    """The same model, computed in bfloat16; its weights fit the other, and are as many.

    Raises UnknownModel where that would change nothing, as of a model out of a file, or would round its answers.
    """
    mixed = replace(spec, build=Mixed(spec.build))
    made = mixed.build()
    if not any(layer.compute_dtype == "bfloat16" for layer in made.layers):
        raise UnknownModel(f"model {spec.name!r} sets its own precision; leave `precision` at float32")
    if made.outputs[0].dtype != "float32":
        raise UnknownModel(f"model {spec.name!r} would answer in bfloat16, too coarsely; its last layer needs dtype float32")
    return mixed
