"""What a shell may complete at the place of a name. Asked at every Tab, so nothing that takes long is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

DATA_SETS: Final = (
    "digits",
    "digits-drawn",
    "mnist",
    "qmnist",
    "fashion-mnist",
    "emnist",
    "cifar10",
    "shakespeare",
    "caldracor",
    "parlamint-es",
    "stackoverflow",
    "adult",
    "movielens",
    "made-up",
    "folder",
)
"""As in `fedrho.simulations.data.catalogue`."""
LABEL_DATA: Final = ("digits", "mnist", "qmnist", "fashion-mnist", "emnist", "cifar10", "adult", "movielens-ratings")
"""Of one label an example."""
METHODS: Final = ("lp-1st", "lp-2st", "cluster-prior", "forward", "consensus", "alibi", "per-bit", "dp-sgd", "non-private")
"""As in `fedrho.labels.recipes`."""
ENGINES: Final = ("auto", "serial", "processes", "ray")
CONDITIONS: Final = ("idle", "mains-power", "unmetered", "hours=", "cool", "quiet", "off-switch=")
"""As in `fedrho.client.conditions`."""

Completion = Callable[[str], list[str]]


def of(names: Iterable[str]) -> Completion:
    """Of a list that never changes."""
    known = tuple(names)

    def beginning(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return beginning


def models(incomplete: str) -> list[str]:
    """Those of other packages, too."""
    from fedrho.models.zoo import names

    return of(names())(incomplete)


def whole_models(incomplete: str) -> list[str]:
    """Those that only training in one place takes, too."""
    from fedrho.models.normalized import OF_ONE_PLACE

    return [*models(incomplete), *of(OF_ONE_PLACE)(incomplete)]


def tokens(incomplete: str) -> list[str]:
    from fedrho.models.tokens import names

    return of(names())(incomplete)


def studies(incomplete: str) -> list[str]:
    """Those of `fedrho simulate example`."""
    import importlib.resources

    from fedrho.simulations import studies as there

    files = (file.name for file in importlib.resources.files(there).iterdir())
    return of(sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml")))(incomplete)
