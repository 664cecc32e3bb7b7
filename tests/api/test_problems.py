"""Every error has one body, whoever raised it, and tells nothing that it should not."""

from __future__ import annotations

import inspect

import httpx
import orjson
import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from service import errors
from service.api.problems import problem_response
from service.api.schemas import Problem
from service.errors import CamserveError
from tests.api.stand_ins import StandInExplainer

ALL = sorted(
    (
        error
        for _, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, CamserveError) and error.__module__ == errors.__name__
    ),
    key=lambda error: error.__name__,
)


@pytest.mark.parametrize("error", ALL)
def test_the_body(error: type[CamserveError]) -> None:
    response = problem_response(error("What to do.", retry_after_s=1.2), "abc")
    assert response.media_type == "application/problem+json"
    body = orjson.loads(response.body)
    Problem.model_validate(body)
    assert body == {
        "type": f"urn:camserve:problem:{error.code}",
        "title": error.title,
        "status": response.status_code,
        "detail": "What to do.",
        "instance": "urn:request:abc",
        "code": error.code,
        "error": "What to do.",
    }
    assert response.headers.get("retry-after") == ("2" if error.status in (429, 503) else None)


@pytest.mark.parametrize("error", [errors.DeadlineExceeded, errors.Overloaded])
def test_a_request_refused_beforehand_is_told_how_long_it_would_take(error: type[errors.BusyError]) -> None:
    body = orjson.loads(problem_response(error("What to do.", estimate_s=31.23456), "abc").body)
    assert Problem.model_validate(body, strict=True).estimate_s == body["estimate_s"] == 31.235


def test_retry_after_is_never_missing_where_it_belongs() -> None:
    assert problem_response(errors.Overloaded("Busy."), "a").headers["retry-after"] == "1"
    assert problem_response(errors.NotReady("Wait.", retry_after_s=0.01), "a").headers["retry-after"] == "1"


@pytest.mark.anyio
@pytest.mark.parametrize("error", ALL)
async def test_raised_by_the_explainer(
    client: httpx.AsyncClient, explainer: StandInExplainer, error: type[CamserveError]
) -> None:
    explainer.fail_with = error("What to do.")
    response = await client.post("/explain", content=b"x")
    assert response.status_code == error.status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == error.code
    assert response.json()["instance"] == f"urn:request:{response.headers['x-request-id']}"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "path", "status", "code", "allow"),
    [
        ("GET", "/nowhere", 404, "not_found", None),
        ("GET", "/explain/", 404, "not_found", None),
        ("POST", "/models/a/b/explain", 404, "not_found", None),
        ("GET", "/explain", 405, "method_not_allowed", "POST"),
        ("HEAD", "/explain", 405, None, "POST"),
        ("OPTIONS", "/explain", 405, "method_not_allowed", "POST"),
        ("DELETE", "/models/a", 405, "method_not_allowed", "GET"),
        ("POST", "/livez", 405, "method_not_allowed", "GET"),
        ("TRACE", "/livez", 405, "method_not_allowed", "GET"),
    ],
)
async def test_of_the_framework(
    client: httpx.AsyncClient, method: str, path: str, status: int, code: str | None, allow: str | None
) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers.get("allow") == allow
    if code is not None:
        assert Problem.model_validate_json(response.content).code == code


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RuntimeError("/secret/path torch"), 500, "internal"),
        (UnicodeEncodeError("utf-8", "secret", 0, 1, "secret"), 500, "internal"),
        (TimeoutError("secret"), 500, "internal"),
        (HTTPException(500, "secret"), 500, "internal"),
        (HTTPException(418, "secret"), 400, "request_malformed"),
        (
            RequestValidationError([{"type": "int_parsing", "loc": ("query", "a"), "input": "secret", "msg": "secret"}]),
            422,
            "parameter_invalid",
        ),
    ],
)
async def test_nothing_leaks(
    client: httpx.AsyncClient, explainer: StandInExplainer, error: Exception, status: int, code: str
) -> None:
    explainer.fail_with = error
    response = await client.post("/explain", content=b"x")
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert "secret" not in response.text
    assert "torch" not in response.text


@pytest.mark.anyio
async def test_the_traceback_of_a_fault_is_logged(
    app: FastAPI, client: httpx.AsyncClient, explainer: StandInExplainer, capsys: pytest.CaptureFixture[str]
) -> None:
    explainer.fail_with = RuntimeError("the reason")
    await client.post("/explain", content=b"x", headers={"X-Request-ID": "fault-1"})
    lines = [orjson.loads(line) for line in capsys.readouterr().err.splitlines()]
    fault = next(line for line in lines if "exception" in line)
    assert (fault["event"], fault["request_id"]) == ("unhandled_error", "fault-1")
    assert "RuntimeError: the reason" in fault["exception"]


@pytest.mark.anyio
async def test_an_error_of_ours_that_is_a_fault_is_logged_with_its_traceback(
    client: httpx.AsyncClient, explainer: StandInExplainer, capsys: pytest.CaptureFixture[str]
) -> None:
    explainer.fail_with = errors.InferenceNonFinite("What to do.")
    await client.post("/explain", content=b"x", headers={"X-Request-ID": "fault-2"})
    lines = [orjson.loads(line) for line in capsys.readouterr().err.splitlines()]
    (fault,) = (line for line in lines if line["event"] == "request_failed")
    assert (fault["request_id"], fault["code"]) == ("fault-2", "inference_non_finite")
    assert "InferenceNonFinite: What to do." in fault["exception"]
