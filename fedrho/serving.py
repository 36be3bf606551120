"""The command `serve`: the aggregation server of a population."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrho import console, recent
from fedrho.console import BadInput, Stopped
from fedrho.metrics_ports import MetricsPorts, metrics_ports
from fedrho.output_options import JsonAtEnd, Quiet
from fedrho.privacy.statement import round_up
from fedrho.privacy.zcdp import Rho
from fedrho.progress import StepProgress
from fedrho.server.tasks import Task
from fedrho.serving_options import (
    MIB,
    Connections,
    DeviceCertificate,
    Insecure,
    LogFile,
    LogFormat,
    Memory,
    MetricsHost,
    MetricsPort,
    TlsFolder,
    TracesUrl,
    check_heard,
    keys_option,
    log,
    observer,
    operators_option,
    server_tls,
)
from fedrho.sharding import child_options, children

if TYPE_CHECKING:
    from fedrho.server.app import Shards
    from fedrho.server.coordinator import Coordinator
    from fedrho.server.listen import ServerTls
    from fedrho.server.operations.operator_port import OperatorPlace
    from fedrho.server.population import Population, Signer

DEFAULT_STORE = Path("fedrho-run")
OWN_KEY = "population.key"


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
    json: JsonAtEnd = False,
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
    log(log_format, log_file, quiet)
    place: Path | str = store if "://" in store else Path(store).resolve()
    certificates = server_tls(tls, require_device_certificate, insecure)
    if certificates is None:
        check_exposure(host, insecure)
    signer, issuer = _signer(signing_key, tls, place), _issuer(tls, require_device_token)
    options = child_options(host, tls, insecure, require_device_certificate, upload_memory // max(1, shards))
    options += ["--max-connections", str(max_connections), *(["--log-format", log_format.value] if log_format else [])]
    options += ["--traces", traces] if traces else []
    published = metrics_ports(metrics_host, metrics_port, shards, [port, operator_port, dashboard_port or 0])
    with (
        observer(traces) as told,
        StepProgress(sum(task.file.steps for task in loaded)) as progress,
        children(shards, options, published) as beside,
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
            shards=_shards(beside, shard or (), tls),
            operator=_operator(place, tls, operator_host, operator_port),
            dashboard=_dashboard(operator_host, dashboard_port, no_dashboard),
            metrics=None if metrics_port is None else (metrics_host, metrics_port),
            standby=standby,
            connections=max_connections,
            observer=told,
        )
        shown = Display(progress, place, published, partial(_joining, tls, certificates, require_device_token))
        listener = Listener(shown.listening, shown.released, shown.dashboard, shown.checking, shown.metrics)
        with trimmed():
            population = asyncio.run(run_server(serving, listener))
    _check_finished(population)
    if json:
        from fedrho.operate import Where, status_values

        console.print_json(status_values(Where(store, None, None, None)))
    elif not quiet:
        _print_statements(population)


class Display:
    """What `serve` says as it goes."""

    def __init__(
        self, progress: StepProgress, place: Path | str, published: MetricsPorts | None, joining: Callable[[str, str], str]
    ) -> None:
        self._progress = progress
        self._place = place
        self._published = published
        self._joining = joining

    def listening(self, address: str, population: Population) -> None:
        self._population = population
        if isinstance(self._place, Path):
            recent.remember(self._place)
        self._progress.note(f"listening on {address}, process {os.getpid()}, state in {_shown(self._place)}")
        self._progress.note(f"connect devices with: {self._joining(address, _data(population))}")
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


def _load(paths: Sequence[Path]) -> tuple[Task, ...]:
    from fedrho.server.tasks import load_task

    loaded = tuple(load_task(path) for path in paths)
    names = [task.file.name for task in loaded]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"two tasks are called {twice!r}; every task of a population needs a name of its own")
    return loaded


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


def _check_finished(population: Population) -> None:
    """Raises Stopped, which says where to go on."""
    unfinished = [view for view in population.views() if view.state.value in ("active", "paused")]
    if unfinished:
        where = [f"{f'{view.name} ' if len(unfinished) > 1 else ''}at step {view.step} of {view.steps}" for view in unfinished]
        raise Stopped(f"stopped {', '.join(where)}; the same command continues")


def _print_statements(population: Population) -> None:
    console.print_statement(population.combined(), min(view.delta for view in population.views()))
    for view in population.views():
        if view.labels is not None:
            console.print_claim(
                view.labels.rows(), view.labels.assumptions, f"about labels, of {view.name}; never added to the other"
            )


def _joining(tls: Path | None, certificates: ServerTls | None, tokens: bool, address: str, data: str) -> str:
    """The command of a device: a name of the host that the certificate is good for, what it is to trust, what it has to show."""
    seen = _seen_from_devices(address, certificates)
    command = f"fedrho join {seen} --data {data}{f' --tls {_devices_folder(tls)}' if tls else ''}"
    return f"{command} --tokens TOKENS" if tokens else command


def _devices_folder(tls: Path) -> Path:
    """What devices are given of the server's set; of one that lies elsewhere, under the name that it is made with."""
    return next((place for place in (tls / "device", tls.parent / "device") if place.is_dir()), Path("device"))


def _seen_from_devices(address: str, certificates: ServerTls | None) -> str:
    """Under a name of its certificate; without one where it listens, unless it listens at all addresses of the host."""
    from fedrho.certificates import hosts_of

    host, _, port = address.rpartition(":")
    names = hosts_of(certificates.certificate) if certificates else []
    if names:
        return address if host in names else f"{names[0]}:{port}"
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
        check_heard("--shard", address)
    if not elsewhere or tls is None:
        return Shards((*children, *elsewhere))
    from fedrho.keys import SHARD_NAME, coordinator_tls

    return Shards(tuple(elsewhere), coordinator_tls(tls).credentials(), SHARD_NAME)
