"""The commands by name, and where each is found. Only the one that is called is imported: together they take seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperGroup

STYLE: Final[Mapping[str, Any]] = {"pretty_exceptions_enable": False, "rich_markup_mode": "rich"}

PLACES: Final = {
    "demo": "demo_command:demo",
    "serve": "serving:serve",
    "shard": "serving:shard",
    "join": "joining:join",
    "fleet": "fleet:fleet",
    "device": "device:app",
    "status": "operate:status",
    "pause": "operate:pause",
    "resume": "operate:resume",
    "cancel": "operate:cancel",
    "export": "operate:export",
    "keys": "key_command:keys",
    "account": "account_all:app",
    "predict": "predict_command:predict",
    "models": "models_command:app",
    "data": "data:app",
    "simulate": "simulating:app",
    "labels": "labels.app:app",
}
"""Module of fedrho and what it calls the command, in the order of the help."""


class Commands(Mapping[str, Any]):
    """Click's commands, made when they are asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = _made(name, *PLACES[name].split(":"))
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(PLACES)

    def __len__(self) -> int:
        return len(PLACES)


class LazyGroup(TyperGroup):
    """`fedrho` itself."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Commands()  # type: ignore[assignment]


def _made(name: str, module: str, attribute: str) -> Any:
    found = getattr(import_module(f"fedrho.{module}"), attribute)
    if isinstance(found, typer.Typer):
        group = typer.main.get_group(found)
        group.name = name
        return group
    app = typer.Typer(**STYLE, add_completion=False)
    app.command(name)(found)
    return typer.main.get_command(app)
