"""Prometheus metrics: counts and times of what the server does, and how far its runs are. Nothing is labelled by a device.

Label values come from closed sets alone: enums of the protocol, status codes, methods of our own services, names of task files.
What callers did is counted in whole groups (`coarse`); of updates that were counted, a group is told when the runs are seen to
have moved, so that it shows no moment that the fill of a round does not show.
"""

from __future__ import annotations

import inspect
import ipaddress
import socket
import socketserver
import threading
import time
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import grpc
from google.protobuf import descriptor_pool
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

from fedrho.protos import codec
from fedrho.protos.messages import Assignment, LaterReason, Receipt, Refusal, SessionStatus, TryLater
from fedrho.server import interceptors
from fedrho.server.coarse import Groups, whole
from fedrho.server.listen import LOOPBACK, PortBusy, asked_host, is_loopback
from fedrho.server.operations import operator, operator_wire
from fedrho.server.operations.observer import Observer, Observers
from fedrho.server.population import RunView
from fedrho.server.release import RunState

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

K = TypeVar("K", str, tuple[str, str])

SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 20.0, 60.0, 300.0)
OTHER: Final = "other"
REFUSALS: Final = {
    interceptors.TOO_LONG: "TOO_LONG",
    interceptors.STOOD_STILL: "STOOD_STILL",
    interceptors.TOO_MANY: "TOO_MANY",
    interceptors.TOO_MUCH_METADATA: "TOO_MUCH_METADATA",
    interceptors.MALFORMED: "MALFORMED",
    operator.NO_TOKEN: "NO_TOKEN",
}
"""Calls that end before anything they carry was understood, by the fixed text that they end with."""
UNKNOWN_METHOD: Final = "UNKNOWN_METHOD"
ANSWERS: Final = ("ASSIGNED", *(reason.name for reason in LaterReason))
OUTCOMES: Final = (SessionStatus.COUNTED.name, *(refusal.name for refusal in Refusal))


UPLOADED: Final = "COUNTED", "UploadUpdate", ("UploadUpdate", grpc.StatusCode.OK.name)
"""What an update that is counted counts up: its outcome, the times of its method, and the method's calls that end well."""


class Metrics(Observer):
    """A registry of its own, so that nothing else of the process is published."""

    def __init__(self, with_runs: bool = False) -> None:
        """`with_runs` says that `observe` will be called whenever a run has moved; a shard knows of none."""
        self._with_runs = with_runs
        self.check_ins_moved_at = time.time()
        registry = self.registry = CollectorRegistry()
        self._now_open: Tally[str] = Tally()
        self._check_ins = Counter("fedrho_check_ins", "Check-ins by answer", ["answer"], registry=registry)
        self._uploads = Counter("fedrho_uploads", "Uploads by outcome", ["outcome"], registry=registry)
        self._calls = Counter("fedrho_calls", "Calls by method and status code", ["method", "code"], registry=registry)
        self._calls_refused = Counter("fedrho_calls_refused", "Calls refused before parsing", ["reason"], registry=registry)
        self._open = Gauge("fedrho_open_calls", "Calls that are open; UploadUpdate: open uploads", ["method"], registry=registry)
        self._call_seconds = Histogram("fedrho_call_seconds", "Of a call", ["method"], buckets=SECONDS, registry=registry)
        self._release_seconds = Histogram("fedrho_release_seconds", "Of a release", buckets=SECONDS, registry=registry)
        self._of_runs = {name: Gauge(f"fedrho_{name}", text, ["task"], registry=registry) for name, text, _ in OF_RUNS}
        self._states = Gauge("fedrho_run_state", "1 for the state that a run is in", ["task", "state"], registry=registry)
        self._begin_at_zero()
        self._answers = Groups[str](self._tell_check_in)
        self._outcomes = Groups[str](lambda outcome, one: self._uploads.labels(outcome).inc(one))
        self._codes = Groups[tuple[str, str]](lambda call, one: self._calls.labels(*call).inc(one))
        self._times = Groups[str](lambda method, seconds: self._call_seconds.labels(method).observe(seconds))
        self._reasons = Groups[str](lambda reason, one: self._calls_refused.labels(reason).inc(one))

    def expect(self, methods: Iterable[str]) -> None:
        """Begins their series at 0, so that none appears with the first call."""
        for method in methods:
            self._open.labels(method)
            self._call_seconds.labels(method)
            self._calls.labels(method, grpc.StatusCode.OK.name)

    def _begin_at_zero(self) -> None:
        """Every series whose labels are known beforehand: what appears with a 1 would never be seen to have risen."""
        known = (
            (self._check_ins, ANSWERS),
            (self._uploads, OUTCOMES),
            (self._calls_refused, (*REFUSALS.values(), UNKNOWN_METHOD)),
        )
        for counter, values in known:
            for value in values:
                counter.labels(value)

    def checked_in(self, answer: Assignment | TryLater) -> None:
        self._answers.add(answer.reason.name if isinstance(answer, TryLater) else "ASSIGNED")

    def _tell_check_in(self, answer: str, one: float) -> None:
        self._check_ins.labels(answer).inc(one)
        self.check_ins_moved_at = time.time()

    def uploaded(self, receipt: Receipt) -> None:
        self._count(self._outcomes, receipt.refusal.name if receipt.refusal else receipt.status.name)

    def released(self, task: str, seconds: float) -> None:
        self._release_seconds.observe(seconds)

    def called(self, method: str, code: str, seconds: float) -> None:
        """`method` must be one of our own, or OTHER."""
        self._count(self._codes, (method, code))
        self._count(self._times, method, seconds)

    def refused(self, reason: str) -> None:
        """A call was refused before parsing; `reason` is one of REFUSALS, or UNKNOWN_METHOD."""
        self._reasons.add(reason)

    def _count(self, groups: Groups[K], key: K, value: float = 1.0) -> None:
        held = self._with_runs and key in UPLOADED
        (groups.hold if held else groups.add)(key, value)

    @contextmanager
    def open(self, method: str) -> Iterator[None]:
        self._opened(method, 1)
        try:
            yield
        finally:
            self._opened(method, -1)

    def _opened(self, method: str, change: int) -> None:
        self._now_open[method] += change
        self._open.labels(method).set(whole(self._now_open[method]))

    def observe(self, views: tuple[RunView, ...]) -> None:
        """Told whenever a run has moved."""
        for groups in (self._outcomes, self._codes, self._times):
            groups.tell_all()
        for view in views:
            for name, _, read in OF_RUNS:
                self._of_runs[name].labels(view.name).set(read(view))
            for state in RunState:
                self._states.labels(view.name, state.value).set(view.state is state)

    def tallies(self) -> tuple[Mapping[str, int], Mapping[str, int], Mapping[str, int]]:
        """Check-ins by answer, uploads by outcome, and calls that were refused before parsing, by reason: in whole groups."""
        return _tally(self._check_ins), _tally(self._uploads), _tally(self._calls_refused)

    def refusals(self) -> Mapping[str, int]:
        """All that was refused so far, by reason: uploads, and calls before parsing."""
        uploads = {reason: count for reason, count in _tally(self._uploads).items() if reason in Refusal.__members__}
        return {reason: count for reason, count in {**uploads, **_tally(self._calls_refused)}.items() if count}


def _tally(counter: Counter) -> Mapping[str, int]:
    """Of a counter with one label."""
    samples = (sample for metric in counter.collect() for sample in metric.samples if sample.name.endswith("_total"))
    return {next(iter(sample.labels.values())): int(sample.value) for sample in samples}


OF_RUNS: Final[tuple[tuple[str, str, Callable[[RunView], float]], ...]] = (
    ("rho_spent", "zCDP spent, unit: one device, neighbours: zero-out", lambda view: view.statement.rho),
    ("rho_budget", "zCDP that the run may spend", lambda view: view.rho_budget),
    ("step", "Steps released", lambda view: view.step),
    ("steps", "Steps planned", lambda view: view.steps),
    ("attempt", "Attempt at the next step", lambda view: view.attempt),
    ("seats", "Seats of an attempt at the drop-out shown", lambda view: view.seats),
    ("drop_out_rate", "Share of seats whose devices did not report, in tenths", lambda view: round(view.drop_out, 2)),
)


# -- calls -----------------------------------------------------------------------------------------------------------------------


class MetricsInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc is not typed
    """Put it first, so that it sees what the others refuse."""

    def __init__(self, metrics: Metrics, methods: Iterable[str], beside: Observer | None = None) -> None:
        """`methods` are full names; every other path counts as OTHER, because callers choose paths. `beside` is told too."""
        self._metrics = metrics
        self._told = Observers([metrics] if beside is None else [metrics, beside])
        self._names = {method: method.rpartition("/")[2] for method in methods}
        metrics.expect((*self._names.values(), OTHER))
        self._made: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        name = self._names.get(details.method, OTHER)
        handler = await continuation(details)
        if handler is None:
            self._told.called(OTHER, grpc.StatusCode.UNIMPLEMENTED.name, 0.0)
            self._metrics.refused(UNKNOWN_METHOD)
            return None
        made = self._made.get(name)
        if made is None or made[0] is not handler:
            made = self._made[name] = handler, _rewrapped(handler, self._measured(handler, name))
        return made[1]

    def _measured(self, handler: Any, name: str) -> Callable[[Any, Any], Awaitable[Any]]:
        handle = handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary

        async def behave(request: Any, context: Any) -> Any:
            began, code = time.perf_counter(), grpc.StatusCode.CANCELLED
            try:
                with self._metrics.open(name):
                    answer = await _answered(handle(request, context), context)
                code = context.code() or grpc.StatusCode.OK
                return answer
            except Exception:
                code = context.code() or grpc.StatusCode.UNKNOWN
                raise
            finally:
                self._ended(name, code, context, time.perf_counter() - began)

        return behave

    def _ended(self, name: str, code: Any, context: Any, seconds: float) -> None:
        self._told.called(name, getattr(code, "name", OTHER), seconds)
        reason = REFUSALS.get(context.details())
        if reason is not None:
            self._metrics.refused(reason)


async def _answered(answer: Any, context: Any) -> Any:
    """Waits for it, or writes all of it."""
    if inspect.isawaitable(answer):
        return await answer
    async for part in answer:
        await context.write(part)
    return None


def _rewrapped(handler: Any, behave: Callable[[Any, Any], Awaitable[Any]]) -> Any:
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(behave, handler.request_deserializer, handler.response_serializer)


def methods_of(*services: str) -> list[str]:
    """Full names of the methods of services whose generated code is loaded."""
    found = (descriptor_pool.Default().FindServiceByName(service) for service in services)
    return [f"/{service.full_name}/{method.name}" for service in found for method in service.methods]


def device_metrics(metrics: Metrics, beside: Observer | None = None) -> MetricsInterceptor:
    """For the device port."""
    return MetricsInterceptor(metrics, methods_of(codec.SERVICE), beside)


def operator_metrics(metrics: Metrics, beside: Observer | None = None) -> MetricsInterceptor:
    """For the operator port."""
    return MetricsInterceptor(metrics, methods_of(operator_wire.SERVICE), beside)


# -- the endpoint ----------------------------------------------------------------------------------------------------------------

PATHS: Final = ("/metrics", "/")
SCRAPERS: Final = 32
"""Connections at a time."""
SCRAPE_SECONDS: Final = 20.0
"""For one of them, at most."""


class _Handler(WSGIRequestHandler):
    timeout = 5.0
    """Seconds for whoever connects and says nothing."""

    def log_message(self, format: str, *values: Any) -> None:
        """Who asks is not written down."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """Takes few callers at a time, so that nobody takes the server's files and threads with connections to it."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self._places = threading.Semaphore(SCRAPERS)
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """As its base, without asking a name server who we are."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        late = threading.Timer(SCRAPE_SECONDS, _cut, [request])
        late.daemon = True
        late.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            late.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that goes away is no news, and its address is not written down."""


def _cut(connection: socket.socket) -> None:
    """Whoever asks, or takes the answer, byte by byte."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Server6(_Server):
    address_family = socket.AF_INET6


def _guarded(app: WSGIApplication, hosts: Collection[str] | None) -> WSGIApplication:
    """`hosts` are the names that may be asked for; None where every name may, because only its owner knows what leads there.

    A page of somebody else whose name suddenly leads to this machine (DNS rebinding) asks for its own host.
    """

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if hosts is not None and asked_host(environ.get("HTTP_HOST", "")) not in hosts:
            return _refused(start_response, "421 Misdirected Request", b"this host is not served here\n")
        if environ["PATH_INFO"] not in PATHS:
            return _refused(start_response, "404 Not Found", b"metrics are at /metrics\n")
        return app(environ, start_response)

    return guarded


def _refused(start_response: StartResponse, status: str, text: bytes) -> Iterable[bytes]:
    start_response(status, [("content-type", "text/plain")])
    return [text]


@contextmanager
def metrics_port(metrics: Metrics, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Publishes at HTTP HOST:PORT, which is yielded; port 0 takes a free one. Raises PortBusy.

    Whoever reaches it may read it, without encryption: an address beyond this machine is for a network of one's own. On a
    loopback address a browser reaches it too, for whatever page it has open: there it answers to this machine's own names alone.
    """
    kind: type[_Server] = _Server
    with suppress(ValueError):
        kind = _Server6 if ipaddress.ip_address(host).version == 6 else _Server
    try:
        server = kind((host, port), _Handler)
    except (OSError, OverflowError) as error:
        raise PortBusy(f"cannot publish metrics at {host}:{port}: the port is in use, or the address is not ours") from error
    hosts = frozenset({*LOOPBACK, host.lower()}) if is_loopback(str(server.server_address[0])) else None
    server.set_app(_guarded(make_wsgi_app(metrics.registry), hosts))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"[{host}]:{server.server_port}" if ":" in host else f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
