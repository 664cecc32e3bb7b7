"""What every route is given: the parts of the service and the phase it is in, behind one typed FastAPI dependency."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from starlette.types import Scope

from service.explain.explainer import Explainer
from service.explain.registry import Registry
from service.settings import Settings
from service.telemetry import Metrics


class Phase(StrEnum):
    """What the service is doing.

    `draining` comes before the server stops: balancers see it at /readyz while requests are still answered.
    """

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Lifecycle:
    """The service's phase, which only moves forward: starting, serving, draining."""

    def __init__(self) -> None:
        self._phase = Phase.STARTING

    @property
    def phase(self) -> Phase:
        """The phase now."""
        return self._phase

    def serve(self) -> bool:
        """The models are ready. Returns False where the service is already draining."""
        if self._phase is Phase.STARTING:
            self._phase = Phase.SERVING
        return self._phase is Phase.SERVING

    def drain(self) -> None:
        """The service has been told to stop."""
        self._phase = Phase.DRAINING


@dataclass(frozen=True, kw_only=True)
class Services:
    """The parts of one application, built once by `create_app`."""

    settings: Settings
    registry: Registry
    explainer: Explainer
    metrics: Metrics
    lifecycle: Lifecycle

    @property
    def phase(self) -> Phase:
        """The phase that the application is in."""
        return self.lifecycle.phase

    def install(self, app: FastAPI) -> None:
        """Makes these the services of an application."""
        app.state.services = self


def services_of(app: FastAPI) -> Services:
    """The services of an application that `create_app` made."""
    return _checked(app.state.services)


def services_of_scope(scope: Scope) -> Services:
    """The services of the application that an ASGI scope belongs to."""
    return services_of(scope["app"])


async def _services(request: Request) -> Services:  # async: FastAPI calls other functions in a thread of their own
    return services_of_scope(request.scope)


def _checked(services: Any) -> Services:
    assert isinstance(services, Services)  # Starlette's state is untyped: this is the one place that looks into it
    return services


ServicesDependency = Annotated[Services, Depends(_services)]
