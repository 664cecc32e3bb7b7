"""Traces as an operator gets them: the service started with OpenTelemetry's variables, its spans sent to a collector here."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.model_cards import write_card
from tests.photographs import CHELSEA

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
READY_S = 120


@dataclass
class Collector:
    """An OTLP endpoint: the spans and headers that it was sent."""

    url: str
    spans: list[Span] = field(default_factory=list)
    resource: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def receive(self, body: bytes, headers: dict[str, str]) -> None:
        """Keeps one export."""
        self.headers = headers
        for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = {one.key: one.value.string_value for one in resource_spans.resource.attributes}
            for scope_spans in resource_spans.scope_spans:
                self.spans += scope_spans.spans


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            received.receive(self.rfile.read(int(self.headers["Content-Length"])), dict(self.headers))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing on standard error."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        received = Collector(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield received
        server.shutdown()


@dataclass(frozen=True)
class Traced:
    """What a service said that has answered one explanation and was told to stop."""

    response: httpx.Response
    openmetrics: str
    log: list[dict[str, object]]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Traced:
    models = tmp_path_factory.mktemp("models")
    write_card(models, "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_HEADERS": "x-team=explain%20us",
        "CAMSERVE_MODELS_DIR": str(models), "CAMSERVE_MODELS": "tiny", "CAMSERVE_SHUTDOWN_DELAY_S": "0",
        "CAMSERVE_LOG_FORMAT": "json",
    }  # fmt: skip
    command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
    with (models / "log").open("wb") as log, subprocess.Popen(command, env=environment, stderr=log) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                _wait_until_ready(client, process)
                headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
                response = client.post("/explain", content=CHELSEA.data, headers=headers, params={"method": "layercam"})
                openmetrics = client.get("/metrics", headers={"Accept": "application/openmetrics-text"}).text
        finally:
            process.terminate()
            process.wait(60)
    lines = [line for line in Path(models / "log").read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    return Traced(response, openmetrics, [json.loads(line) for line in lines])


def _wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    started = time.monotonic()
    while time.monotonic() - started < READY_S:
        assert process.poll() is None, "the service ended"
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError("the service was never ready")


def attributes(span: Span) -> dict[str, object]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}


def test_one_server_span_with_four_stages_continues_the_clients_trace(traced: Traced, collector: Collector) -> None:
    assert traced.response.status_code == 200, traced.response.text
    assert len(collector.spans) == 5
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    (server,) = (span for span in collector.spans if span.kind == Span.SPAN_KIND_SERVER)
    assert (server.name, server.parent_span_id.hex()) == ("POST /explain", PARENT)
    assert (
        attributes(server).items()
        >= {"http.request.method": "POST", "http.route": "/explain", "http.response.status_code": 200}.items()
    )
    stages = sorted((span for span in collector.spans if span is not server), key=lambda span: span.start_time_unix_nano)
    assert {span.parent_span_id for span in stages} == {server.span_id}
    assert [span.name for span in stages] == ["decode", "queue", "infer", "render"]
    for span in stages:
        assert server.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano <= server.end_time_unix_nano
        assert attributes(span) == {
            "camserve.model": "tiny", "camserve.method": "layercam", "camserve.batch_size": 1, "camserve.images": 1
        }  # fmt: skip


def test_the_environment_s_names_and_headers_are_sent(traced: Traced, collector: Collector) -> None:
    assert traced.response.status_code == 200
    assert collector.resource["service.name"] == "camserve"
    assert collector.headers["x-team"] == "explain us"


def test_the_log_line_and_the_exemplar_name_the_trace(traced: Traced) -> None:
    (line,) = (line for line in traced.log if line.get("event") == "request" and line.get("route") == "/explain")
    assert line["trace_id"] == TRACE
    exemplars = [
        line for line in traced.openmetrics.splitlines() if "camserve_request_seconds_bucket" in line and "# {" in line
    ]
    assert exemplars
    assert all(f'# {{trace_id="{TRACE}"}}' in line for line in exemplars)


@pytest.mark.parametrize("variables", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}])
def test_without_an_endpoint_nothing_of_it_is_imported(variables: dict[str, str]) -> None:
    program = (
        "import sys; from service.app import create_app; create_app(); "
        "print([name for name in ('opentelemetry.sdk', 'opentelemetry.exporter') if name in sys.modules])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | variables
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
