"""The commands that run servers: `serve`, for the population's coordinator, and `shard`, for a process that takes uploads."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrho import console, processes, recent
from fedrho.console import BadInput, Stopped
from fedrho.metrics_ports import MetricsPorts, metrics_ports
from fedrho.output_options import Quiet
from fedrho.privacy.statement import round_up
from fedrho.privacy.zcdp import Rho
from fedrho.progress import StepProgress
from fedrho.server.tasks import Task

if TYPE_CHECKING:
    import subprocess

    from fedrho.server.app import Shards
    from fedrho.server.coordinator import Coordinator
    from fedrho.server.listen import ServerTls
    from fedrho.server.operations.observer import Observer
    from fedrho.server.operations.operator_port import OperatorPlace
    from fedrho.server.population import Population, Signer

DEFAULT_STORE = Path("fedrho-run")
OWN_KEY = "population.key"
RESTART_SECONDS = 0.5
MIB = 1024 * 1024
LEAST_MEMORY = 8
"""MiB for updates on their way."""

# Panels of the help, of few options each, so that the longest name is whole at 80 columns.
keys_option = partial(typer.Option, rich_help_panel="Encryption and keys")
operators_option = partial(typer.Option, rich_help_panel="Operators and dashboard")
looking_on_option = partial(typer.Option, rich_help_panel="Metrics, traces, logs")
TlsFolder = Annotated[
    Path | None,
    keys_option(metavar="FOLDER", help="Encrypt, with the set that `fedrho keys` made.", show_default="none"),
]
Insecure = Annotated[
    bool,
    keys_option("--insecure", help="Allow an address that other machines can reach, without encryption."),
]
DeviceCertificate = Annotated[
    bool,
    keys_option("--require-device-certificate", help="With --tls: only devices with a certificate of the set."),
]
Memory = Annotated[int, typer.Option(min=LEAST_MEMORY, metavar="MIB", help="Memory for updates on their way, in MiB.")]

Connections = Annotated[
    int, typer.Option("--max-connections", min=1, max=65536, metavar="N", help="Connections of devices that are open at a time.")
]


class Format(Enum):
    text = "text"
    json = "json"


MetricsHost = Annotated[str, looking_on_option(help="Address at which metrics are published.")]
MetricsPort = Annotated[
    int | None,
    looking_on_option(
        metavar="PORT",
        min=0,
        max=65535,
        help="Port for Prometheus; 0 takes a free one.",
        show_default="none",
    ),
]
TracesUrl = Annotated[
    str | None,
    looking_on_option(
        "--traces",
        metavar="URL",
        help="Send traces there, by OTLP over HTTP: fedrho\\[traces].",
        show_default="none",
    ),
]
LogFormat = Annotated[
    Format | None,
    looking_on_option(help="Say in log lines what happens.", show_default="warnings alone, as text"),
]
LogFile = Annotated[
    Path | None,
    looking_on_option(metavar="FILE", help="Where log lines go, for its owner alone.", show_default="standard error"),
]


def serve(
    tasks: Annotated[list[Path], typer.Argument(metavar="TASK.toml...", help="Task files; all run on the same devices.")],
    store: Annotated[
        str, typer.Option(help="Folder for the state, or the URL of a PostgreSQL database; continues the runs it holds.")
    ] = str(DEFAULT_STORE),
    blobs: Annotated[
        str | None, typer.Option(help="With a database: where weights go, a URL such as s3://bucket/name.", show_default="none")
    ] = None,
    standby: Annotated[
        bool, typer.Option("--standby", help="Wait while another server leads the store, and take over when it is gone.")
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help="Port for devices; 0 takes a free one.")] = 7070,
    tls: TlsFolder = None,
    require_device_certificate: DeviceCertificate = False,
    require_device_token: Annotated[
        bool,
        keys_option("--require-device-token", help="With --tls: only devices with a token of the set."),
    ] = False,
    insecure: Insecure = False,
    signing_key: Annotated[
        Path | None,
        keys_option(
            metavar="FILE",
            help="Key that signs what devices decide upon.",
            show_default="of --tls, else of the store",
        ),
    ] = None,
    rho_budget: Annotated[
        float | None,
        typer.Option(
            metavar="RHO", min=0, help="zCDP budget of all runs of the store together.", show_default="the sum of the tasks' own"
        ),
    ] = None,
    shards: Annotated[
        int, typer.Option(metavar="N", min=0, max=256, help="Processes of their own that take uploads; 0 takes them in this one.")
    ] = 0,
    shard: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT", help="Where a `fedrho shard` elsewhere hears this server. Repeatable.", show_default="none"
        ),
    ] = None,
    upload_memory: Memory = 512,
    max_connections: Connections = 2048,
    operator_host: Annotated[
        str, operators_option(help="Address for operators; beyond this machine it needs --tls.")
    ] = "127.0.0.1",
    operator_port: Annotated[
        int,
        operators_option(metavar="PORT", min=0, max=65535, help="Port for operators; 0 takes a free one."),
    ] = 0,
    dashboard_port: Annotated[
        int | None,
        operators_option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Port of the dashboard, for browsers; 0 takes a free one.",
            show_default="0 on this machine",
        ),
    ] = None,
    no_dashboard: Annotated[bool, operators_option("--no-dashboard", help="Serve no dashboard.")] = False,
    metrics_host: MetricsHost = "127.0.0.1",
    metrics_port: MetricsPort = None,
    traces: TracesUrl = None,
    log_format: LogFormat = None,
    log_file: LogFile = None,
    quiet: Quiet = False,
) -> None:
    """Run the aggregation server until every step of every task is released.

    Example: fedrho serve examples/digits.toml --port 7070
    """
    from fedrho.server.allocator import trimmed
    from fedrho.server.app import Listener, Serving
    from fedrho.server.app import serve as run_server
    from fedrho.server.hardening import forbid_core_dumps
    from fedrho.server.listen import check_exposure

    forbid_core_dumps()
    loaded = _load(tasks)
    if rho_budget is not None and not 0 < rho_budget < math.inf:
        raise BadInput(f"--rho-budget: must be a finite number above 0, not {rho_budget:g}")
    _log(log_format, log_file, quiet)
    place: Path | str = store if "://" in store else Path(store).resolve()
    certificates = _server_tls(tls, require_device_certificate, insecure)
    if certificates is None:
        check_exposure(host, insecure)
    signer, issuer = _signer(signing_key, tls, place), _issuer(tls, require_device_token)
    options = _child_options(host, tls, insecure, require_device_certificate, upload_memory // max(1, shards))
    options += ["--max-connections", str(max_connections), *(["--log-format", log_format.value] if log_format else [])]
    options += ["--traces", traces] if traces else []
    published = metrics_ports(metrics_host, metrics_port, shards, [port, operator_port, dashboard_port or 0])
    with (
        _observer(traces) as observer,
        StepProgress(sum(task.file.steps for task in loaded)) as progress,
        _children(shards, options, published) as children,
    ):
        serving = Serving(
            tasks=loaded,
            store=place,
            blobs=blobs,
            signer=signer,
            host=host,
            port=port,
            tls=certificates,
            issuer=issuer,
            rho_budget=None if rho_budget is None else Rho(rho_budget),
            upload_memory=upload_memory * MIB,
            shards=_shards(children, shard or (), tls),
            operator=_operator(place, tls, operator_host, operator_port),
            dashboard=_dashboard(operator_host, dashboard_port, no_dashboard),
            metrics=None if metrics_port is None else (metrics_host, metrics_port),
            standby=standby,
            connections=max_connections,
            observer=observer,
        )
        shown = Display(progress, place, tls, published)
        listener = Listener(shown.listening, shown.released, shown.dashboard, shown.checking, shown.metrics)
        with trimmed():
            population = asyncio.run(run_server(serving, listener))
    _finish(population, quiet)


class Display:
    """What `serve` says as it goes."""

    def __init__(self, progress: StepProgress, place: Path | str, tls: Path | None, published: MetricsPorts | None) -> None:
        self._progress = progress
        self._place = place
        self._published = published
        self._with_tls = f" --tls {_devices_folder(tls)}" if tls else ""

    def listening(self, address: str, population: Population) -> None:
        self._population = population
        if isinstance(self._place, Path):
            recent.remember(self._place)
        self._progress.note(f"listening on {address}, process {os.getpid()}, state in {_shown(self._place)}")
        self._progress.note(
            f"connect devices with: fedrho join {_seen_from_devices(address)} --data {_data(population)}{self._with_tls}"
        )
        self._show()

    def checking(self, unit: str, done: int, total: int | None, doing: str) -> None:
        """Of what the store holds already, before anything is served."""
        self._progress.say(f"{doing}, {unit} {done} of {total}")

    def dashboard(self, address: str) -> None:
        """Told before `listening`."""
        self._progress.note(f"dashboard: {address}, for whoever has the token in operator.json")

    def metrics(self, address: str) -> None:
        """Told before `listening`."""
        if self._published is not None:
            self._progress.note(self._published.said(address))

    def released(self, coordinator: Coordinator) -> None:
        self._show()

    def _show(self) -> None:
        views = self._population.views()
        spent = [f"{round_up(view.statement.rho, 3)} of {view.rho_budget:g}" for view in views]
        named = [f"{view.name} {text}" for view, text in zip(views, spent, strict=True)]
        self._progress.show(sum(view.step for view in views), f"rho {', '.join(named if len(views) > 1 else spent)}")


def shard(
    control: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the coordinator is heard; also unix:PATH.")],
    host: Annotated[str, typer.Option(help="Address to listen on for devices.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, max=65535, help="Port for devices; 0 takes a free one.")] = 0,
    announce: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where devices reach this shard.", show_default="its port, on the server's host"),
    ] = None,
    tls: TlsFolder = None,
    require_device_certificate: DeviceCertificate = False,
    insecure: Insecure = False,
    upload_memory: Memory = 512,
    max_connections: Connections = 2048,
    metrics_host: MetricsHost = "127.0.0.1",
    metrics_port: MetricsPort = None,
    traces: TracesUrl = None,
    log_format: LogFormat = None,
    log_file: LogFile = None,
    quiet: Quiet = False,
) -> None:
    """Take uploads for a server elsewhere: `fedrho serve TASK.toml --shard HOST:PORT`. Holds sums in memory alone.

    Example: fedrho shard 127.0.0.1:7171 --port 7170
    """
    from fedrho.server.allocator import trimmed
    from fedrho.server.hardening import forbid_core_dumps
    from fedrho.server.listen import check_exposure
    from fedrho.server.shard_process import ShardPlace, run_shard

    forbid_core_dumps()
    _check_heard("HOST:PORT", control)
    _log(log_format, log_file, quiet)
    certificates = _server_tls(tls, require_device_certificate, insecure)
    control_tls = None
    if tls is not None and not control.startswith("unix:"):
        from fedrho.keys import shard_tls

        control_tls = shard_tls(tls)
    if certificates is None:
        check_exposure(host, insecure)
        if not control.startswith("unix:"):
            check_exposure(control.rpartition(":")[0], insecure)

    def listening(address: str) -> None:
        if not quiet:
            console.err.print(f"listening on {address} for devices, on {control} for the coordinator", highlight=False)

    def publishing(address: str) -> None:
        if not quiet:
            console.err.print(MetricsPorts(metrics_host, metrics_port or 0).said(address), highlight=False)

    with _observer(traces) as observer, trimmed():
        place = ShardPlace(
            host=host,
            port=port,
            control=control,
            announce=announce,
            memory=upload_memory * MIB,
            tls=certificates,
            control_tls=control_tls,
            connections=max_connections,
            metrics=None if metrics_port is None else (metrics_host, metrics_port),
            observer=observer,
        )
        asyncio.run(run_shard(place, listening, publishing))


def _load(paths: Sequence[Path]) -> tuple[Task, ...]:
    from fedrho.server.tasks import load_task

    loaded = tuple(load_task(path) for path in paths)
    names = [task.file.name for task in loaded]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"two tasks are called {twice!r}; every task of a population needs a name of its own")
    return loaded


def _log(form: Format | None, path: Path | None, quiet: bool) -> None:
    """Warnings alone, unless a format or a file asks for more; a bar on a terminal says the rest."""
    from fedrho.server.operations import logs

    usual = logging.ERROR if quiet else logging.WARNING
    level = usual if form is None and path is None else logging.INFO
    try:
        logs.configure(logs.LogFormat((form or Format.text).value), path, level)
    except OSError as error:
        raise BadInput(f"--log-file {path}: cannot be written ({error.strerror})") from error


def _observer(traces: str | None) -> AbstractContextManager[Observer]:
    """Who is told beside the metrics; raises BadInput for traces that could not be sent."""
    from fedrho.server.operations.observer import Observer

    if traces is None:
        return nullcontext(Observer())
    try:
        from fedrho.server.operations.traces import BadUrl, sent_to

        return sent_to(traces)
    except ImportError as error:
        raise BadInput('--traces: needs OpenTelemetry; install it with `pip install "fedrho[traces]"`') from error
    except BadUrl as error:
        raise BadInput(f"--traces {traces}: {error}") from error


def _operator(place: Path | str, tls: Path | None, host: str, port: int) -> OperatorPlace:
    """Where operators are let in; what opens the door lies in the store's folder, or in the working folder."""
    from fedrho.server.operations.operator_port import OPERATOR_FILE, OperatorPlace

    file = (place if isinstance(place, Path) else Path.cwd()) / OPERATOR_FILE
    if tls is None or not (tls / "server" / "operator-server.crt").exists():
        return OperatorPlace(file, host, port)
    from fedrho.keys import operator_server_tls

    return OperatorPlace(file, host, port, operator_server_tls(tls))


def _dashboard(operator_host: str, port: int | None, none: bool) -> int | None:
    """On this machine unless it is not wanted; where others can reach it only if it was asked for."""
    from fedrho.server.listen import ExposedAddress, check_exposure

    if none:
        if port is not None:
            raise BadInput("--no-dashboard: contradicts --dashboard-port; leave one of them out")
        return None
    try:
        check_exposure(operator_host, insecure=False)
    except ExposedAddress:
        return port
    return port or 0


def _data(population: Population) -> str:
    """What `join --data` takes for these tasks, as far as it is known here: the demo's data fit the demo's models alone."""
    return "digits" if all(view.model.startswith("digits-") for view in population.views()) else "SOURCE"


def _shown(place: Path | str) -> str:
    """Without the password that a URL may hold."""
    if isinstance(place, Path):
        return str(place)
    scheme, _, rest = place.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def _finish(population: Population, quiet: bool) -> None:
    """Says how it ended: the statement, or where to go on."""
    unfinished = [view for view in population.views() if view.state.value in ("active", "paused")]
    if unfinished:
        where = [f"{f'{view.name} ' if len(unfinished) > 1 else ''}at step {view.step} of {view.steps}" for view in unfinished]
        raise Stopped(f"stopped {', '.join(where)}; the same command continues")
    if quiet:
        return
    console.print_statement(population.combined(), min(view.delta for view in population.views()))
    for view in population.views():
        if view.labels is not None:
            console.print_claim(
                view.labels.rows(), view.labels.assumptions, f"about labels, of {view.name}; never added to the other"
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


def _devices_folder(tls: Path) -> Path:
    """What devices are given of the server's set; of one that lies elsewhere, under the name that it is made with."""
    return next((place for place in (tls / "device", tls.parent / "device") if place.is_dir()), Path("device"))


def _seen_from_devices(address: str) -> str:
    """Under a name of the host, where the server listens at all of its addresses."""
    host, _, port = address.rpartition(":")
    return f"HOST:{port}" if host in ("0.0.0.0", "[::]") else address


def _issuer(tls: Path | None, wanted: bool) -> bytes | None:
    if not wanted:
        return None
    if tls is None:
        raise BadInput("--require-device-token: needs --tls; add it, or leave it out")
    from fedrho.keys import issuer_key

    return issuer_key(str(tls))


def _signer(named: Path | None, tls: Path | None, place: Path | str) -> Callable[[], Signer]:
    """The key that signs specs: the one named, the one of the set, or one that the store keeps for itself."""
    from fedrho.keys import has_signing_key, signing_key

    if named is not None:
        key = signing_key(named)
        return lambda: key
    if tls is not None and has_signing_key(tls):
        key = signing_key(tls)
        return lambda: key
    if isinstance(place, str):
        raise BadInput(
            "--signing-key: missing; with a database, say where the key of the population is (`fedrho keys` makes one)"
        )
    return lambda: _own_key(place / OWN_KEY)


def _own_key(path: Path) -> Signer:
    """Made the first time, for this store alone."""
    from fedrho.key_making import write_secret
    from fedrho.keys import signing_key
    from fedrho.protos.signing import SigningKey

    if not path.exists():
        write_secret(path, SigningKey.generate().to_pem())
    return signing_key(path)


def _shards(children: Sequence[str], elsewhere: Sequence[str], tls: Path | None) -> Shards:
    from fedrho.server.app import Shards

    if children and elsewhere:
        raise BadInput("--shards: contradicts --shard; leave one of them out")
    for address in elsewhere:
        _check_heard("--shard", address)
    if not elsewhere or tls is None:
        return Shards((*children, *elsewhere))
    from fedrho.keys import SHARD_NAME, coordinator_tls

    return Shards(tuple(elsewhere), coordinator_tls(tls).credentials(), SHARD_NAME)


def _check_heard(name: str, address: str) -> None:
    """Where a coordinator and its shard hear each other: HOST:PORT, or unix:PATH."""
    host, _, port = address.rpartition(":")
    if not address.startswith("unix:") and not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise BadInput(f"{name} {address}: not HOST:PORT, for example 127.0.0.1:7171, nor unix:PATH")


def _child_options(host: str, tls: Path | None, insecure: bool, certificate: bool, memory: int) -> list[str]:
    """What a shard of this machine is told of what the server was told."""
    options = ["--host", host, "--upload-memory", str(max(LEAST_MEMORY, memory))]
    options += ["--tls", str(tls.resolve())] if tls else ["--insecure"] if insecure else []
    return [*options, "--require-device-certificate"] if certificate else options


@contextmanager
def _children(count: int, options: Sequence[str], published: MetricsPorts | None) -> Iterator[list[str]]:
    """Shard processes on this machine while the block runs, each started again when it dies; where they are heard."""
    if count == 0:
        yield []
        return
    folder = Path(tempfile.mkdtemp(prefix="fedrho-"))  # for its owner alone; the path of a socket must be short
    targets = [f"unix:{folder / f'{number}.sock'}" for number in range(count)]

    def start(number: int) -> subprocess.Popen[bytes]:
        own = published.options(number) if published is not None else []
        return processes.start(["shard", targets[number], *options, *own], folder / f"{number}.log")

    over, children = threading.Event(), [start(number) for number in range(count)]

    def mend() -> None:
        while not over.wait(RESTART_SECONDS):
            for number, child in enumerate(children):
                if child.poll() is not None:
                    children[number] = start(number)

    mender = threading.Thread(target=mend, daemon=True)
    mender.start()
    try:
        yield targets
    finally:
        over.set()
        mender.join()
        processes.stop(children)
        shutil.rmtree(folder, ignore_errors=True)
