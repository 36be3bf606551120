"""The console command. Exit codes: 0 done, 1 the run failed, 2 bad input or refused, 130 stopped by someone."""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before anything imports gRPC

import asyncio
import importlib.metadata
import re
import signal
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrho import account, account_audit, account_ledger, console, processes, recent, usage
from fedrho.console import BadInput
from fedrho.privacy.ledger import BudgetExhausted
from fedrho.privacy.noise import NoiseMismatch
from fedrho.privacy.statement import round_up
from fedrho.privacy.zcdp import Rho, epsilon
from fedrho.server.tasks import ALGORITHMS, TaskFileError

if TYPE_CHECKING:
    from fedrho.client.examples import ExampleStore
    from fedrho.client.transport import ClientTls
    from fedrho.models.base import ModelSpec
    from fedrho.server.app import ServerTls

app = typer.Typer(
    help="Federated learning with a privacy guarantee that can be proved, deployed and checked.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.add_typer(account.app, name="account")
for command in (account_ledger.ledger, account_audit.audit, account_audit.membership):
    account.app.command()(command)

DEFAULT_STORE = Path("fedrho-run")
DEFAULT_HISTORY = Path(typer.get_app_dir("fedrho")) / "devices"
Algorithm = Enum("Algorithm", {name: name for name in ALGORITHMS})  # type: ignore[misc]
DEFAULT_ALGORITHM = Algorithm("dp-ftrl")


class Stopped(Exception):
    """Someone stopped the command; exit code 130."""


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Federated learning with a privacy guarantee that can be proved, deployed and checked."""
    if version:
        typer.echo(f"fedrho {importlib.metadata.version('fedrho')}")
        raise typer.Exit


@app.command()
def demo(
    algorithm: Annotated[Algorithm, typer.Option(help="How noise is spread over the steps.")] = DEFAULT_ALGORITHM,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps to release.")] = 30,
    devices: Annotated[int, typer.Option(min=4, max=400, help="Devices, each with its own share of the digits.")] = 40,
    processes: Annotated[int, typer.Option(min=1, max=16, help="Client processes that the devices are spread over.")] = 3,
    rho: Annotated[float | None, typer.Option(help="zCDP budget of the whole run, per device.", show_default="10")] = None,
    alpha: Annotated[
        float, typer.Option(min=0.01, max=1000.0, help="Dirichlet concentration of the split; small is less alike.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split of the data; never of the noise.")] = 0,
    store: Annotated[
        Path | None, typer.Option(help="Folder for the state; continues the run it holds.", show_default="a temporary one")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output at the end.")] = False,
) -> None:
    """Train a model on forty devices, here and now, and print the privacy statement that goes with it.

    Example: fedrho demo --algorithm dp-fedavg --store my-demo
    """
    from fedrho import demo as demonstration

    options = demonstration.DemoOptions(algorithm.value, steps, devices, min(processes, devices), alpha, seed, rho, store)
    try:
        result = demonstration.run_demo(options)
    except demonstration.DemoInterrupted as stopped:
        raise Stopped(str(stopped)) from None
    if json:
        console.print_json(result.as_json())
    else:
        demonstration.print_result(result)


@app.command()
def serve(
    task: Annotated[Path, typer.Argument(metavar="TASK.toml", help="The task file.")],
    store: Annotated[Path, typer.Option(help="Folder for the state; continues the run it holds.")] = DEFAULT_STORE,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 7070,
    tls: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Encrypt, with the set that `fedrho keys` made.", show_default="none")
    ] = None,
    require_device_certificate: Annotated[
        bool, typer.Option("--require-device-certificate", help="With --tls: only devices with a certificate of the set.")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow an address that other machines can reach, without encryption.")
    ] = False,
) -> None:
    """Run the aggregation server for one task until every step is released.

    Example: fedrho serve examples/digits.toml --port 7070
    """
    from fedrho.server.app import Listener, check_exposure
    from fedrho.server.app import serve as run_server
    from fedrho.server.coordinator import Coordinator
    from fedrho.server.tasks import load_task

    loaded = load_task(task)
    certificates = _server_tls(tls, require_device_certificate, insecure)
    if certificates is None:
        check_exposure(host, insecure)
    folder = store.resolve()
    with console.StepProgress(loaded.file.steps) as progress:

        def show(coordinator: Coordinator) -> None:
            spent, budget = coordinator.progress.charge.rho, loaded.budget
            progress.show(coordinator.progress.step, f"rho {round_up(spent, 3)} of {budget:g}")

        def listening(address: str, coordinator: Coordinator) -> None:
            recent.remember(folder)
            progress.note(f"listening on {address}, process {os.getpid()}, state in {folder}")
            with_tls = f" --tls {tls}" if tls else ""
            progress.note(f"connect devices with: fedrho join {address} --data digits{with_tls}")
            show(coordinator)

        coordinator = asyncio.run(run_server(loaded, folder, host, port, Listener(listening, show), certificates))
    if not coordinator.finished:
        raise Stopped(f"stopped at step {coordinator.progress.step} of {loaded.file.steps}; the same command continues")
    console.print_statement(coordinator.statement(), loaded.file.privacy.delta)


@app.command()
def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the server listens.")],
    data: Annotated[
        str,
        typer.Option(help="`digits` for the demo's data, or an .npz file with arrays x and y for one device of your own."),
    ],
    devices: Annotated[
        str | None, typer.Option(metavar="FIRST-LAST", help="With digits: which devices to be.", show_default="all")
    ] = None,
    of: Annotated[int, typer.Option(min=1, help="With digits: how many devices share the data.")] = 40,
    alpha: Annotated[float, typer.Option(min=0.01, max=1000.0, help="With digits: Dirichlet concentration of the split.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="With digits: seed of the split.")] = 0,
    history: Annotated[
        Path, typer.Option(help="Folder in which each device remembers what it took part in.", show_default="in your home folder")
    ] = DEFAULT_HISTORY,
    tls: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Encrypt, with a folder that has at least ca.crt.", show_default="none")
    ] = None,
    wait: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the server to answer at first.")] = 10.0,
    patience: Annotated[float, typer.Option(min=1.0, help="Seconds a server may be away later.")] = 120.0,
) -> None:
    """Be one or more devices: check in, train locally, upload clipped updates, until the run has ended.

    Example: fedrho join 127.0.0.1:7070 --data digits --devices 0-19
    """
    from fedrho.client.app import read_population, run_devices
    from fedrho.client.participant import Outcome
    from fedrho.models.zoo import lookup

    _check_address(address)
    source = _source(data, devices, of, alpha, seed)
    certificates = _client_tls(tls)
    spec = asyncio.run(read_population(address, wait, certificates))
    examples = source(lookup(spec.model))
    with console.StepProgress(spec.steps) as progress:

        def show(name: str, outcome: Outcome) -> None:
            progress.show(outcome.released, f"{name} {outcome.result.value}")

        results = asyncio.run(run_devices(address, examples, history, patience, show, certificates))
    summary = ", ".join(f"{count} {result.value}" for result, count in sorted(results.items(), key=lambda item: item[0].value))
    console.out.print(f"{len(examples)} devices: {summary}", highlight=False)


@app.command()
def keys(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the set goes; made if it is not there.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address by which devices reach the server. Repeatable.", show_default="this machine alone"),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the certificates are valid.")] = 365,
) -> None:
    """Make a working set of certificates: an authority, a server, and a device.

    Example: fedrho keys certificates --host fl.example.org
    """
    from fedrho.keys import make_keys

    make_keys(folder, host or ["localhost", "127.0.0.1", "::1"], days)
    console.out.print(f"{folder}: ca, server and device; give ca.crt to devices, keep ca.key off the server", highlight=False)


@app.command()
def status(
    store: Annotated[
        Path | None,
        typer.Argument(help="A server's state folder, or a demo's.", show_default="fedrho-run here, else the latest run"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Tell how far a run is and what it has spent.

    Example: fedrho status fedrho-run --json
    """
    values = _status((store or _latest_store()).resolve())
    if json:
        console.print_json(values)
        return
    state = "finished" if values["finished"] else f"running at {values['address']}" if values["running"] else "stopped"
    console.out.print(
        f"{values['task']} ({values['algorithm']}): step {values['step']} of {values['steps']}, {state}",
        highlight=False,
    )
    console.out.print(
        f"rho {round_up(values['rho'])} of {values['rho_budget']:g}, epsilon {round_up(values['epsilon'])} "
        f"at delta {values['delta']!r}, unit: one {values['unit']}, neighbours: {values['neighbours']} (assumptions: --json)",
        highlight=False,
    )


def _server_tls(folder: Path | None, require_device_certificate: bool, insecure: bool) -> ServerTls | None:
    if folder is None:
        if require_device_certificate:
            raise BadInput("--require-device-certificate: needs --tls; add it, or leave it out")
        return None
    if insecure:
        raise BadInput("--insecure: contradicts --tls; leave one of them out")
    from fedrho.keys import server_tls

    return server_tls(folder, require_device_certificate)


def _client_tls(folder: Path | None) -> ClientTls | None:
    if folder is None:
        return None
    from fedrho.keys import client_tls

    return client_tls(folder)


def _latest_store() -> Path:
    return DEFAULT_STORE if DEFAULT_STORE.exists() else recent.latest() or DEFAULT_STORE


def _status(folder: Path) -> dict[str, Any]:
    from fedrho.server.app import read_address
    from fedrho.server.ledger import Charge, statement
    from fedrho.server.store import read_status
    from fedrho.server.tasks import build_task

    for place in (folder, folder / "server"):
        found = read_status(place)
        if found is not None:
            break
    else:
        raise BadInput(f"{folder}: no run here; `fedrho serve TASK.toml --store FOLDER` makes one")
    spent = statement(build_task(found.file), Charge(found.step, Rho(found.rho)))
    address = read_address(place) if found.running else None
    return {
        "task": found.file.name,
        "algorithm": found.file.algorithm,
        "model": found.file.model,
        "step": found.step,
        "steps": found.file.steps,
        "finished": found.step >= found.file.steps,
        "running": found.running,
        "rho": spent.rho,
        "rho_budget": found.file.privacy.rho,
        "epsilon": epsilon(spent.rho, found.file.privacy.delta),
        "delta": found.file.privacy.delta,
        "unit": spent.unit.value,
        "neighbours": spent.neighbours.value,
        "assumptions": list(spent.assumptions),
        "address": address[0] if address else None,
        "pid": address[1] if address else None,
        "store": str(place),
    }


def _check_address(address: str) -> None:
    match = re.fullmatch(r"(?:\[[0-9a-fA-F:]+\]|[^:\s/]+):(\d{1,5})", address)
    if not match or not 0 < int(match[1]) < 65536:
        raise BadInput(f"{address!r} is not HOST:PORT, for example 127.0.0.1:7070")


def _source(data: str, devices: str | None, of: int, alpha: float, seed: int) -> Callable[[ModelSpec], dict[str, ExampleStore]]:
    """How to get every device's examples once the model is known; what can be refused before is refused here."""
    if data == "digits":
        first, last = _range(devices or f"0-{of - 1}", of)
        return lambda spec: _digits(spec, first, last, of, alpha, seed)
    path = Path(data)
    if not path.is_file():
        raise BadInput(f"--data {data}: no such file; allowed: digits, or an .npz file with arrays x and y")
    return lambda spec: {path.stem: _own_file(path, spec)}


def _digits(spec: ModelSpec, first: int, last: int, of: int, alpha: float, seed: int) -> dict[str, ExampleStore]:
    from fedrho.models.digits import INPUT_SHAPE
    from fedrho.simulations.population import digits

    if spec.input_shape != INPUT_SHAPE:
        raise BadInput(
            f"--data digits: the server trains {spec.name!r}, which takes inputs of shape {spec.input_shape}, not {INPUT_SHAPE}"
        )
    try:
        shares = digits(of, alpha, seed).devices
    except ValueError as error:
        raise BadInput(f"--of: {error}") from error
    return {f"device-{number:03d}": shares[number] for number in range(first, last + 1)}


def _range(text: str, of: int) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match:
        first, last = int(match[1]), int(match[2] or match[1])
        if first <= last < of:
            return first, last
    raise BadInput(f"--devices {text!r}: allowed: FIRST-LAST with 0 <= FIRST <= LAST < {of}")


def _own_file(path: Path, spec: ModelSpec) -> ExampleStore:
    from fedrho.client.files import load_npz

    return load_npz(path, spec)


def main() -> None:
    """The entry point: expected errors are one line each, without a traceback."""
    console.keep_stderr()
    processes.end_with_parent()
    code, text = _run()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what there is to say is said whole
    if text:
        console.err.print(f"fedrho: {text}", highlight=False, markup=False, soft_wrap=True)
    sys.exit(code)


def _run() -> tuple[int, str]:
    try:
        code = app(standalone_mode=False, prog_name="fedrho") or 0
        if sys.stdout is not None:
            sys.stdout.flush()
    except Stopped as stopped:
        return 130, str(stopped)
    except (KeyboardInterrupt, typer.Abort):
        return 130, "stopped"
    except usage.CLICK_ERRORS as error:
        return error.exit_code, usage.misused(error)
    except MemoryError:
        return 1, "there is not enough memory for this; take smaller numbers"
    except OSError as error:
        if error.filename is not None or _exit_code(error) is not None or not console.stdout_fails():
            return _expected(error)
        return 1, "" if isinstance(error, BrokenPipeError) else f"standard output cannot be written: {error.strerror}"
    except Exception as error:
        return _expected(error)
    return code, "stopped" if code == 130 else ""


def _expected(error: Exception) -> tuple[int, str]:
    """Raises the error itself where it is a defect of ours."""
    code = _exit_code(error)
    if code is None:
        raise error
    return code, str(error)


def _exit_code(error: Exception) -> int | None:
    """2 for what the user can mend, 1 for a run that failed, None for a defect of ours, which deserves its traceback."""
    from fedrho.client.app import ServerUnreachable
    from fedrho.client.files import DataFileError
    from fedrho.client.history import HistoryError
    from fedrho.client.participant import BadPlan
    from fedrho.client.transport import ServerRefused
    from fedrho.demo import DemoFailed
    from fedrho.models.base import UnknownModel
    from fedrho.privacy.auditing.membership_tfp import AttacksMissing
    from fedrho.server.app import ExposedAddress, PortBusy
    from fedrho.server.chain import HistoryBroken
    from fedrho.server.release import StoreConflict
    from fedrho.server.store import StoreBusy

    mendable = (
        AttacksMissing,
        BadInput,
        TaskFileError,
        UnknownModel,
        PortBusy,
        ExposedAddress,
        StoreConflict,
        StoreBusy,
        ServerUnreachable,
        DataFileError,
        HistoryError,
    )
    if isinstance(error, mendable):
        return 2
    failed = (account_audit.AuditFailed, BadPlan, BudgetExhausted, DemoFailed, HistoryBroken, NoiseMismatch, ServerRefused)
    return 1 if isinstance(error, failed) else None
