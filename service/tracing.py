"""OpenTelemetry traces: a span for each request, which FastAPI makes, and a child of it for each stage.

Only where an OTLP endpoint is configured, in OpenTelemetry's own environment variables, are its SDK and exporter imported;
otherwise a request costs nothing. They are the extra `camserve[otel]`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import structlog

from service import __version__
from service.settings import tracing_requested
from service.vocabulary import Stage

log = structlog.get_logger(__name__)

Interval = tuple[float, float]  # start and end, seconds of time.perf_counter()


class Tracer:
    """Sends spans to the OTLP endpoint of OpenTelemetry's environment variables, over HTTP.

    Attributes:
        provider: OpenTelemetry's `TracerProvider`, for FastAPI.

    Raises:
        ImportError: the extra is not installed.
    """

    def __init__(self) -> None:
        from opentelemetry import trace  # noqa: PLC0415 (optional)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        names = {SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "camserve"), SERVICE_VERSION: __version__}
        self.provider = TracerProvider(resource=Resource.create(names))
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self.provider.get_tracer("camserve", __version__)
        self._current_span = trace.get_current_span

    def record_stages(self, intervals: Mapping[Stage, Interval], attributes: Mapping[str, str | int]) -> None:
        """Adds a child span for each stage to the span of the request at hand."""
        if not self._current_span().is_recording():
            return
        offset = time.time_ns() - time.perf_counter_ns()
        named = {f"camserve.{name}": value for name, value in attributes.items()}
        for stage, (start, end) in intervals.items():
            span = self._tracer.start_span(stage, start_time=offset + round(start * 1e9), attributes=named)
            span.end(offset + round(end * 1e9))

    def trace_id(self) -> str | None:
        """The trace of the request at hand, 32 hexadecimal digits; None where it is not traced."""
        context = self._current_span().get_span_context()
        return f"{context.trace_id:032x}" if context.is_valid else None

    def close(self) -> None:
        """Sends what has not been sent yet."""
        self.provider.shutdown()


def create_tracer() -> Tracer | None:
    """The tracer that the environment asks for; None, with a warning in the log, where its libraries are missing."""
    if not tracing_requested():
        return None
    try:
        return Tracer()
    except ImportError as error:
        log.warning("tracing_unavailable", missing=error.name, remedy="pip install 'camserve[otel]'")
        return None
