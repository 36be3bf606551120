"""OpenTelemetry traces: a span for each call, and for each round with the legs of its release. Needs the extra `traces`.

    CheckIn, UploadUpdate, ...      a call: rpc.method, rpc.response.status_code
    round                           an attempt: fedrho.task, fedrho.step, fedrho.attempt, fedrho.outcome
     ├ open, seal                   while it takes devices; while shards hand their parts over
     └ release                      sum, charge, noise, step, commit

Names and attributes come from closed sets alone, as those of `metrics.py` do. Every call is a trace of its own: what a caller
says of a trace that it takes part in is not read, so no device chooses an id here, and nothing ties two calls together, or a call
to a round. When a call came, and how long it took, is told.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context

from fedrho.server.operations.observer import Observer, Place
from fedrho.server.release import Leg
from fedrho.server.rounds import Phase

EXPORT_SECONDS: Final = 5.0
"""For one request to the collector, all tries together; also what the end of the process may wait for it."""
PATH: Final = "/v1/traces"
OUTCOME: Final = "fedrho.outcome"
NO_PARENT: Final = Context()


@dataclass
class _Round:
    """The spans of an attempt that are open; a release that failed leaves none behind."""

    place: Place
    span: Span
    phase: Span | None
    release: Span | None = None

    def end_phase(self) -> None:
        if self.phase is not None:
            self.phase.end()
            self.phase = None

    def end(self, outcome: str) -> None:
        self.end_phase()
        if self.release is not None:
            self.release.end()
        self.span.set_attribute(OUTCOME, outcome)
        self.span.end()


class Traces(Observer):
    """Use as a context manager: its end sends what is still here."""

    def __init__(self, processor: SpanProcessor) -> None:
        """A provider of its own, so that nothing else of the process is traced; OTEL_TRACES_SAMPLER thins its spans out."""
        about = {"service.name": "fedrho", "service.version": version("fedrho")}
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("fedrho")
        self._rounds: dict[str, _Round] = {}

    def __enter__(self) -> Traces:
        return self

    def __exit__(self, *details: object) -> None:
        for one in self._rounds.values():
            one.end("stopped")
        self._provider.shutdown()

    def called(self, method: str, code: str, seconds: float) -> None:
        ended = time.time_ns()
        attributes = {"rpc.system.name": "grpc", "rpc.method": method, "rpc.response.status_code": code}
        began = ended - int(seconds * 1e9)
        span = self._tracer.start_span(method, NO_PARENT, SpanKind.SERVER, attributes, start_time=began)
        if code != "OK":
            span.set_status(StatusCode.ERROR)
        span.end(ended)

    def stands(self, place: Place) -> None:
        known = self._rounds.get(place.task)
        if known is not None and known.place == place:
            return
        if known is not None and not place.ended and _attempt(known.place) == _attempt(place):
            self._moved(known, place)
            return
        if known is not None:
            known.end("released" if place.step > known.place.step else "cancelled" if place.ended else "abandoned")
            del self._rounds[place.task]
        if not place.ended:
            self._rounds[place.task] = self._begun(place)

    def _begun(self, place: Place) -> _Round:
        attributes: dict[str, Any] = {"fedrho.task": place.task, "fedrho.step": place.step, "fedrho.attempt": place.attempt}
        begun = _Round(place, self._tracer.start_span("round", NO_PARENT, attributes=attributes), None)
        self._moved(begun, place)
        return begun

    def _moved(self, known: _Round, place: Place) -> None:
        known.place = place
        known.end_phase()
        name = {Phase.OPEN: "open", Phase.SEALING: "seal"}.get(place.phase)
        if name is not None:
            known.phase = self._within(known.span, name)

    @contextmanager
    def leg(self, task: str, leg: Leg) -> Iterator[None]:
        """The first of them begins the span of the release."""
        known = self._rounds.get(task)
        if known is None:
            yield
            return
        known.end_phase()
        if known.release is None:
            known.release = self._within(known.span, "release")
        span = self._within(known.release, leg.value)
        try:
            yield
        except BaseException:  # its text may quote anything, so it is not written down
            for failed in (span, known.release, known.span):
                failed.set_status(StatusCode.ERROR)
            raise
        finally:
            span.end()

    def released(self, task: str, seconds: float) -> None:
        known = self._rounds.get(task)
        if known is not None and known.release is not None:
            known.release.end()
            known.release = None

    def _within(self, parent: Span, name: str) -> Span:
        return self._tracer.start_span(name, set_span_in_context(parent, NO_PARENT))


def _attempt(place: Place) -> tuple[int, int]:
    return place.step, place.attempt


class BadUrl(ValueError):
    """No place for traces; says what is wrong, to go on after its name."""


def place_of(url: str) -> str:
    """Where spans go: `url`, with the usual path of OTLP where it has none. Raises BadUrl."""
    try:
        parts = urlsplit(url)
        usual = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none
        usual = False
    if not usual:
        raise BadUrl("must be the http:// or https:// address of a collector, such as http://127.0.0.1:4318")
    if "@" in parts.netloc:
        raise BadUrl("holds a name or password, which every process here could read; give OTEL_EXPORTER_OTLP_HEADERS instead")
    return url if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}{PATH}"


def sent_to(url: str) -> Traces:
    """Traces that go to a collector in batches, by OTLP over HTTP, beside everything else: what does not arrive is lost."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Traces(BatchSpanProcessor(OTLPSpanExporter(place_of(url), timeout=EXPORT_SECONDS)))
