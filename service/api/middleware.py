"""What surrounds every request, outermost first: HEAD; its id, log line and metrics; the API keys.

All are plain ASGI and never touch a body, so nothing is read for a client that will be refused. They know no model.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Final

import structlog
from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.auth import ApiKeySet, refusal
from service.api.dependencies import Lifecycle, Phase, RequestLog, request_log_of
from service.api.problems import answer_problem, internal_error
from service.telemetry import Metrics
from service.tracing import Tracer

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
TRACE_PARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
# Whoever asks these may not have a key: balancers and orchestrators.
PUBLIC_PATHS: Final = frozenset({"/livez", "/readyz", "/healthz", "/health", "/ping", "/v2/health/live", "/v2/health/ready"})
QUIET_ROUTES: Final = PUBLIC_PATHS | {"/metrics"}
ADMIN_PATHS: Final = ("/admin/", "/v2/repository/models/")

log = structlog.get_logger("service.api.requests")


class HeadMiddleware:
    """Answers HEAD as GET without the body, as HTTP asks; FastAPI's routes do not do it by themselves."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """HEAD becomes GET; everything else passes."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, send_head)


class RequestLogMiddleware:
    """Gives each request an id and a log, writes its log line and metrics at its end, and answers what nobody caught."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        lifecycle: Lifecycle,
        tracer: Tracer | None = None,
        quiet: frozenset[str] = QUIET_ROUTES,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.lifecycle = lifecycle
        self.tracer = tracer
        self._quiet = quiet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Surrounds one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_log = RequestLog(id=given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        scope.setdefault("state", {})["request_log"] = request_log
        bound = {"request_id": request_log.id}
        if trace_id := self._trace_id(headers):
            bound["trace_id"] = trace_id
        started = False

        async def observed_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                request_log.status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["X-Request-ID"] = request_log.id
                answer["X-Content-Type-Options"] = "nosniff"
                if self.lifecycle.phase is Phase.DRAINING:
                    answer["Connection"] = "close"
            elif message["type"] == "http.response.body":
                request_log.bytes_out += len(message.get("body", b""))
            await send(message)

        with structlog.contextvars.bound_contextvars(**bound):
            try:
                await self.app(scope, receive, observed_send)
            except ClientDisconnect:
                request_log.code = "client_closed_request"
            except Exception:
                request_log.code = "internal"
                log.exception("unhandled_error")
                if started:
                    raise  # too late for an answer: the server must cut the connection
                await answer_problem(internal_error(), scope)(scope, receive, observed_send)
            finally:
                self._conclude(scope, request_log, trace_id)

    def _trace_id(self, headers: Headers) -> str | None:
        """The trace that the request is part of, here or at whoever sent it."""
        sent = TRACE_PARENT.fullmatch(headers.get("traceparent", ""))
        own = self.tracer.trace_id() if self.tracer is not None else None
        return own or (sent[1] if sent else None)

    def _conclude(self, scope: Scope, request_log: RequestLog, trace_id: str | None) -> None:
        route = getattr(scope.get("route"), "path", "other")
        client = scope.get("client")
        write = log.debug if route in self._quiet else log.info
        write(
            "request",
            method=scope["method"],
            route=route,
            client=client[0] if client else None,
            **request_log.describe(),
        )
        request_log.count(self.metrics, route, trace_id)


class ApiKeyMiddleware:
    """Every path but the probes wants an API key: `Authorization: Bearer <key>` or `X-API-Key: <key>`.

    What loads and unloads models wants an operator's key, which it asks for itself.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[SecretStr], probes: frozenset[str] = PUBLIC_PATHS) -> None:
        self.app = app
        self._keys = ApiKeySet(keys)
        self._probes = probes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 401."""
        if scope["type"] != "http" or scope["path"] in self._probes or scope["path"].startswith(ADMIN_PATHS):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._keys.open(headers):
            await self.app(scope, receive, send)
            return
        error = refusal(headers)
        request_log_of(scope).code = error.code
        await answer_problem(error, scope)(scope, receive, send)
