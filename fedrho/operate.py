"""What an operator does from the command line: status, pause, resume, cancel, export. With a server, or beside its store."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from fedrho import console, recent
from fedrho.console import BadInput
from fedrho.operator_client import OperatorClient, ServerGone
from fedrho.privacy.statement import round_up
from fedrho.saved_models import add_models
from fedrho.server.operations.operator_port import OPERATOR_FILE, TOKEN_BYTES, OperatorAccess, read_access
from fedrho.server.operations.operator_wire import Listing
from fedrho.server.population import RunView
from fedrho.server.release import RunState
from fedrho.server.storage.databases import shown
from fedrho.server.storage.store import locate, read_status
from fedrho.serving import DEFAULT_STORE
from fedrho.stored import StoredRuns, read_store, stored_model


@dataclass(frozen=True)
class Where:
    """What the command line says about where the runs are."""

    store: str | None
    operator: str | None
    token_file: Path | None
    tls: Path | None

    def place(self) -> str | Path:
        """The store, a folder or a URL; raises StoreConflict where there is none."""
        if self.store is None or "://" not in self.store:
            return locate(Path(self.store or latest_store()).resolve())
        return self.store

    def access(self) -> OperatorAccess | None:
        """How to get in; None where no server has announced itself. Raises BadInput."""
        if self.operator is None:
            if self.token_file is not None:
                raise BadInput("--token-file: goes with --operator; add it, or leave it out")
            place = self.place()
            return read_access(place / OPERATOR_FILE) if isinstance(place, Path) else None
        if self.store is not None:
            raise BadInput("--operator: contradicts STORE; leave one of them out")
        if self.token_file is None:
            raise BadInput("--operator: needs --token-file FILE; the token is in operator.json of the server's store")
        return OperatorAccess(_checked_address(self.operator), _read_token(self.token_file), self.tls is not None)

    def client(self) -> OperatorClient | None:
        """None where no server has announced itself."""
        access = self.access()
        return None if access is None else OperatorClient(access, self._client_tls())

    def _client_tls(self) -> Any:
        if self.tls is None:
            return None
        from fedrho.keys import operator_client_tls

        return operator_client_tls(self.tls)

    def served(self) -> bool:
        """Whether a server has the store open, for all that can be seen from here."""
        if self.operator is not None or not isinstance(place := self.place(), Path):
            return True
        return any(run.running for run in read_status(place))

    @contextmanager
    def server(self) -> Iterator[OperatorClient]:
        """The server, which has to be there; raises BadInput."""
        client = self.client()
        if client is None:
            raise BadInput(f"{shown(self.place())}: no server is running here; `fedrho serve` starts one")
        with client:
            yield client


# -- status ----------------------------------------------------------------------------------------------------------------------


def status(store: str | None, watch: bool, json: bool, operator: str | None, token_file: Path | None, tls: Path | None) -> None:
    """Tells how far the runs are and what they have spent."""
    where = Where(store, operator, token_file, tls)
    if watch:
        _watch(where, json)
        return
    values = status_values(where)
    if json:
        console.print_json(values)
        return
    for line in status_lines(values):
        console.out.print(line, highlight=False, markup=False, soft_wrap=True)


def status_values(where: Where) -> dict[str, Any]:
    """From the server, and where none answers from the store."""
    try:
        client = where.client()
        if client is not None:
            with client:
                return all_values(where, client.listing())
    except ServerGone:
        if where.operator is not None:
            raise
    return all_values(where, read_store(where.place()))


def all_values(where: Where, found: Listing | StoredRuns) -> dict[str, Any]:
    """What `--json` prints; only a server knows of open attempts."""
    live = isinstance(found, Listing)
    stored = found if isinstance(found, StoredRuns) else read_store(where.place()) if where.operator is None else None
    delta = min((view.delta for view in found.runs), default=None)
    combined = found.combined
    return {
        "runs": [run_values(view, live) for view in found.runs],
        "combined": combined and delta and statement_values(combined, delta),
        "running": live or (stored is not None and stored.running),
        "address": stored.address if stored else None,
        "pid": stored.pid if stored else None,
        "operator": where.operator or (_announced(where) if live else None),
        "dashboard": _dashboard(where) if live else None,
        "store": shown(stored.where) if stored else None,
    }


def _announced(where: Where) -> str | None:
    access = where.access()
    return access.address if access else None


def _dashboard(where: Where) -> str | None:
    """Only a server on this machine says where; with --operator nobody does."""
    access = None if where.operator else where.access()
    return access.dashboard if access else None


def run_values(view: RunView, live: bool) -> dict[str, Any]:
    return {
        "task": view.name,
        "run": view.run.hex(),
        "algorithm": view.algorithm,
        "model": view.model,
        "state": view.state.value,
        "step": view.step,
        "steps": view.steps,
        "goal": view.goal,
        "attempt": view.attempt if live else None,
        "seats": view.seats if live else None,
        "filled": view.filled if live else None,
        "drop_out": round(view.drop_out, 2) if live else None,
        "rho_budget": view.rho_budget,
        "committed_at": view.committed_at,
        **statement_values(view.statement, view.delta),
        "labels": None if view.labels is None else dict(view.labels.to_json()),
    }


def statement_values(statement: Any, delta: float) -> dict[str, Any]:
    return {
        "rho": statement.rho,
        "epsilon": statement.epsilon(delta),
        "delta": delta,
        "unit": statement.unit.value,
        "neighbours": statement.neighbours.value,
        "assumptions": list(statement.assumptions),
    }


def status_lines(values: dict[str, Any]) -> Iterator[str]:
    """For people: two lines a run, a third where there is a claim about labels, and one about all of them."""
    place = f"running at {values['address'] or values['operator']}" if values["running"] else "no server is running"
    for run in values["runs"]:
        there = "" if run["state"] in ("cancelled", "finished") else f", {place}"
        filled = "" if run["filled"] is None or run["state"] != "active" else f", round {100 * run['filled']:.0f}% full"
        yield f"{run['task']} ({run['algorithm']}): step {run['step']} of {run['steps']}, {run['state']}{filled}{there}"
        yield f"rho {round_up(run['rho'])} of {run['rho_budget']:g}, {_claim(run)} (assumptions: --json)"
        if run["labels"]:
            yield f"beside it, and never added to it: {_label_claim(run['labels'])} (assumptions: --json)"
    if len(values["runs"]) > 1 and values["combined"]:
        yield f"all together: rho {round_up(values['combined']['rho'])}, {_claim(values['combined'])}"
    if values["dashboard"]:
        yield f"dashboard: {values['dashboard']}"


def _claim(values: dict[str, Any]) -> str:
    return (
        f"epsilon {round_up(values['epsilon'])} at delta {values['delta']!r}, unit: one {values['unit']}, "
        f"neighbours: {values['neighbours']}"
    )


def _label_claim(values: dict[str, Any]) -> str:
    kind = f"at delta {values['delta']!r}" if values["delta"] else "(pure)"
    return f"epsilon {round_up(values['epsilon'])} {kind}, unit: one {values['unit']}, neighbours: {values['neighbours']}"


def _watch(where: Where, json: bool) -> None:
    """Until the server goes, which is no error here."""
    with where.server() as client:
        seen = False
        try:
            for listing in client.watch():
                seen = True
                _show(all_values(where, listing), json)
        except ServerGone:
            if not seen:
                raise
    console.err.print("the server has stopped", highlight=False)


def _show(values: dict[str, Any], json: bool) -> None:
    if json:
        console.print_json_line(values)
    else:
        lines = list(status_lines(values))
        console.out.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    sys.stdout.flush()


# -- pause, resume, cancel -------------------------------------------------------------------------------------------------------


def pause(store: str | None, task: str | None, operator: str | None, token_file: Path | None, tls: Path | None) -> None:
    """No more seats in a run until `resume`."""
    with Where(store, operator, token_file, tls).server() as client:
        view = chosen(client.listing().runs, task)
        _moved(view, "pause", lambda: client.pause(view.run))
    console.out.print(f"{_at(view)}: paused; `fedrho resume` goes on", highlight=False, markup=False, soft_wrap=True)


def resume(store: str | None, task: str | None, operator: str | None, token_file: Path | None, tls: Path | None) -> None:
    """Goes on with a paused run."""
    with Where(store, operator, token_file, tls).server() as client:
        view = chosen(client.listing().runs, task)
        _moved(view, "resume", lambda: client.resume(view.run))
    console.out.print(f"{_at(view)}: resumed", highlight=False, markup=False, soft_wrap=True)


def cancel(
    store: str | None, task: str | None, yes: bool, operator: str | None, token_file: Path | None, tls: Path | None
) -> None:
    """Ends a run for good."""
    where = Where(store, operator, token_file, tls)
    if not where.served():
        view = _cancel_stored(where.place(), task, yes)
    else:
        with where.server() as client:
            view = chosen(client.listing().runs, task)
            if not yes:
                _confirm(view)
            _moved(view, "cancel", lambda: client.cancel(view.run))
    console.out.print(
        f"{_at(view)}: cancelled; what was released stays, {_spent(view)}", highlight=False, markup=False, soft_wrap=True
    )


def _cancel_stored(place: str | Path, task: str | None, yes: bool) -> RunView:
    """In a folder that no server uses: for a run that must end before another can begin."""
    from fedrho.server.storage.store import open_store

    view = chosen(read_store(place).runs, task)
    if view.state in (RunState.CANCELLED, RunState.FINISHED):
        raise BadInput(f"cannot cancel {view.name!r}: the run is {view.state.value}")
    if not yes:
        _confirm(view)
    with open_store(place) as opened:
        opened.set_state(view.run, RunState.CANCELLED)
    return view


def _confirm(view: RunView) -> None:
    """Raises BadInput where nobody can be asked, Abort at a no."""
    if not sys.stdin.isatty():
        raise BadInput(f"cancel ends {view.name!r} for good, {_spent(view)}; add --yes to do so")
    typer.confirm(f"{_at(view)} will never go on, {_spent(view)}. Cancel it?", abort=True, err=True)


def _spent(view: RunView) -> str:
    return f"and rho {round_up(view.statement.rho)} of {view.rho_budget:g} stays spent"


def _at(view: RunView) -> str:
    return f"{view.name}, step {view.step} of {view.steps}"


def _moved(view: RunView, verb: str, move: Any) -> None:
    """With the task's name before what the server has against it."""
    try:
        move()
    except ServerGone:
        raise
    except BadInput as error:
        raise BadInput(f"cannot {verb} {view.name!r}: {str(error).partition(': ')[2] or error}") from error


def chosen(views: Sequence[RunView], task: str | None) -> RunView:
    """Raises BadInput where the name is not one of them, or is missing."""
    names = ", ".join(view.name for view in views) or "none"
    if task is None:
        if len(views) != 1:
            raise BadInput(f"--task: which one? There are: {names}")
        return views[0]
    for view in views:
        if view.name == task:
            return view
    raise BadInput(f"--task {task!r}: no such task here; there are: {names}")


# -- export ----------------------------------------------------------------------------------------------------------------------


def export(
    out: Path,
    store: str | None,
    task: str | None,
    force: bool,
    model: Sequence[Path] | None,
    operator: str | None,
    token_file: Path | None,
    tls: Path | None,
) -> None:
    """Writes the latest released weights to a file, with the statement inside."""
    from fedrho.export import check_out, write_export

    check_out(out, force)
    add_models(model or [])
    exported = _exported(Where(store, operator, token_file, tls), task)
    with console.working("writing the model"):
        write_export(out, exported)
    spent = exported.statement
    console.out.print(
        f"{out}: step {spent['step']} of {spent['steps']}, rho {round_up(spent['rho'])}, {_claim(spent)}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _exported(where: Where, task: str | None) -> Any:
    try:
        client = where.client()
        if client is not None:
            with client:
                return client.export(chosen(client.listing().runs, task).run)
    except ServerGone:
        if where.operator is not None:
            raise
    found = read_store(where.place())
    return stored_model(found, chosen(found.runs, task))


# -- where ----------------------------------------------------------------------------------------------------------------------


def latest_store() -> Path:
    return DEFAULT_STORE if DEFAULT_STORE.exists() else recent.latest() or DEFAULT_STORE


def _checked_address(address: str) -> str:
    match = re.fullmatch(r"(?:\[[0-9a-fA-F:]+\]|[^:\s/]+):(\d{1,5})", address)
    if not match or not 0 < int(match[1]) < 65536:
        raise BadInput(f"--operator {address!r}: not HOST:PORT, for example 127.0.0.1:7071")
    return address


def _read_token(path: Path) -> str:
    """Out of a file with nothing else, or out of an operator.json."""
    try:
        others = path.stat().st_mode & 0o077
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--token-file {path}: cannot be read ({getattr(error, 'strerror', 'not text')})") from error
    announced = read_access(path)
    token = announced.token if announced else text
    if not re.fullmatch(rf"[0-9a-f]{{{2 * TOKEN_BYTES}}}", token):
        raise BadInput(f"--token-file {path}: not a token, which is {2 * TOKEN_BYTES} hexadecimal digits")
    if others:
        raise BadInput(f"--token-file {path}: others may read it; chmod 600 it, and restart the server for a new token")
    return token


# -- registration ---------------------------------------------------------------------------------------------------------------
