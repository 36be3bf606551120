"""Models of other packages, found by entry point: group `fedrho.models`, a name, and a function that returns a `ModelSpec`.

Only the entry point that is asked for is imported.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from fedrho.models.base import ModelSpec, UnknownModel

GROUP = "fedrho.models"


def plugin_names() -> tuple[str, ...]:
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def load_plugin(name: str) -> ModelSpec | None:
    """None when no package has a model of that name; raises UnknownModel when it cannot be used."""
    points = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if len(points) > 1:
        raise UnknownModel(f"model {name!r}: several packages have one of that name: {', '.join(sorted(points))}")
    return next((_loaded(point) for point in points.values()), None)


def _loaded(point: EntryPoint) -> ModelSpec:
    try:
        spec = point.load()()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UnknownModel(f"model {point.name!r}: {point.value} raised {reason}") from error
    if not isinstance(spec, ModelSpec) or spec.name != point.name:
        raise UnknownModel(f"model {point.name!r}: {point.value} must return a ModelSpec of that name")
    return spec
