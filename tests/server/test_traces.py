"""Traces of a real server, as its collector sees them: the spans of rounds and calls, and nothing of a device."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter as Tally
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fedrho.protos.messages import ID_BYTES
from fedrho.server.operations import operator_wire as wire
from fedrho.server.operations.metrics import OTHER, methods_of
from fedrho.server.operations.observer import Place
from fedrho.server.operations.traces import BadUrl, Traces, place_of, sent_to
from fedrho.server.release import Leg, StoreConflict
from fedrho.server.rounds import Phase
from tests.server.operating import channel, site, small_task
from tests.server.test_metrics import STRANGERS, known_of_devices, traffic

CHOSEN = "0af7651916cd43dd8448eb211c80319c"
"""The trace that a device says it takes part in."""
LEGS = [leg.value for leg in Leg]
Spans = Sequence[ReadableSpan]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Spans, Path, bytes]:
    """A run of three steps with server-side tags, strangers among its devices; its spans, and what must not be in them."""
    folder, memory = tmp_path_factory.mktemp("traces"), InMemorySpanExporter()

    async def scenario() -> bytes:
        with Traces(SimpleSpanProcessor(memory)) as traces:
            async with site(folder, small_task(window=True), beside=traces) as place:
                async with channel(place.device_address) as opened:
                    parent = (
                        ("traceparent", f"00-{CHOSEN}-b7ad6b7169203331-01"),
                        ("tracestate", "s3cret=1"),
                        ("baggage", "s3cret=1"),
                    )
                    with pytest.raises(grpc.aio.AioRpcError):
                        await opened.unary_unary("/fedrho.v1.DeviceService/CheckIn")(b"\xff", metadata=parent, timeout=5)
                await traffic(place, folder)
                return place.population.views()[0].run

    run = asyncio.run(scenario())
    return memory.get_finished_spans(), folder, run


def children(spans: Spans, of: ReadableSpan) -> list[ReadableSpan]:
    found = [span for span in spans if span.parent is not None and span.parent.span_id == of.context.span_id]
    return sorted(found, key=lambda span: span.start_time or 0)


def test_each_step_is_a_round_with_the_legs_of_its_release_in_order(traced: tuple[Spans, Path, bytes]) -> None:
    spans, _, _ = traced
    rounds = sorted((span for span in spans if span.name == "round"), key=lambda span: span.start_time or 0)
    assert [dict(span.attributes or {}) for span in rounds] == [
        {"fedrho.task": "small", "fedrho.step": step, "fedrho.attempt": 1, "fedrho.outcome": "released"} for step in (1, 2, 3)
    ]
    for one in rounds:
        inside = children(spans, one)
        assert [span.name for span in inside if span.name != "seal"] == ["open", "release"]
        legs = children(spans, inside[-1])
        assert [span.name for span in legs] == LEGS
        ends = [(span.start_time or 0, span.end_time or 0) for span in (*legs, inside[-1], one)]
        assert all(began <= ended for began, ended in ends)
        assert ends[-1][0] <= ends[-2][0] <= ends[0][0]
        assert ends[-3][1] <= ends[-2][1] <= ends[-1][1]


def test_every_call_is_a_span_of_its_own_by_method_and_code(traced: tuple[Spans, Path, bytes]) -> None:
    spans, _, _ = traced
    calls = [span for span in spans if span.kind.name == "SERVER"]
    ours = {path.rpartition("/")[2] for path in methods_of("fedrho.v1.DeviceService", wire.SERVICE)} | {OTHER}
    codes = {code.name for code in grpc.StatusCode}
    for span in calls:
        assert span.parent is None
        assert dict(span.attributes or {}).keys() == {"rpc.system.name", "rpc.method", "rpc.response.status_code"}
        assert span.name in ours
        assert (span.attributes or {})["rpc.response.status_code"] in codes
        assert (span.end_time or 0) >= (span.start_time or 0) > 0
    assert len({span.context.trace_id for span in calls}) == len(calls)
    ended = Tally((span.name, (span.attributes or {})["rpc.response.status_code"]) for span in calls)
    assert ended["CheckIn", "INVALID_ARGUMENT"] == STRANGERS + 1
    assert ended["other", "UNIMPLEMENTED"] == 2 * STRANGERS
    assert ended["UploadUpdate", "OK"] >= 6


def test_a_device_chooses_no_trace_and_is_in_none(traced: tuple[Spans, Path, bytes]) -> None:
    spans, folder, run = traced
    shown = "".join(span.to_json() for span in spans).lower()
    secrets = {one for one in known_of_devices(folder) if one != run and len(one) >= ID_BYTES}
    assert len(secrets) >= 3, "every device has a tag"
    for secret in secrets:
        assert secret.hex() not in shown
    for forbidden in (CHOSEN, "s3cret", "127.0.0.1", "localhost", "::1", "device-0", str(folder).lower(), run.hex()):
        assert forbidden not in shown
    for span in spans:
        assert not span.events
        assert not span.links
        assert span.status.description is None
        assert set(span.resource.attributes) <= {
            "service.name",
            "service.version",
            "service.instance.id",
            "telemetry.sdk.language",
            "telemetry.sdk.name",
            "telemetry.sdk.version",
        }
    assert {key for span in spans for key in span.attributes or {}} <= {
        *("fedrho.task", "fedrho.step", "fedrho.attempt", "fedrho.outcome"),
        *("rpc.system.name", "rpc.method", "rpc.response.status_code"),
    }


def test_a_leg_that_fails_says_so_and_not_why() -> None:
    memory = InMemorySpanExporter()
    with Traces(SimpleSpanProcessor(memory)) as traces:
        traces.stands(Place("task", 1, 1, Phase.OPEN, False))
        traces.stands(Place("task", 1, 2, Phase.OPEN, False))
        with pytest.raises(StoreConflict), traces.leg("task", Leg.COMMIT):
            raise StoreConflict("s3cret")
    spans = {span.name: span for span in memory.get_finished_spans()}
    outcomes = [
        span.attributes["fedrho.outcome"] for span in memory.get_finished_spans() if span.name == "round" and span.attributes
    ]
    assert outcomes == ["abandoned", "stopped"]
    assert {name for name, span in spans.items() if span.status.status_code.name == "ERROR"} == {"round", "release", "commit"}
    assert "s3cret" not in "".join(span.to_json() for span in spans.values())


class _Collector(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, ExportTraceServiceRequest.FromString(body)))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *values: object) -> None:
        pass


def test_a_collector_gets_them_by_http() -> None:
    with HTTPServer(("127.0.0.1", 0), _Collector) as server:
        server.got = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with sent_to(f"http://127.0.0.1:{server.server_port}") as traces:
            traces.called("CheckIn", "OK", 0.001)
        server.shutdown()
        thread.join()
    ((path, request),) = server.got  # type: ignore[attr-defined]
    assert path == "/v1/traces"
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert (span.name, span.end_time_unix_nano - span.start_time_unix_nano) == ("CheckIn", 1_000_000)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedrho.console import BadInput
    from fedrho.serving_options import observer

    monkeypatch.delitem(sys.modules, "fedrho.server.operations.traces")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # as Python says that there is none
    with pytest.raises(BadInput, match=r'--traces: needs OpenTelemetry; install it with `pip install "fedrho\[traces\]"`'):
        observer("http://127.0.0.1:4318")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://traces.example.org/", "https://traces.example.org/v1/traces"),
        ("http://[::1]:4318/otlp/v1/traces", "http://[::1]:4318/otlp/v1/traces"),
    ],
)
def test_a_collector_has_a_place(url: str, place: str) -> None:
    assert place_of(url) == place


@pytest.mark.parametrize(
    "url", ["", "4318", "127.0.0.1:4318", "ftp://a", "http://", "http://a:b", "http://a:0", "http://u:p@a", "http://u@a"]
)
def test_what_is_no_place_for_traces_is_refused(url: str) -> None:
    with pytest.raises(BadUrl):
        place_of(url)
