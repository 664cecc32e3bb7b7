"""Request ids, log lines, metrics and keys."""

from __future__ import annotations

import re
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from service.api.dependencies import Lifecycle
from service.api.middleware import ADMIN_PATHS, PUBLIC_PATHS, ApiKeyMiddleware, RequestLogMiddleware
from service.telemetry import Metrics
from tests.api.stand_ins import StandInExplainer, client_of, make_app, speak

pytestmark = pytest.mark.anyio

GOOD, OTHER = "k" * 32, "gläser" * 5
PATHS = {
    ("GET", "/"): 200,
    ("GET", "/livez"): 200,
    ("GET", "/readyz"): 200,
    ("GET", "/healthz"): 200,
    ("GET", "/health"): 200,
    ("GET", "/ping"): 200,
    ("GET", "/metrics"): 200,
    ("GET", "/models"): 200,
    ("GET", "/models/efficientnet_lite0"): 200,
    ("GET", "/models/efficientnet_lite0/classes"): 200,
    ("GET", "/methods"): 200,
    ("GET", "/docs"): 200,
    ("GET", "/docs/oauth2-redirect"): 200,
    ("GET", "/openapi.json"): 200,
    ("POST", "/predict"): 200,
    ("POST", "/explain"): 200,
    ("POST", "/models/efficientnet_lite0/predict"): 200,
    ("POST", "/models/efficientnet_lite0/explain"): 200,
    ("POST", "/inspect"): 200,
    ("POST", "/models/efficientnet_lite0/inspect"): 200,
    ("GET", "/v1/models"): 200,
    ("GET", "/v1/models/efficientnet_lite0"): 200,
    ("POST", "/v1/models/efficientnet_lite0:predict"): 400,
    ("POST", "/v1/models/efficientnet_lite0:explain"): 400,
    ("GET", "/v2"): 200,
    ("GET", "/v2/health/live"): 200,
    ("GET", "/v2/health/ready"): 200,
    ("GET", "/v2/models/efficientnet_lite0"): 200,
    ("GET", "/v2/models/efficientnet_lite0/ready"): 200,
    ("GET", "/v2/models/efficientnet_lite0/config"): 200,
    ("POST", "/v2/models/efficientnet_lite0/infer"): 400,
    ("POST", "/v2/repository/index"): 400,
    ("POST", "/predictions/efficientnet_lite0"): 400,
    ("POST", "/explanations/efficientnet_lite0"): 400,
    ("POST", "/invocations"): 400,
    ("GET", "/nowhere"): 404,
    ("GET", "/livez/"): 404,
    ("PUT", "/explain"): 405,
}


def log_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    lines = [orjson.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [line for line in lines if line["event"] == "request"]


@pytest.mark.parametrize("given", ["a", "A.b-c_9", "x" * 64, "3f1c"])
async def test_a_good_request_id_is_kept(client: httpx.AsyncClient, given: str) -> None:
    assert (await client.get("/livez", headers={"X-Request-ID": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a/b", "<script>", "a\tb", "é", "a\n"])
async def test_any_other_is_replaced(app: FastAPI, given: str) -> None:
    reply = await speak(app, path="/nowhere", headers={"X-Request-ID": given})
    assert re.fullmatch(r"[0-9a-f]{32}", reply.headers["x-request-id"])
    assert orjson.loads(reply.body)["instance"] == f"urn:request:{reply.headers['x-request-id']}"


async def test_one_log_line_tells_a_request(client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    response = await client.post("/explain", content=b"x" * 10, headers={"X-Request-ID": "one", "traceparent": trace})
    (line,) = log_lines(capsys)
    assert line.pop("ms") > 0
    assert line.pop("timestamp")
    assert line == {
        "event": "request", "level": "info", "logger": "service.api.requests", "request_id": "one", "client": "127.0.0.1",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "method": "POST", "route": "/explain", "status": 200,
        "model": "efficientnet_lite0", "images": ["png 451x300"], "batch_size": 1, "bytes_in": 10,
        "bytes_out": len(response.content),
        "stages_ms": {"decode": 1.0, "queue": 0.25, "infer": 2.5, "evaluate": 0.0, "render": 0.5, "total": 4.25},
    }  # fmt: skip


async def test_the_line_for_a_terminal_tells_the_stages_alike(
    explainer: StandInExplainer, capsys: pytest.CaptureFixture[str]
) -> None:
    async with client_of(make_app(explainer, log_format="console")) as client:
        await client.post("/explain", content=b"x")
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "route=/explain" in line)
    stages = "{'decode': 1.0, 'queue': 0.25, 'infer': 2.5, 'evaluate': 0.0, 'render': 0.5, 'total': 4.25}"
    assert f"stages_ms={stages}" in line


async def test_nothing_a_client_writes_is_logged(client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]) -> None:
    canary = "CANARY"
    await client.get(f"/{canary}?{canary}={canary}", headers={"User-Agent": canary, "X-Request-ID": f"{canary} {canary}"})
    await client.get(f"/models/{canary}")
    files = {"image": (f"{canary}.png", canary.encode(), f"image/{canary}")}
    await client.post(f"/models/{canary}/explain", files=files, data={"class_name": canary})
    lines = log_lines(capsys)
    assert [line["route"] for line in lines] == ["other", "/models/{model}", "/models/{model}/explain"]
    assert canary not in orjson.dumps(lines).decode()


async def test_metrics(app: FastAPI, client: httpx.AsyncClient) -> None:
    await client.post("/explain", content=b"x")
    await client.post("/models/CANARY/explain", content=b"x")
    await client.post("/explain?alpha=2", content=b"x")
    await client.get("/CANARY")
    text = (await client.get("/metrics")).text
    assert 'camserve_requests_total{model="efficientnet_lite0",route="/explain",status="200"} 1.0' in text
    assert 'camserve_requests_total{model="",route="/models/{model}/explain",status="200"} 1.0' in text
    assert 'camserve_requests_total{model="",route="other",status="404"} 1.0' in text
    assert 'camserve_rejections_total{code="parameter_invalid"} 1.0' in text
    assert 'camserve_request_seconds_count{route="/explain"} 2.0' in text
    assert "CANARY" not in text


async def test_head_is_get_without_its_body(client: httpx.AsyncClient) -> None:
    get, head = await client.get("/models"), await client.head("/models")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"]


async def test_an_answer_that_fails_half_way_is_not_hidden() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("half way")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    with pytest.raises(RuntimeError, match="half way"):
        await RequestLogMiddleware(broken, Metrics(), Lifecycle())(scope, receive, send)
    assert len(sent) == 1


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_keys_guard_everything_but_the_probes(explainer: StandInExplainer, method: str, path: str) -> None:
    app = make_app(explainer, api_keys=f"{GOOD},{OTHER}")
    good = PATHS[method, path]
    matrix: list[tuple[dict[str, str], int]] = [
        ({}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Basic {GOOD}"}, 401),
        ({"Authorization": GOOD}, 401),
        ({"X-API-Key": GOOD[:-1]}, 401),
        ({"X-API-Key": GOOD + "k"}, 401),
        ({"X-API-Key": GOOD}, good),
        ({"Authorization": f"Bearer {GOOD}"}, good),
        ({"Authorization": f"bearer {GOOD}"}, good),
        ({"Authorization": "Bearer wrong", "X-API-Key": GOOD}, good),
    ]
    async with client_of(app) as client:
        for headers, status in matrix:
            response = await client.request(method, path, headers=headers, content=b"x" if method == "POST" else b"")
            assert response.status_code == (good if path in PUBLIC_PATHS else status), headers
            if response.status_code == 401:
                assert response.headers["www-authenticate"].startswith('Bearer realm="camserve"')


@pytest.mark.parametrize(("settings", "guarded"), [({}, False), ({"admin_keys": GOOD}, False), ({"api_keys": GOOD}, True)])
def test_without_keys_nothing_looks_for_them(explainer: StandInExplainer, settings: dict[str, Any], guarded: bool) -> None:
    classes: list[Any] = [middleware.cls for middleware in make_app(explainer, **settings).user_middleware]
    assert (ApiKeyMiddleware in classes) == guarded


async def test_every_route_is_in_the_matrix(app: FastAPI) -> None:
    known = {path.replace("efficientnet_lite0", "{model}") for _, path in PATHS}
    # Those of operators have keys of their own: test_admin.py.
    documented = {path for path in app.openapi()["paths"] if not path.startswith(ADMIN_PATHS)}
    assert documented <= known


async def test_a_key_is_missing_or_wrong(explainer: StandInExplainer) -> None:
    app = make_app(explainer, api_keys=GOOD)
    for headers, code, challenge in (
        ({}, "auth_required", 'Bearer realm="camserve"'),
        ({"Authorization": f"Basic {GOOD}"}, "auth_required", 'Bearer realm="camserve"'),
        ({"X-API-Key": "é"}, "auth_invalid", 'Bearer realm="camserve", error="invalid_token"'),
    ):
        reply = await speak(app, [b"x"], headers=headers)
        assert (reply.status, orjson.loads(reply.body)["code"]) == (401, code)
        assert reply.headers["www-authenticate"] == challenge
        assert reply.received == 0  # the body of a stranger is not read


async def test_a_key_beyond_ascii(explainer: StandInExplainer) -> None:
    app = make_app(explainer, api_keys=f"{GOOD},{OTHER}")
    reply = await speak(app, [b"x"], headers={"X-API-Key": OTHER.encode().decode("latin-1")})
    assert reply.status == 200
