"""The process: bind, serve until every run has ended or someone says stop, and leave the store whole."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import grpc
import structlog

from fedrho.models.optimizers import UnknownOptimizer
from fedrho.models.saved import is_saved
from fedrho.models.zoo import lookup
from fedrho.privacy.noise import SystemNoise
from fedrho.privacy.progress import Progress, unwatched
from fedrho.privacy.vectors import FloatVector
from fedrho.privacy.zcdp import Rho
from fedrho.protos.messages import ID_BYTES
from fedrho.server.allocator import keep_freed_memory
from fedrho.server.chain import check
from fedrho.server.coordinator import Coordinator, Surroundings, open_run
from fedrho.server.guard import device_handlers
from fedrho.server.listen import ServerTls, bind, steady_clock, stop_on_signals
from fedrho.server.operations.dashboard.port import DashboardPort
from fedrho.server.operations.dashboard.sources import ServedRuns
from fedrho.server.operations.logs import RunLog
from fedrho.server.operations.metrics import Metrics, device_metrics, metrics_port, operator_metrics
from fedrho.server.operations.observer import Observer, Observers
from fedrho.server.operations.operator_port import OperatorPlace, OperatorServer
from fedrho.server.operations.watching import RunWatch
from fedrho.server.population import Population, Signer, check_planned, planned_rho
from fedrho.server.ports import DEFAULT_CONNECTIONS, DevicePort, device_server
from fedrho.server.release import StoreConflict
from fedrho.server.service import DeviceService
from fedrho.server.shard import DEFAULT_MEMORY, LocalShard, Shard, ShardLink
from fedrho.server.shard_wire import RemoteShard
from fedrho.server.starting import StartError, begun_with, start_of
from fedrho.server.storage.sql_store import SqlStore
from fedrho.server.storage.store import StoreBusy, open_store, read_history
from fedrho.server.tasks import Task, TaskFile, TaskFileError
from fedrho.server.uploads import UploadService

ADDRESS: Final = "server.json"
SHARDS_SECONDS: Final = 60.0
STANDBY_SECONDS: Final = 1.0
"""Between two tries of a standby to lead."""


class ShardsMissing(RuntimeError):
    """Not one shard has answered."""


@dataclass(frozen=True)
class Shards:
    """Where shards hear their coordinator, HOST:PORT or unix:PATH, what it shows them, and the name that they must show.

    Without any, uploads come to the server itself.
    """

    targets: tuple[str, ...] = ()
    credentials: grpc.ChannelCredentials | None = field(default=None, repr=False)
    name: str = ""


@dataclass(frozen=True)
class Serving:
    """All that a server is told. `store` is a folder, or the URL of a database with `blobs` beside it.

    `signer` is asked for once the store is open, so that it may keep its key there.
    """

    tasks: tuple[Task, ...]
    store: Path | str
    signer: Callable[[], Signer]
    host: str = "127.0.0.1"
    port: int = 0
    blobs: str | None = None
    tls: ServerTls | None = None
    issuer: bytes | None = None
    rho_budget: Rho | None = None
    upload_memory: int = DEFAULT_MEMORY
    shards: Shards = Shards()
    operator: OperatorPlace | None = None
    dashboard: int | None = None
    """The port of the dashboard, on the operators' host; 0 takes a free one, None has none."""
    metrics: tuple[str, int] | None = None
    standby: bool = False
    connections: int = DEFAULT_CONNECTIONS
    observer: Observer = field(default_factory=Observer)
    """Told beside the metrics."""


Report = Callable[[Coordinator], None]


@dataclass(frozen=True)
class Listener:
    """What the process tells its surroundings as it goes."""

    listening: Callable[[str, Population], None]
    released: Report
    dashboard: Callable[[str], None] = lambda address: None
    checking: Progress = unwatched
    metrics: Callable[[str], None] = lambda address: None


async def serve(serving: Serving, listener: Listener) -> Population:
    """Runs until every run has ended, or until SIGINT or SIGTERM; either way the store can be continued.

    Raises PortBusy before anything is written, what `open_store`, `open_run` and `Population` raise, ShardsMissing and
    HistoryBroken. An error in a release stops the server: it never goes on from a state that it is not sure of.
    """
    keep_freed_memory()
    stop, metrics = stop_on_signals(), Metrics(with_runs=True)
    server = _device_server(serving, metrics)
    address = bind(server, serving.host, serving.port, serving.tls)
    async with AsyncExitStack() as opened:
        opened.callback(structlog.get_logger().info, "stopped")
        await opened.enter_async_context(_tells_of_stopping(stop))
        opened.push_async_callback(server.stop, 1.0)
        if serving.metrics is not None:
            listener.metrics(opened.enter_context(metrics_port(metrics, *serving.metrics)))
        dashboard = opened.enter_context(_dashboard(serving))
        operator = _operator(serving, metrics, dashboard)
        store = opened.enter_context(await _opened(serving, stop))
        check_planned(planned_rho(store.runs(), serving.tasks), serving.rho_budget or store.budget())
        if serving.rho_budget is not None:
            store.set_budget(serving.rho_budget)
        opened.enter_context(_announced(serving.store, address))
        links, shard = await opened.enter_async_context(_shards(serving, stop))
        clock = steady_clock()
        around = Surroundings(SystemNoise(), store, _new_id, links)
        population = _open(serving, around, clock(), listener.checking)
        opened.callback(population.close)
        observer = Observers([metrics, serving.observer])
        service = DeviceService(population, clock, listener.released, observer)
        uploads = UploadService(shard, clock, observer).methods() if shard else {}
        server.add_generic_rpc_handlers((device_handlers(service.methods(), uploads),))
        watch = RunWatch(population.views, [metrics.observe, RunLog(metrics.refusals).observe])
        async with _watched(watch):
            if operator is not None:
                link_of = partial(_link_of, serving.store)
                await opened.enter_async_context(operator.serving(population, watch, stop, link_of))
            if operator is not None and dashboard is not None:
                source = ServedRuns(population, metrics, serving.store)
                await opened.enter_async_context(dashboard.serving(source, operator.token))
                listener.dashboard(dashboard.address)
            await server.start()
            listener.listening(address, population)
            async with _leading(store, stop):
                await service.run_rounds(stop)
            if population.finished and not stop.is_set():
                await _say_goodbye(population, stop, clock)
        return population


@asynccontextmanager
async def _leading(store: SqlStore, stop: asyncio.Event) -> AsyncIterator[None]:
    """Sets `stop` when another server may lead the store by now, and raises StoreConflict at the end of the block."""

    async def watch() -> None:
        while store.leads():
            await asyncio.sleep(1.0)
        stop.set()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
    if not store.leads():
        raise StoreConflict(f"{store.shown}: another server leads by now; this one has ended, and the same command may stand by")


@asynccontextmanager
async def _tells_of_stopping(stop: asyncio.Event) -> AsyncIterator[None]:
    """At once, for a release that has begun is finished first."""

    async def tell() -> None:
        await stop.wait()
        structlog.get_logger().info("stopping")

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()


@asynccontextmanager
async def _watched(watch: RunWatch) -> AsyncIterator[None]:
    """Looked at while the block runs, and once more at its end."""
    over = asyncio.Event()
    looking = asyncio.create_task(watch.run(over))
    try:
        yield
    finally:
        over.set()
        await looking


def _new_id() -> bytes:
    return os.urandom(ID_BYTES)


def _link_of(store: Path | str, run: bytes, step: int) -> bytes:
    """Step 0 is the start, so a step's place is its number; the history was checked when it was opened."""
    return read_history(store, run).links[step]


async def _opened(serving: Serving, stop: asyncio.Event) -> SqlStore:
    """The store, as soon as nobody else leads it; raises StoreBusy at once where this server does not stand by, or must end."""
    while True:
        try:
            return open_store(serving.store, serving.blobs)
        except StoreBusy:
            if not serving.standby or stop.is_set():
                raise
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), STANDBY_SECONDS)


def _open(serving: Serving, around: Surroundings, now: float, progress: Progress) -> Population:
    """Every task's run, continued or begun, and each history checked before anything is served."""
    coordinators = [open_run(task, around, partial(initial_weights, task), now) for task in serving.tasks]
    for coordinator in coordinators:
        check_size(coordinator.task.file, coordinator.size)
        check(read_history(serving.store, coordinator.run), coordinator.task, progress)
    return Population(coordinators, around.store, serving.signer(), serving.issuer)


@asynccontextmanager
async def _shards(serving: Serving, stop: asyncio.Event) -> AsyncIterator[tuple[Sequence[ShardLink], Shard | None]]:
    """The shards, and the one in this process where there are no others. Raises ShardsMissing."""
    if not serving.shards.targets:
        shard = Shard(serving.upload_memory)
        yield [LocalShard(shard)], shard
        return
    links = [RemoteShard(target, serving.shards.credentials, serving.shards.name) for target in serving.shards.targets]
    over = asyncio.Event()
    talks = [asyncio.create_task(link.run(over)) for link in links]
    try:
        await _until_there(links, stop)
        yield links, None
    finally:
        over.set()
        await asyncio.gather(*talks)


async def _until_there(links: Sequence[RemoteShard], stop: asyncio.Event) -> None:
    """Waits for all of them, and in the end goes on with some."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SHARDS_SECONDS):
            while not all(link.alive for link in links) and not stop.is_set():
                await asyncio.sleep(0.05)
    if not any(link.alive for link in links) and not stop.is_set():
        raise ShardsMissing(f"none of {len(links)} shards answered within {SHARDS_SECONDS:g} s; is `fedrho shard` running there?")


@contextmanager
def _dashboard(serving: Serving) -> Iterator[DashboardPort | None]:
    """Its port, bound; where operators are let in at all."""
    if serving.operator is None or serving.dashboard is None:
        yield None
        return
    port = DashboardPort(serving.operator.host, serving.dashboard, serving.operator.tls)
    try:
        yield port
    finally:
        port.close()


def _operator(serving: Serving, metrics: Metrics, dashboard: DashboardPort | None) -> OperatorServer | None:
    if serving.operator is None:
        return None
    told = [operator_metrics(metrics, serving.observer)]
    return OperatorServer(serving.operator, told, dashboard.address if dashboard else None)


def _device_server(serving: Serving, metrics: Metrics) -> grpc.aio.Server:
    lease = max(task.file.round.lease_seconds for task in serving.tasks)
    return device_server(lease, device_metrics(metrics, serving.observer), port=DevicePort(connections=serving.connections))


@contextmanager
def _announced(store: Path | str, address: str) -> Iterator[None]:
    """Says in the folder where the server listens, for as long as it does."""
    if isinstance(store, str):
        yield
        return
    path = store / ADDRESS
    path.write_text(json.dumps({"address": address, "pid": os.getpid()}))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def read_address(folder: Path) -> tuple[str, int] | None:
    """Address and process of the server that uses `folder`, if it said so."""
    with suppress(OSError, ValueError, KeyError):
        known = json.loads((folder / ADDRESS).read_text())
        return str(known["address"]), int(known["pid"])
    return None


def initial_weights(task: Task) -> FloatVector:
    """Those of the fresh model, or of the file that the task starts from; builds the model, which needs TensorFlow.

    Raises TaskFileError for a file that does not fit the model, and for local training that no device could do with it.
    """
    from fedrho.models.flat import FlatModel
    from fedrho.models.locoprop import check_trains

    try:
        model = FlatModel(lookup(task.file.model))
        check_trains(model, task.file.local.optimizer)
        return begun_with(model, start_of(task.file), task.start)
    except UnknownOptimizer as error:
        raise TaskFileError(f"task {task.file.name}: local.optimizer: {error}") from error
    except StartError as error:
        raise TaskFileError(f"task {task.file.name}: start: {error}") from error


def check_size(file: TaskFile, size: int) -> None:
    """Raises StoreConflict where a run's weights are not as many as its model has by now, as far as that is known unbuilt."""
    if is_saved(file.model):  # its file may be gone by now, and its name is its content
        return
    spec = lookup(file.model)
    if spec.parameters not in (0, size):
        raise StoreConflict(
            f"task {file.name!r}: the store holds {size} weights, and model {file.model!r} has {spec.parameters} here: the run "
            "was begun with another version of the model or of fedrho; go on with that one, or give the task another name"
        )


async def _say_goodbye(population: Population, stop: asyncio.Event, clock: Callable[[], float]) -> None:
    """Stays long enough for every waiting device to hear that the runs have ended."""
    longest = max(member.coordinator.window(clock()).max_seconds for member in population.members.values())
    with suppress(TimeoutError):
        async with asyncio.timeout(min(2.0 * longest + 1.0, 60.0)):
            await stop.wait()
