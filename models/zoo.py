"""Every model there is, by name: those that ship with fedrho, those of other packages, and saved ones that were added.

Importing this registers the first; it is the one place that lists the families.
"""

from fedrho.models import base, digits, images, ratings, resnet, tables, windows
from fedrho.models.base import ModelSpec, UnknownModel, registered
from fedrho.models.plugins import load_plugin, plugin_names
from fedrho.models.saved import is_saved

__all__ = ["ModelSpec", "UnknownModel", "digits", "images", "lookup", "names", "ratings", "resnet", "tables", "windows"]


def names() -> tuple[str, ...]:
    return tuple(sorted({*base.names(), *plugin_names()}))


def lookup(name: str) -> ModelSpec:
    """Raises UnknownModel, which lists the names there are."""
    found = registered(name) or load_plugin(name)
    if found is None and is_saved(name):
        raise UnknownModel(f"model {name}: its .keras file was not given here; it is the one whose SHA-256 begins so")
    if found is None:
        raise UnknownModel(f"unknown model {name!r}; known models: {', '.join(names())}")
    return found
