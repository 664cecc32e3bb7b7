"""The process: uvicorn with the service's settings, a start that can fail with a reason, a stop that answers everyone first."""

from __future__ import annotations

import math
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.api.dependencies import Phase, services_of
from service.app import create_app
from service.errors import ConfigurationError
from service.settings import Settings


class Server(uvicorn.Server):
    """uvicorn, which when told to stop goes on serving for a moment, not ready, and then ends with exit code 0.

    In that moment balancers see that it is not ready, requests that have been sent already are read and answered, and every
    answer asks its client to close the connection: an idle connection that is closed may have a request in it.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, delay_s: float) -> None:
        super().__init__(config)
        self._lifecycle = services_of(app).lifecycle
        self._delay_s = delay_s
        self.failure: BaseException | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """The first signal drains, a second one stops at once. uvicorn's own would raise the signal again at the end."""
        if self._lifecycle.phase is Phase.DRAINING:
            self.should_exit = self.force_exit = True
            return
        self._lifecycle.drain()
        timer = threading.Timer(self._delay_s, self._exit)
        timer.daemon = True
        timer.start()

    def _exit(self) -> None:
        self.should_exit = True

    def fail(self, error: BaseException) -> None:
        """Stops the server because the models cannot be loaded."""
        self.failure = error
        self.should_exit = True


def run(settings: Settings) -> None:
    """Serves until told to stop; returns when everything accepted has been answered.

    Raises:
        ConfigurationError: the service could not start; why, and what would be right.
    """
    app = create_app(settings, on_fatal=lambda error: server.fail(error))  # noqa: PLW0108 (there is no server yet)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=5,
        # Every accepted request is answered by its own deadline at the latest.
        timeout_graceful_shutdown=math.ceil(settings.request_timeout_s) + 5,
        h11_max_incomplete_event_size=16 * 1024,
    )
    server = Server(config, app, settings.shutdown_delay_s)
    server.run()
    if isinstance(server.failure, ConfigurationError):
        raise server.failure
    if server.failure is not None or not server.started:
        raise ConfigurationError("the service did not start; its log says why") from server.failure
