"""Servers as processes of their own, on the loopback: started, waited for, and ended, only those started here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

HOST = "127.0.0.1"
REPOSITORY = Path(__file__).resolve().parents[2]
START_S = 180.0
POLL_S = 0.02


@dataclass(frozen=True)
class Server:
    """A running one, and the seconds from its start until it was ready."""

    port: int
    ready_s: float


@contextmanager
def serving(*command: str, ready: str, **environment: str) -> Iterator[Server]:
    """Runs ``python *command --port N`` until the block ends; entered when GET `ready` answers 200.

    Raises:
        RuntimeError: it ended, or was not ready in time; with the end of what it wrote.
    """
    port = free_port()
    with tempfile.TemporaryFile() as words:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command, "--port", str(port)],
            cwd=REPOSITORY,
            env=os.environ | environment,
            stdout=words,
            stderr=words,
            start_new_session=True,  # a server that spawns workers is ended with them
        )
        try:
            while not _answers(port, ready):
                if process.poll() is not None or time.perf_counter() - started > START_S:
                    words.seek(0)
                    raise RuntimeError(f"{' '.join(command)} did not start:\n{words.read()[-2000:].decode(errors='replace')}")
                time.sleep(POLL_S)
            yield Server(port, time.perf_counter() - started)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def camserve(*models: str) -> tuple[tuple[str, ...], str, dict[str, str]]:
    """What `serving` needs for the service itself: command, address that tells that it is ready, environment."""
    settings = {"MODELS": ",".join(models), "RANDOM_WEIGHTS": "1", "LOG_FORMAT": "json", "REQUEST_TIMEOUT_S": "60"}
    settings["CACHE_ENTRIES"] = "0"  # one photograph goes up again and again
    return ("-m", "service", "serve"), "/readyz", {f"CAMSERVE_{name}": value for name, value in settings.items()}


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def _answers(port: int, path: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"http://{HOST}:{port}{path}", timeout=5).status_code == 200
    return False
