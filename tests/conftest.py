"""The service as it is run: uvicorn on a free port with the embedded model, started once for all tests that ask for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings

START_S = 120.0


@dataclass(frozen=True)
class Running:
    """A server of this process: where it listens, and the app in it."""

    url: str
    app: FastAPI


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """The default service, ready."""
    app = create_app(Settings(log_format="json"))
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, name="server")
    thread.start()
    try:
        started = time.monotonic()
        while not running.started and thread.is_alive() and time.monotonic() - started < START_S:
            time.sleep(0.02)
        assert running.started
        host, port = running.servers[0].sockets[0].getsockname()[:2]
        url = f"http://{host}:{port}"
        while httpx.get(f"{url}/readyz").status_code != 200:
            assert time.monotonic() - started < START_S
            time.sleep(0.1)
        yield Running(url, app)
    finally:
        running.should_exit = True
        thread.join(30)
    assert not thread.is_alive()
