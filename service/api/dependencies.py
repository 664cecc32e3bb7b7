"""What a route depends on: the parts of the service, the phase it is in, and the log of the request at hand.

The services come through one typed FastAPI dependency. The log is made by the outermost middleware, which reads it at the end;
code in between that learns something of the request writes it there.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from starlette.types import Scope

from service.explain.explainer import Explainer
from service.explain.registry import Registry
from service.explain.results import Answer
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


@dataclass(slots=True, kw_only=True)
class RequestLog:
    """`status` is 499 for a client that left, as nginx has it. `model` is the name of a served model, or ""."""

    id: str
    started: float = field(default_factory=time.perf_counter)
    status: int = 499
    model: str = ""
    code: str | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    answer: Answer | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the request came."""
        return time.perf_counter() - self.started

    def describe(self) -> dict[str, Any]:
        """The fields of the request's log line that do not depend on HTTP."""
        fields: dict[str, Any] = {"status": self.status, "ms": round(self.seconds * 1000, 3)}
        if self.code is not None:
            fields["code"] = self.code
        if self.model:
            fields["model"] = self.model
        if self.answer is not None:
            fields["images"] = [f"{r.image.format} {r.image.width}x{r.image.height}" for r in self.answer.results]
            fields["stages_ms"] = asdict(self.answer.timings)
            fields["batch_size"] = self.answer.batch_size
            if self.answer.cache is not None:
                fields["cache"] = self.answer.cache
        return fields | {"bytes_in": self.bytes_in, "bytes_out": self.bytes_out}

    def count(self, metrics: Metrics, route: str, trace_id: str | None = None) -> None:
        """Counts the request, once it has been answered; the trace that it is part of is an exemplar of its time."""
        metrics.requests.labels(route=route, model=self.model, status=str(int(self.status))).inc()
        exemplar = {"trace_id": trace_id} if trace_id else None
        metrics.request_seconds.labels(route=route).observe(self.seconds, exemplar)
        if self.code is not None:
            metrics.rejections.labels(code=self.code).inc()


def request_log_of(scope: Scope) -> RequestLog:
    """The log that the outermost middleware put into the request's scope."""
    request_log: RequestLog = scope["state"]["request_log"]
    return request_log
