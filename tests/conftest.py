"""The service as it is run: uvicorn on a free port, started once for all tests that ask for it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from tests.parity import matrix

START_S = 300.0


@dataclass(frozen=True)
class Running:
    """A server of this process: where it listens, and the app in it."""

    url: str
    app: FastAPI


@pytest.fixture
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio; a file that needs another loop has a fixture of its own."""
    return "asyncio"


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """The default service, ready; with time enough for a machine that does other work beside the tests.

    Every answer is the network's own: nothing is cached.
    """
    with running(Settings(request_timeout_s=60, log_format="json", cache_entries=0)) as service:
        yield service


@pytest.fixture(scope="session")
def gallery() -> Iterator[Running]:
    """A service of several networks, with time for methods that ask them often; all but the first have random weights."""
    models = ("efficientnet_lite0", "resnet50", "vgg16", "xception", "vit_b_16")
    settings = Settings(models=models, random_weights=True, request_timeout_s=300, log_format="json", cache_entries=0)
    with running(settings) as service:
        yield service


@contextmanager
def running(settings: Settings) -> Iterator[Running]:
    """A server of this process, ready; ended at the end."""
    failures: list[BaseException] = []
    with listening(create_app(settings, on_fatal=failures.append)) as service:
        started = time.monotonic()
        while httpx.get(f"{service.url}/readyz").status_code != 200:
            if failures:
                raise failures[0]
            assert time.monotonic() - started < START_S
            time.sleep(0.1)
        yield service


@contextmanager
def listening(app: FastAPI) -> Iterator[Running]:
    """A server of this process for an application, ready or not; ended at the end."""
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False)
    uvicorn_server = uvicorn.Server(config)
    thread = threading.Thread(target=uvicorn_server.run, name="server")
    thread.start()
    try:
        started = time.monotonic()
        while not uvicorn_server.started and thread.is_alive() and time.monotonic() - started < START_S:
            time.sleep(0.02)
        assert uvicorn_server.started
        host, port = uvicorn_server.servers[0].sockets[0].getsockname()[:2]
        yield Running(f"http://{host}:{port}", app)
    finally:
        uvicorn_server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def pytest_configure(config: pytest.Config) -> None:
    """Exports are kept for one run of the tests, in a folder that all of its processes share."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = tempfile.mkdtemp(prefix="camserve-tests-")
        os.environ["CAMSERVE_CACHE_DIR"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = (report for kind in terminalreporter.stats.values() for report in kind)
    for table in matrix.write(reports, Path(__file__).parents[1] / "build" / "parity"):
        terminalreporter.section("oracle matrix")
        terminalreporter.write(table)
