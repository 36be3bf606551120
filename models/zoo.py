"""Every model there is, by name: those that ship with fedrho, those of other packages, and saved ones that were added.

Importing this registers the first; it is the one place that lists the families.
"""

import difflib

from fedrho.models import base, digits, images, ratings, recurrent, resnet, tables, transformer, windows
from fedrho.models.activations import SIGN, chosen
from fedrho.models.applications import application
from fedrho.models.base import ModelSpec, UnknownModel, registered
from fedrho.models.normalized import OF_ONE_PLACE
from fedrho.models.plugins import load_plugin, plugin_names
from fedrho.models.saved import is_saved

__all__ = [
    "ModelSpec",
    "UnknownModel",
    "digits",
    "images",
    "lookup",
    "lookup_whole",
    "names",
    "ratings",
    "recurrent",
    "resnet",
    "tables",
    "transformer",
    "windows",
]


def names() -> tuple[str, ...]:
    return tuple(sorted({*base.names(), *plugin_names()}))


def lookup(name: str) -> ModelSpec:
    """Raises UnknownModel, which lists the names there are; `NAME+ACTIVATION` is a model with another activation."""
    whole = registered(name) or application(name) or load_plugin(name)
    if whole is not None:
        return whole
    if is_saved(name):
        raise UnknownModel(f"model {name}: its .keras file was not given here; it is the one whose SHA-256 begins so")
    if name in OF_ONE_PLACE:
        raise UnknownModel(
            f"model {name!r} is for `fedrho labels train` alone: running statistics, which its batch normalization has, would be"
            " neither clipped nor averaged"
        )
    base_name, sign, activation = name.partition(SIGN)
    found = registered(base_name) or load_plugin(base_name) if sign else None
    if found is None:
        raise UnknownModel(f"unknown model {name!r}; known models: {', '.join(names())}{_nearest(name)}")
    return chosen(found, activation)


def lookup_whole(name: str) -> ModelSpec:
    """Of a model that is trained in one place: those with running statistics, too. Raises UnknownModel."""
    return OF_ONE_PLACE.get(name) or lookup(name)


def _nearest(name: str) -> str:
    """A question that helps with a slip of the pen, or nothing."""
    close = difflib.get_close_matches(name.lower(), names(), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
