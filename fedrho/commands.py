"""The commands by name, and where each is found. Only the one that is called is imported: together they take seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

STYLE: Final[Mapping[str, Any]] = {"pretty_exceptions_enable": False, "rich_markup_mode": "rich"}

PANELS: Final[Mapping[str, Mapping[str, str]]] = {
    "See it work": {
        "demo": "A server, forty devices, a model and its privacy statement",
    },
    "Run it: a server and its devices": {
        "serve": "Run the server until every step of every task is released",
        "join": "Be one or more devices: train here, upload clipped updates",
        "status": "How far the runs are, and what they have spent",
        "dashboard": "A store's runs in a browser, without a server",
        "pause": "Give out no more seats in a run",
        "resume": "Go on with a paused run",
        "cancel": "End a run for good",
        "export": "Write the latest weights, with the statement inside",
        "keys": "Make keys: for server, devices, shards and operators",
        "device": "What a device remembers, and what its owner decides",
        "shard": "Take uploads for a server elsewhere",
        "fleet": "Be a whole population in one process, for tests and load",
    },
    "Simulate it, before a real device is touched": {
        "simulate": "Run a study on virtual devices; compare, draw, export",
        "data": "Data sets for simulations, with their licences",
    },
    "Compute privacy budgets": {
        "account": "What a run costs, what a budget needs, what a claim means",
    },
    "Train on labels that stay private": {
        "labels": "Answer labels once, train on the answers, audit",
    },
    "Models": {
        "models": "What there is, what each takes and gives, its weights",
        "predict": "What an exported model says: next words, or a class",
    },
}
"""What the help says, in its order: one line at 80 columns, so that none has to be imported for it."""

PLACES: Final = {
    "demo": "demo_command:demo",
    "serve": "serving:serve",
    "join": "joining:join",
    "status": "operate_command:status",
    "dashboard": "dashboard_command:dashboard",
    "pause": "operate_command:pause",
    "resume": "operate_command:resume",
    "cancel": "operate_command:cancel",
    "export": "operate_command:export",
    "keys": "key_command:keys",
    "device": "device:app",
    "shard": "sharding:shard",
    "fleet": "fleet:fleet",
    "simulate": "simulating:app",
    "data": "data:app",
    "account": "account_all:app",
    "labels": "labels.app:app",
    "models": "models_command:app",
    "predict": "predict_command:predict",
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
    """`fedrho` itself. Its help and its completion list commands that are not imported; the one that is called is."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Commands()  # type: ignore[assignment]
        self._called: set[str] = set()

    def list_commands(self, ctx: Any) -> list[str]:
        return list(PLACES)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        self._called.update(args[:1])
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self.commands.get(cmd_name) if cmd_name in self._called else _listed(cmd_name)


def _listed(name: str) -> Any:
    """As the help shows it, without its options."""
    for panel, commands in PANELS.items():
        if name in commands:
            return TyperCommand(name, help=commands[name], rich_help_panel=panel)
    return None


def _made(name: str, module: str, attribute: str) -> Any:
    found = getattr(import_module(f"fedrho.{module}"), attribute)
    if isinstance(found, typer.Typer):
        group = typer.main.get_group(found)
        group.name = name
        return group
    app = typer.Typer(**STYLE, add_completion=False)
    app.command(name)(found)
    return typer.main.get_command(app)
