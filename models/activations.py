"""What stands between two layers is a choice, and part of a model's name: `mnist-cnn+smelu`.

One name means one network, on the server and on every device, so there is no option beside it. A model has the choice where its
builder takes an `activation`; the one it has by itself is not written.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from fedrho.models.base import ModelSpec, UnknownModel

if TYPE_CHECKING:
    from fedrho.models.layers import SmeLU

SIGN = "+"
PLAIN = ("relu", "gelu", "tanh")
"""Keras's own; `gelu` is exact (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
SMELU = re.compile(r"smelu(?:-(?P<beta>[0-9]+(?:\.[0-9]*[1-9])?))?")
ALLOWED = "relu, gelu, tanh, smelu (beta 1), smelu-BETA such as smelu-0.5"
BETAS = (0.01, 100.0)


def activation(name: str) -> str | SmeLU:
    """What a Keras layer takes as its activation."""
    found = SMELU.fullmatch(name)
    if found is None:
        return name
    from fedrho.models.layers import SmeLU

    return SmeLU(float(found["beta"] or 1))


def own(spec: ModelSpec) -> str:
    """The activation that a model has by itself; empty where there is no choice."""
    taken = inspect.signature(spec.build).parameters.get("activation")
    return "" if taken is None else str(taken.default)


def chosen(spec: ModelSpec, name: str) -> ModelSpec:
    """The same model with another activation; raises UnknownModel for one that it cannot have."""
    present = own(spec)
    if not present:
        raise UnknownModel(f"model {spec.name!r} has no choice of activation; write {spec.name}")
    if not _known(name):
        raise UnknownModel(f"unknown activation {name[:80]!r} of model {spec.name!r}; allowed: {ALLOWED}")
    if name == present:
        raise UnknownModel(f"model {spec.name!r} has {name} by itself; write {spec.name}")
    build: Callable[..., Any] = spec.build
    whole, summary = f"{spec.name}{SIGN}{name}", f"{spec.summary}; {name}"
    return dataclasses.replace(spec, name=whole, summary=summary, build=partial(build, activation=name))


def _known(name: str) -> bool:
    """One way to write each: `smelu-1` and `smelu-1.0` would be other names of `smelu`."""
    found = SMELU.fullmatch(name)
    if found is None:
        return name in PLAIN
    beta = found["beta"]
    return beta is None or (BETAS[0] <= float(beta) <= BETAS[1] and beta == f"{float(beta):g}" != "1")
