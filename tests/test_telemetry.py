"""Logs: one handler, one format, no leak between requests. Metrics: one registry for each app."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import orjson
import pytest
import structlog

from service.settings import Settings
from service.telemetry import HANDLER_NAME, Metrics, configure_logging


@pytest.fixture(autouse=True)
def restored_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level


def test_both_kinds_of_logger_write_the_same_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json"))
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        structlog.get_logger("a.b").info("hello", count=2)
        logging.getLogger("c.d").warning("from %s", "elsewhere")
    structlog.get_logger("a.b").info("later")
    first, second, third = (orjson.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {"event": "hello", "count": 2, "logger": "a.b", "level": "info", "request_id": "r1"}
    assert (second["event"], second["logger"], second["level"]) == ("from elsewhere", "c.d", "warning")
    assert second["request_id"] == "r1"
    assert "request_id" not in third


def test_configured_twice_writes_once_and_the_last_settings_hold(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        configure_logging(Settings(log_format="json", log_level="info"))
    configure_logging(Settings(log_format="json", log_level="warning"))
    log = structlog.get_logger("a")
    log.info("no")
    log.warning("yes")
    assert [orjson.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["yes"]
    assert [handler.get_name() for handler in logging.getLogger().handlers].count(HANDLER_NAME) == 1


def test_uvicorn_is_routed_in_and_its_access_log_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler())
    configure_logging(Settings(log_format="json"))
    logging.getLogger("uvicorn.error").info("started")
    logging.getLogger("uvicorn.access").info("GET /secret")
    assert [orjson.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["started"]


@pytest.mark.parametrize("log_format", ["json", "console", "auto"])
def test_a_line_stays_a_line_whatever_is_in_it(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings.model_validate({"log_format": log_format}))
    structlog.get_logger("a").info("event", text="a\r\nb\x1b[31m\x00", odd=object(), keys={1: 2})
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "\x1b[31m\x00" not in err


def test_a_traceback_stays_in_its_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(Settings(log_format="json"))
    try:
        int("the reason")
    except ValueError:
        structlog.get_logger("a").exception("failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: invalid literal" in orjson.loads(line)["exception"]


def test_every_metric_has_its_name() -> None:
    metrics = Metrics()
    metrics.requests.labels("/explain", "m", "200").inc()
    metrics.request_seconds.labels("/explain").observe(0.1)
    metrics.stage_seconds.labels("decode").observe(0.1)
    metrics.batch_size.labels("m", "fast").observe(4)
    metrics.batch_seconds.labels("m", "fast").observe(0.1)
    metrics.queue_depth.labels("m", "slow").set(3)
    metrics.queue_limit.set(256)
    metrics.queue_wait_seconds.labels("m", "slow").observe(0.1)
    metrics.pass_seconds.labels("m", "slow").set(0.25)
    metrics.rejections.labels("overloaded").inc()
    metrics.model_ready.labels("m").set(1)
    metrics.images.labels("m").inc(2)
    metrics.cache_requests.labels("hit").inc(3)
    metrics.cache_bytes.labels("m").set(6244)
    body, content_type = metrics.render()
    text = body.decode()
    assert content_type.startswith("text/plain")
    for line in (
        'camserve_requests_total{model="m",route="/explain",status="200"} 1.0',
        'camserve_request_seconds_count{route="/explain"} 1.0',
        'camserve_stage_seconds_count{stage="decode"} 1.0',
        'camserve_batch_size_bucket{lane="fast",le="4.0",model="m"} 1.0',
        'camserve_batch_seconds_count{lane="fast",model="m"} 1.0',
        'camserve_queue_depth{lane="slow",model="m"} 3.0',
        "camserve_queue_limit 256.0",
        'camserve_queue_wait_seconds_count{lane="slow",model="m"} 1.0',
        'camserve_pass_seconds{lane="slow",model="m"} 0.25',
        'camserve_rejections_total{code="overloaded"} 1.0',
        'camserve_model_ready{model="m"} 1.0',
        'camserve_images_total{model="m"} 2.0',
        'camserve_cache_requests_total{result="hit"} 3.0',
        'camserve_cache_bytes{model="m"} 6244.0',
        "process_resident_memory_bytes ",
        "python_info{",
    ):
        assert line in text


def test_two_apps_do_not_share_their_metrics() -> None:
    one, other = Metrics(), Metrics()
    one.images.labels("m").inc()
    assert b"camserve_images_total{" not in other.render()[0]
