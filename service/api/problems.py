"""Every error's way to the client: one body, RFC 9457's, for our own errors and for the framework's.

A body never holds the client's input, a path, a stack or a library's words: `detail` is written where the error is raised, and
what FastAPI and Starlette say is replaced here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from service.api.dependencies import request_log_of, services_of_scope
from service.api.validation import validation_detail
from service.errors import (
    AuthInvalid,
    AuthRequired,
    BusyError,
    CamserveError,
    MethodNotAllowed,
    NotFound,
    ParameterInvalid,
    PayloadTooLarge,
    RequestError,
)

MEDIA_TYPE = "application/problem+json"
# Clients of other servers show the text of an error only where its type is this one to the letter.
PLAIN_MEDIA_TYPE = "application/json"
PROTOCOL_PATHS: Final = re.compile(r"/(v1|v2|predictions|explanations|invocations)(/|$)")
TORCHSERVE_PATHS: Final = re.compile(r"/(predictions|explanations)(/|$)")
DEFAULT_RETRY_AFTER_S = 1
ESTIMATE_DIGITS = 3
RETRY_STATUSES = (429, 503)

log = structlog.get_logger(__name__)


def answer_problem(error: CamserveError, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """The error as the client of this request reads it: another server's clients get it as `application/json`.

    Args:
        error: as for `problem_response`.
        scope: of the request.
        headers: as for `problem_response`.
    """
    path, settings = scope["path"], services_of_scope(scope).settings
    plain = PROTOCOL_PATHS.match(path) is not None or path == settings.vertex_predict_route
    return problem_response(
        error,
        request_log_of(scope).id,
        headers,
        media_type=PLAIN_MEDIA_TYPE if plain else MEDIA_TYPE,
        message=TORCHSERVE_PATHS.match(path) is not None,
    )


def problem_response(
    error: CamserveError,
    request_id: str,
    headers: Mapping[str, str] | None = None,
    *,
    media_type: str = MEDIA_TYPE,
    message: bool = False,
) -> Response:
    """The error as RFC 9457 has it.

    Args:
        error: its class gives status, code and title, its `detail` the sentence for people.
        request_id: becomes `instance`.
        headers: sent as they are, beside Retry-After where the status asks for it.
        media_type: of the body.
        message: `detail` is also given as `message`, where TorchServe's clients look.
    """
    body: dict[str, Any] = {
        "type": f"urn:camserve:problem:{error.code}",
        "title": error.title,
        "status": int(error.status),
        "detail": error.detail,
        "instance": f"urn:request:{request_id}",
        "code": error.code,
        "error": error.detail,  # where clients of TorchServe, Triton and KServe look
    }
    if isinstance(error, BusyError) and error.estimate_s is not None:
        body["estimate_s"] = round(error.estimate_s, ESTIMATE_DIGITS)  # an extension member of RFC 9457
    if message:
        body["message"] = error.detail
    extra = {"Vary": "Accept", **(headers or {})}
    if error.status in RETRY_STATUSES:
        seconds = DEFAULT_RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        extra["Retry-After"] = str(max(1, math.ceil(seconds)))
    if isinstance(error, (AuthRequired, AuthInvalid)):
        wrong = ', error="invalid_token"' if isinstance(error, AuthInvalid) else ""
        extra["WWW-Authenticate"] = f'Bearer realm="camserve"{wrong}'
    if isinstance(error, PayloadTooLarge):
        extra["Connection"] = "close"  # the rest of the body is not worth reading
    return Response(orjson.dumps(body), int(error.status), extra, media_type)


def internal_error() -> CamserveError:
    """What a client is told of a fault of ours: nothing but where to find it."""
    return CamserveError("Something failed on our side. Quote the request id when you report it.")


async def _answer_own(request: Request, error: Exception) -> Response:
    assert isinstance(error, CamserveError)
    return _answer(request, error)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, _translate(error), error.headers)


async def _answer_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _answer(request, ParameterInvalid(validation_detail(error.errors())))


def _answer(request: Request, error: CamserveError, headers: Mapping[str, str] | None = None) -> Response:
    record = request_log_of(request.scope)
    record.code = error.code
    if error.status == 500:
        log.error("request_failed", code=error.code, exc_info=error)
    return answer_problem(error, request.scope, headers)


def _translate(error: HTTPException) -> CamserveError:
    match error.status_code:
        case 404:
            return NotFound("There is nothing at this address. GET / says what is served.")
        case 405:
            return MethodNotAllowed("This address does not know this HTTP method; the Allow header lists those it knows.")
        case status if status < 500:
            return RequestError("This is not a request that the service understands. GET /docs describes them.")
        case _:
            return internal_error()


def install(app: FastAPI) -> None:
    """Answers every exception that a route lets out; what escapes even this is caught by the outermost middleware."""
    app.add_exception_handler(CamserveError, _answer_own)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_validation)
