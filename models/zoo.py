"""Every model that ships with fedrho: importing this registers them. The one place that lists the families."""

from fedrho.models import digits
from fedrho.models.base import ModelSpec, UnknownModel, lookup, names

__all__ = ["ModelSpec", "UnknownModel", "digits", "lookup", "names"]
