"""The console command. Exit codes: 0 done, 1 the run failed, 2 bad input or refused, 130 stopped by someone."""

from __future__ import annotations

import os

# Before anything imports gRPC, whose traces and lesser messages name the devices that call.
os.environ.pop("GRPC_TRACE", None)
if os.environ.get("GRPC_VERBOSITY", "").upper() not in ("ERROR", "NONE"):
    os.environ["GRPC_VERBOSITY"] = "NONE"
# Before anything imports TensorFlow, here or in a process that is started from here: it says which processor it was built for.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL") or "3"

import importlib.metadata
import signal
import sys
from typing import Annotated, Final

import typer

from fedrho import console, places, processes, usage
from fedrho.commands import STYLE, LazyGroup
from fedrho.console import Stopped

EXAMPLES: Final = "\n".join(
    (
        "Examples:",
        "  fedrho demo",
        "  fedrho serve examples/digits.toml",
        "  fedrho join 127.0.0.1:7070 --data digits",
        "  fedrho simulate example digits",
        "  fedrho account spend --noise-multiplier 7 --rounds 2000 --days 6",
        "  fedrho labels train --dataset digits --epsilon 1",
        "`fedrho COMMAND --help` says more of each, with an example.",
    )
)

app = typer.Typer(
    help="Federated learning with a privacy guarantee that can be proved, deployed and checked.",
    cls=LazyGroup,
    no_args_is_help=True,
    epilog=EXAMPLES,
    **STYLE,
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Federated learning with a privacy guarantee that can be proved, deployed and checked."""
    if version:
        typer.echo(f"fedrho {importlib.metadata.version('fedrho')}")
        raise typer.Exit


def main() -> None:
    """The entry point: expected errors are one line each, without a traceback."""
    console.as_usual()
    console.keep_stderr()
    console.spell_what_cannot_be_encoded()
    _end_at_sigterm()
    processes.end_with_parent()
    code, text = _run()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what there is to say is said whole
    if code == 130 and console.lively():
        console.err.show_cursor(True)  # whoever stops a bar that is just beginning finds it hidden
    if text:
        console.err.print(f"fedrho: {text}", highlight=False, markup=False, emoji=False, soft_wrap=True)
    sys.exit(code)


def _end_at_sigterm() -> None:
    """As at Ctrl-C, so that a terminal gets its cursor back; commands that have more to do have handlers of their own."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupted)


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


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
    if code is not None:
        return code, places.advised(str(error))
    told = places.told(error) if isinstance(error, OSError) else None
    if told is None:
        raise error
    return 2 if isinstance(error, PermissionError) else 1, told


MENDABLE: Final = (
    "client.app.ServerUnreachable",
    "client.history_file.HistoryError",
    "client.limits.LimitsError",
    "client.stores.checked.DataFileError",
    "console.BadInput",
    "models.base.UnknownModel",
    "models.fit_settings.FitError",
    "privacy.auditing.membership_tfp.AttacksMissing",
    "privacy.labels.priors.BadPriors",
    "privacy.labels.stages.StageError",
    "server.listen.ExposedAddress",
    "server.listen.PortBusy",
    "server.release.StoreConflict",
    "server.storage.leader.StoreBusy",
    "server.tasks.TaskFileError",
    "simulations.data.base.DataError",
    "simulations.folder.FolderError",
    "simulations.state.BadState",
    "simulations.study.StudyError",
)
FAILED: Final = (
    "account_audit.AuditFailed",
    "client.participant.BadPlan",
    "client.participant.CannotTrain",
    "client.spec.BadSpec",
    "client.transport.ServerRefused",
    "demo.DemoFailed",
    "fleet.FleetFailed",
    "labels.audit.AuditFailed",
    "privacy.ledger.BudgetExhausted",
    "privacy.noise.NoiseMismatch",
    "server.app.ShardsMissing",
    "server.chain.HistoryBroken",
    "simulations.engines.base.EngineError",
    "study_running.StudyFailed",
)
"""By name, because to import them takes longer than to fail."""


def _exit_code(error: Exception) -> int | None:
    """2 for what the user can mend, 1 for a run that failed, None for a defect of ours, which deserves its traceback."""
    names = {f"{kind.__module__}.{kind.__qualname__}".removeprefix("fedrho.") for kind in type(error).__mro__}
    if names & set(MENDABLE):
        return 2
    return 1 if names & set(FAILED) else None
