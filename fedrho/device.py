"""What the owner of a device sees and says: `fedrho device ledger` and `leave`, beside a running device or without it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fedrho import console
from fedrho.console import BadInput
from fedrho.joining import DEFAULT_HISTORY
from fedrho.output_options import Json
from fedrho.places import looked_at

if TYPE_CHECKING:
    from fedrho.client.history_view import DeviceLedger, Incident, LabelsAnswered, PopulationSeen, RunSeen

app = typer.Typer(
    help="What a device remembers, and what its owner decides.\n\nExample: fedrho device ledger", no_args_is_help=True
)

SUFFIX = ".sqlite"
EVERYTHING = "everything"
SHORTEST_PREFIX = 6

Folder = Annotated[
    Path, typer.Option(metavar="FOLDER", help="Where devices keep their histories.", show_default="in your home folder")
]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="Which device.", show_default="all in the folder")]


@app.command()
def ledger(
    history: Folder = DEFAULT_HISTORY,
    device: Device = None,
    json: Json = False,
    trust: Annotated[
        bool, typer.Option("--trust", help="Say that the history of --device knows every contribution of that device.")
    ] = False,
) -> None:
    """Show what a device took part in, what it has refused, and what it has left.

    Example: fedrho device ledger --history mine
    """
    from fedrho.client.history_view import read_ledger

    if trust:
        _vouch(history, device)
    ledgers = [read_ledger(path) for path in _paths(history, device)]
    if json:
        console.print_json({"devices": [ledger_values(one) for one in ledgers]})
        return
    for one in ledgers:
        _show(one)


@app.command()
def leave(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="`everything`, a population's key, or a run, as `ledger` shows them.")
    ],
    history: Folder = DEFAULT_HISTORY,
    device: Device = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take part again.")] = False,
) -> None:
    """Withdraw: from now on the device takes part in nothing of it, also where it is running.

    Example: fedrho device leave everything --history mine
    """
    from fedrho.client.withdrawal import Withdrawals

    paths = _paths(history, device, known=False)
    name = _named(what, paths)
    for path in paths:
        withdrawals, who = Withdrawals(path), path.name.removesuffix(SUFFIX)
        try:
            if not undo:
                withdrawals.leave(name, time.time())
                _say(f"{who}: left {name}{'' if path.is_file() else f' (no history of that name is in {history})'}")
            else:
                _say(f"{who}: takes part in {name} again" if withdrawals.come_back(name) else f"{who}: had not left {name}")
        except ValueError as error:
            raise BadInput(f"{error}; the device takes part in nothing; remove the file to begin anew") from error
    if not undo:
        _say("What was contributed stays in what was released, and an upload that has begun may still be counted.")


# -- which devices, and of what ----------------------------------------------------------------------------------------


def _paths(folder: Path, device: str | None, known: bool = True) -> list[Path]:
    """The histories that are meant; with `known`, all of them exist and may be read. Raises BadInput."""
    with looked_at(f"--history {folder}"):
        paths = _looked_for(folder, device, known)
        for path in paths if known else ():
            path.open("rb").close()
    return paths


def _looked_for(folder: Path, device: str | None, known: bool) -> list[Path]:
    if device is not None:
        if not device or "/" in device or device in (".", "..") or "\0" in device:
            raise BadInput(f"--device {device!r}: the name of a device, which is that of its history without {SUFFIX}")
        path = folder / f"{device}{SUFFIX}"
        if known and not path.is_file():
            raise BadInput(f"--device {device}: no history in {folder}{_there_are(_names(folder))}")
        return [path]
    names = _names(folder) if known else sorted({*_names(folder), *_names(folder, ".marker"), *_names(folder, ".left")})
    if not names:
        raise BadInput(f"--history {folder}: no device's history is here; name the folder that `fedrho join` was given")
    return [folder / f"{name}{SUFFIX}" for name in names]


def _names(folder: Path, kind: str = "") -> list[str]:
    if folder.is_dir():
        os.scandir(folder).close()  # glob finds nothing in a folder that may not be read
    return sorted(path.name.removesuffix(SUFFIX + kind) for path in folder.glob(f"*{SUFFIX}{kind}"))


def _there_are(names: list[str]) -> str:
    return f"; there are: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ""


def _named(what: str, paths: Iterable[Path]) -> str:
    """`everything`, a key or a run in full, from its beginning where the ledgers know it. Raises BadInput."""
    what = what.lower()
    if what == EVERYTHING or re.fullmatch(r"[0-9a-f]{64}", what):
        return what
    found = (
        sorted({name for path in paths for name in _known(path) if name.startswith(what)}) if len(what) >= SHORTEST_PREFIX else []
    )
    if re.fullmatch(r"[0-9a-f]{32}", what) and (what in found or not found):  # a run, and not half of a population's key
        return what
    if len(found) != 1:
        raise BadInput(f"{what!r} is not `{EVERYTHING}`, nor the key of a population or a run that `fedrho device ledger` shows")
    return found[0]


def _known(path: Path) -> set[str]:
    from fedrho.client.history import HistoryError
    from fedrho.client.history_view import read_ledger

    try:
        one = read_ledger(path)
    except HistoryError:
        return set()
    return {*(seen.key.hex() for seen in one.populations), *(seen.run.hex() for seen in one.runs), *one.left}


def _vouch(folder: Path, device: str | None) -> None:
    from fedrho.client.history import DeviceHistory

    if device is None:
        raise BadInput("--trust: needs --device NAME, for it is about one device")
    (path,) = _paths(folder, device)
    own = DeviceHistory(path)
    try:
        own.vouch()
    finally:
        own.close()
    _say("It may now take part where it cannot know whether it did before; if it did, its privacy loss is above what is claimed.")


# -- as JSON -----------------------------------------------------------------------------------------------------------


def ledger_values(one: DeviceLedger) -> dict[str, Any]:
    return {
        "device": one.path.name.removesuffix(SUFFIX),
        "history": str(one.path),
        "born_at": one.born,
        "complete": one.complete,
        "left": one.left,
        "populations": [population_values(seen) for seen in one.populations],
        "runs": [run_values(seen, one) for seen in one.runs],
        "labels": [label_values(answered) for answered in one.labels],
        "label_epsilon": one.label_epsilon,
        "incidents": [incident_values(incident) for incident in one.incidents],
    }


def label_values(answered: LabelsAnswered) -> dict[str, Any]:
    return {
        "mechanism": answered.mechanism,
        "epsilon": answered.epsilon,
        "prior": list(answered.prior) or "uniform",
        "classes": answered.classes,
        "labels": answered.labels,
        "first_at": answered.first,
        "last_at": answered.last,
    }


def population_values(seen: PopulationSeen) -> dict[str, Any]:
    return {"key": seen.key.hex(), "servers": list(seen.servers), "epoch": seen.epoch, "server_time": seen.server_time}


def run_values(seen: RunSeen, one: DeviceLedger) -> dict[str, Any]:
    announced = seen.announced or {}
    return {
        "run": seen.run.hex(),
        "population": seen.population.hex() or None,
        "task": announced.get("task"),
        "model": announced.get("model"),
        "steps": announced.get("steps"),
        "released": seen.released,
        "state": state(seen, one),
        "terms": announced.get("terms"),
        "contributions": [{"step": given.step, "at": given.at} for given in seen.contributions],
    }


def incident_values(incident: Incident) -> dict[str, Any]:
    return {
        "kind": incident.kind,
        "detail": incident.detail,
        "run": incident.run.hex() or None,
        "first_at": incident.first,
        "last_at": incident.last,
        "times": incident.times,
    }


def state(seen: RunSeen, one: DeviceLedger) -> str:
    """left, ended, unknown (what was given before may be), exhausted, or open."""
    if {EVERYTHING, seen.run.hex(), seen.population.hex()} & set(one.left):
        return "left"
    if seen.ended:
        return "ended"
    if seen.may_be_unknown:
        return "unknown"
    most = (seen.announced or {"terms": {"max_participations": None}})["terms"]["max_participations"]
    return "exhausted" if most is not None and len(seen.contributions) >= most else "open"


# -- for people --------------------------------------------------------------------------------------------------------


def _show(one: DeviceLedger) -> None:
    _say(f"{one.path.name.removesuffix(SUFFIX)}: {one.path}, kept since {_date(one.born)}")
    if not one.complete:
        _say(f"  not complete: what it took part in before {_date(one.born)} may be missing; it joins only runs that began later")
    for name, date in one.left.items():
        _say(f"  left {name} on {_date(date)}")
    for seen in one.populations:
        _say(f"  population {seen.key.hex()}, epoch {seen.epoch}, at {', '.join(map(_plain, seen.servers)) or 'no address'}")
    if one.runs:
        _print_table(
            ("task", "run", "contributions", "last step", "last contribution", "rho at most", "state"),
            [_row(seen, one) for seen in one.runs],
        )
    if one.labels:
        _print_table(
            ("labels answered", "epsilon of each", "mechanism", "prior", "last asked"),
            [_label_row(answered) for answered in one.labels],
        )
        _say(f"  no label has paid more than epsilon {_up(one.label_epsilon)} in sum (unit: one label, neighbours: replace)")
    if one.incidents:
        _print_table(
            ("last", "times", "kind", "what happened"),
            [(_date(item.last), str(item.times), _plain(item.kind), _plain(item.detail)) for item in one.incidents],
        )


def _row(seen: RunSeen, one: DeviceLedger) -> tuple[str, ...]:
    announced, given = seen.announced, seen.contributions
    most = announced["terms"]["max_participations"] if announced else "?"
    return (
        _plain(announced["task"]) if announced else "?",
        seen.run.hex()[:8],
        f"{len(given)} of {most}",
        str(given[-1].step) if given else "",
        _date(max(one.at for one in given)) if given else "",
        f"{announced['terms']['rho_budget']:g}" if announced else "?",
        state(seen, one),
    )


def _up(epsilon: float) -> str:
    from fedrho.privacy.statement import round_up

    return round_up(epsilon)


def _label_row(answered: LabelsAnswered) -> tuple[str, ...]:
    prior = "of the task" if answered.prior else "uniform"
    return str(answered.labels), f"{answered.epsilon:g}", _plain(answered.mechanism), prior, _date(answered.last)


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.text import Text

    table = Table(box=None, padding=(0, 2))
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.out.print(table, highlight=False)


def _say(text: str) -> None:
    console.out.print(text, highlight=False, markup=False, soft_wrap=True)


def _plain(text: str) -> str:
    """What a server has named, without anything that would move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _date(at: float | None) -> str:
    try:
        return datetime.fromtimestamp(at or 0.0).isoformat(" ", "seconds") if at is not None else "an unknown date"
    except (ValueError, OverflowError, OSError):
        return f"{at:g}"
