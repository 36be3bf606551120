"""The console command. Exit codes: 0 done, 1 the run failed, 2 bad input or refused, 130 stopped by someone."""

from __future__ import annotations

import os

# Before anything imports gRPC, whose traces and lesser messages name the devices that call.
os.environ.pop("GRPC_TRACE", None)
if os.environ.get("GRPC_VERBOSITY", "").upper() not in ("ERROR", "NONE"):
    os.environ["GRPC_VERBOSITY"] = "NONE"

import importlib.metadata
import signal
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrho import account, account_audit, account_ledger, console, device, fleet, joining, operate, processes, serving, usage
from fedrho.console import BadInput, Stopped
from fedrho.privacy.ledger import BudgetExhausted
from fedrho.privacy.noise import NoiseMismatch
from fedrho.server.tasks import ALGORITHMS, TaskFileError

if TYPE_CHECKING:
    pass

app = typer.Typer(
    help="Federated learning with a privacy guarantee that can be proved, deployed and checked.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

app.add_typer(account.app, name="account")
app.add_typer(device.app, name="device")
for command in (account_ledger.ledger, account_audit.audit, account_audit.membership):
    account.app.command()(command)

app.command()(serving.serve)
app.command()(serving.shard)
app.command()(joining.join)
app.command()(fleet.fleet)
for command in operate.COMMANDS:
    app.command()(command)

Algorithm = Enum("Algorithm", {name: name for name in ALGORITHMS})  # type: ignore[misc]
DEFAULT_ALGORITHM = Algorithm("dp-ftrl")


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
def keys(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the set goes; made if it is not there.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address by which devices reach the server. Repeatable.", show_default="this machine alone"),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long certificates and tokens are valid.")] = 365,
    devices: Annotated[
        int, typer.Option(min=0, max=100_000, help="Tokens to make, one for one device; further ones where a set is already.")
    ] = 0,
) -> None:
    """Make a working set of keys: for server, devices, shards and operators, each its own folder.

    Example: fedrho keys certificates --host fl.example.org --devices 40
    """
    from fedrho.key_making import add_devices, holds_set, make_keys

    if devices and holds_set(folder):
        if host:
            raise BadInput(f"--host: the certificates in {folder} stay as they are; leave it out to add tokens")
        add_devices(folder, devices, days)
        console.out.print(f"{folder}/devices: {devices} more tokens, one for one device", highlight=False, soft_wrap=True)
        return
    make_keys(folder, host or (), days, devices)
    console.out.print(
        f"{folder}: give device/ to every device and a file of devices/ to one, take offline/ off every network",
        highlight=False,
        soft_wrap=True,
    )


def main() -> None:
    """The entry point: expected errors are one line each, without a traceback."""
    console.keep_stderr()
    processes.end_with_parent()
    code, text = _run()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what there is to say is said whole
    if text:
        console.err.print(f"fedrho: {text}", highlight=False, markup=False, emoji=False, soft_wrap=True)
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
    from fedrho.client.history import HistoryError
    from fedrho.client.limits import LimitsError
    from fedrho.client.participant import BadPlan, CannotTrain
    from fedrho.client.spec import BadSpec
    from fedrho.client.stores.checked import DataFileError
    from fedrho.client.transport import ServerRefused
    from fedrho.demo import DemoFailed
    from fedrho.models.base import UnknownModel
    from fedrho.privacy.auditing.membership_tfp import AttacksMissing
    from fedrho.server.app import ShardsMissing
    from fedrho.server.chain import HistoryBroken
    from fedrho.server.listen import ExposedAddress, PortBusy
    from fedrho.server.release import StoreConflict
    from fedrho.server.storage.store import StoreBusy

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
        LimitsError,
    )
    if isinstance(error, mendable):
        return 2
    failed = (
        account_audit.AuditFailed,
        BadPlan,
        BadSpec,
        BudgetExhausted,
        CannotTrain,
        DemoFailed,
        fleet.FleetFailed,
        HistoryBroken,
        NoiseMismatch,
        ServerRefused,
        ShardsMissing,
    )
    return 1 if isinstance(error, failed) else None
