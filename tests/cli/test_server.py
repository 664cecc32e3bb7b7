"""The server from start to stop, in this process: real signals, a real port, a small network. Load is in tests/e2e."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.cli import FAILED_START
from service.cli.server import run
from service.errors import ConfigurationError
from service.settings import Settings
from tests.model_cards import write_card

PATIENCE_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    write_card(tmp_path, "tiny")
    return Settings(models_dir=tmp_path, models=("tiny",), port=free_port(), shutdown_delay_s=0.5, log_format="json")


def status(settings: Settings, path: str) -> tuple[int, str]:
    """Status and Connection header of one GET; (0, "") where nobody answers."""
    try:
        response = httpx.get(f"http://127.0.0.1:{settings.port}{path}", timeout=5)
    except httpx.TransportError:
        return 0, ""
    return response.status_code, response.headers.get("connection", "")


def beside(settings: Settings, visit: Callable[[], None]) -> Future[None]:
    """Runs `visit` in a thread once the service is ready, and makes sure that the service is told to stop after it."""

    def visitor() -> None:
        started = time.monotonic()
        while status(settings, "/readyz")[0] != 200:
            assert time.monotonic() - started < PATIENCE_S
            time.sleep(0.05)
        try:
            visit()
        finally:
            if status(settings, "/livez")[0] == 200:
                os.kill(os.getpid(), signal.SIGTERM)

    pool = ThreadPoolExecutor(1)
    future = pool.submit(visitor)
    pool.shutdown(wait=False)
    return future


def test_the_first_signal_drains_and_the_end_is_a_good_one(settings: Settings) -> None:
    def visit() -> None:
        assert status(settings, "/models") == (200, "")
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 0.4
        while (answer := status(settings, "/readyz")) != (503, "close"):
            assert time.monotonic() < deadline, answer
        assert status(settings, "/models") == (200, "close")  # still served, and the connection given back

    before = signal.getsignal(signal.SIGTERM)
    visited = beside(settings, visit)
    run(settings)
    visited.result(PATIENCE_S)
    assert status(settings, "/livez") == (0, "")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_does_not_wait(settings: Settings) -> None:
    patient = settings.model_copy(update={"shutdown_delay_s": 60.0})
    told: list[float] = []

    def visit() -> None:
        told.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    visited = beside(patient, visit)
    run(patient)
    visited.result(PATIENCE_S)
    assert time.monotonic() - told[0] < 10
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.cancel()  # the first signal's, which this process outlives


def test_a_model_that_cannot_be_loaded_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    write_card(tmp_path, "tiny", ('layer = "layer3"', 'layer = "layer9"'))
    with pytest.raises(ConfigurationError, match=r"card tiny: explain\.layer"):
        run(Settings(models_dir=tmp_path, models=("tiny",), port=0, log_format="json"))


def test_a_port_that_is_taken_ends_the_start(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.port))
        taken.listen()
        with pytest.raises(SystemExit) as raised:  # uvicorn's own way, with the code that a failed start has here too
            run(settings)
    assert raised.value.code == FAILED_START
    assert "address already in use" in capsys.readouterr().err
