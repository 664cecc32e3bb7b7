"""What the service tells its operator: structured logs and Prometheus metrics. Knows no HTTP, no models and no images.

Log lines come from structlog and from the standard library alike and leave through one handler, on standard error, with the
request's id in each of them. No line and no label ever holds what a client wrote.
"""

from __future__ import annotations

import logging
import sys
from typing import Final, TextIO

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from structlog.typing import EventDict, Processor

from service.settings import Settings

HANDLER_NAME: Final = "camserve"

# From a cached head pass on a GPU (1 ms) to the longest deadline anybody sets.
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to whatever `sys.stderr` is now, so that redirecting it later redirects the log."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.name = HANDLER_NAME

    @property
    def stream(self) -> TextIO:  # type: ignore[override] # the base sets an attribute where this looks the stream up
        return sys.stderr


def _renderer(settings: Settings) -> list[Processor]:
    pretty = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    if pretty:
        return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    return [structlog.processors.format_exc_info, _to_json]


def _to_json(_logger: object, _name: str, event: EventDict) -> str:
    return orjson.dumps(event, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


def configure_logging(settings: Settings) -> None:
    """Sends every log line of the process through one handler. May be called again, with other settings.

    uvicorn's own lines are routed in; its access log is silenced, because one line per request is written here already.

    Args:
        settings: `log_format` chooses JSON lines or readable ones (auto: readable on a terminal), `log_level` the lowest level.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = _StandardError()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.PositionalArgumentsFormatter()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderer(settings)],
        )
    )
    root = logging.getLogger()
    root.handlers = [other for other in root.handlers if other.get_name() != HANDLER_NAME]
    root.addHandler(handler)
    root.setLevel(settings.log_level.upper())

    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = name != "uvicorn.access"


class Metrics:
    """The service's Prometheus metrics, in a registry of their own so that several apps can live in one process.

    Who observes what: the HTTP side counts `requests`, `request_seconds` and `rejections`; the explainer `stage_seconds`,
    `cache_requests` and `images`; the lanes of each model what carries the label `lane`; the app sets `queue_limit`, the model
    registry the rest. Labels come from closed sets: `route` is a route's template, `model` the name of a card or "", `lane`
    fast or slow, `code` a problem's code, `stage` one of decode, queue, infer, evaluate and render, `result` one of hit,
    coalesced and miss.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        self.requests = Counter("camserve_requests", "Requests answered.", ["route", "model", "status"], registry=registry)
        self.request_seconds = Histogram(
            "camserve_request_seconds",
            "Seconds from the first byte of a request to the last byte of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.rejections = Counter(
            "camserve_rejections", "Requests not answered with success, by code.", ["code"], registry=registry
        )
        self.stage_seconds = Histogram(
            "camserve_stage_seconds", "Seconds a request spent in a stage.", ["stage"], buckets=SECONDS, registry=registry
        )
        self.images = Counter("camserve_images", "Images answered.", ["model"], registry=registry)
        lane = ["model", "lane"]
        self.batch_size = Histogram(
            "camserve_batch_size", "Images in one pass through the network.", lane, buckets=BATCH_SIZES, registry=registry
        )
        self.batch_seconds = Histogram(
            "camserve_batch_seconds", "Seconds of one pass through the network.", lane, buckets=SECONDS, registry=registry
        )
        self.queue_depth = Gauge("camserve_queue_depth", "Images waiting for the network.", lane, registry=registry)
        self.queue_limit = Gauge(
            "camserve_queue_limit", "Images that may wait in each lane of a model; more are refused.", registry=registry
        )
        self.queue_wait_seconds = Histogram(
            "camserve_queue_wait_seconds",
            "Seconds that an image waited for the network.",
            lane,
            buckets=SECONDS,
            registry=registry,
        )
        self.pass_seconds = Gauge(
            "camserve_pass_seconds", "Seconds of one image's pass through the network, recent mean.", lane, registry=registry
        )
        self.cache_requests = Counter(
            "camserve_cache_requests", "Images looked up in the cache.", ["result"], registry=registry
        )
        self.cache_bytes = Gauge("camserve_cache_bytes", "Memory that cached maps take.", ["model"], registry=registry)
        self.model_ready = Gauge(
            "camserve_model_ready", "1 when the model is loaded, warmed and its worker alive.", ["model"], registry=registry
        )
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Everything measured so far, with its content type: OpenMetrics, which has exemplars, or Prometheus text.

        Args:
            accept: of the request.
        """
        generate, content_type = choose_encoder(accept)
        return generate(self.registry), content_type
