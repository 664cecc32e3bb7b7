"""A request's way through the routes: deadlines, clients that leave, phases."""

from __future__ import annotations

import asyncio
import time

import httpx
import orjson
import pytest
from fastapi import FastAPI

from service.api.dependencies import services_of
from service.api.routes import cancel_on_disconnect
from tests.api.stand_ins import StandInExplainer, StandInRegistry, client_of, make_app, speak

pytestmark = pytest.mark.anyio


async def test_a_client_that_leaves_cancels_the_work(
    app: FastAPI, explainer: StandInExplainer, capsys: pytest.CaptureFixture[str]
) -> None:
    explainer.wait, left = asyncio.Event(), asyncio.Event()
    request = asyncio.create_task(speak(app, [b"x"], left=left))
    await explainer.asked.wait()
    left.set()
    reply = await asyncio.wait_for(request, 5)
    assert explainer.cancelled
    assert reply.messages == []
    line = orjson.loads(capsys.readouterr().err.splitlines()[-1])
    assert (line["status"], line["code"]) == (499, "client_closed_request")


@pytest.mark.parametrize("kind", ["image/png", "application/json", "multipart/form-data; boundary=b"])
async def test_a_client_that_leaves_in_its_body(app: FastAPI, explainer: StandInExplainer, kind: str) -> None:
    left = asyncio.Event()
    left.set()
    reply = await asyncio.wait_for(speak(app, [b"--b\r\n"], headers={"Content-Type": kind}, left=left, complete=False), 5)
    assert reply.messages == []
    assert explainer.calls == []


async def test_a_late_answer_is_a_504_and_the_work_is_cancelled(explainer: StandInExplainer) -> None:
    explainer.wait = asyncio.Event()
    async with client_of(make_app(explainer, request_timeout_s=0.05)) as client:
        response = await client.post("/explain", content=b"x")
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
    assert response.json()["detail"] == (
        "There was no answer within 0.05 seconds. Send fewer images, ask for less, or try again."
    )
    assert explainer.cancelled
    assert explainer.calls[-1].deadline.over


async def test_a_body_that_never_ends_is_a_504(explainer: StandInExplainer) -> None:
    reply = await asyncio.wait_for(speak(make_app(explainer, request_timeout_s=0.05), [b"x"], complete=False), 5)
    assert reply.status == 504


async def test_the_explainer_is_told_the_deadline(client: httpx.AsyncClient, explainer: StandInExplainer) -> None:
    now = time.monotonic()
    await client.post("/explain", content=b"x")
    deadline = explainer.calls[-1].deadline
    assert now + 10 <= time.monotonic() + deadline.remaining_s < now + 15
    assert deadline.over  # the request has ended: nobody waits for it any more


async def test_no_task_is_left_behind(client: httpx.AsyncClient) -> None:
    before = asyncio.all_tasks()
    await client.post("/explain", content=b"x")
    assert asyncio.all_tasks() == before


async def test_the_model_in_the_path(client: httpx.AsyncClient, explainer: StandInExplainer) -> None:
    await client.post("/models/resnet50/explain", content=b"x")
    assert explainer.options.model == "resnet50"
    assert (await client.post("/models/resnet50/predict?model=resnet50", content=b"x")).status_code == 200
    response = await client.post("/models/resnet50/predict?model=vgg16", content=b"x")
    assert (response.status_code, response.json()["code"]) == (422, "parameter_invalid")


async def test_while_the_models_load_only_the_probes_answer(explainer: StandInExplainer) -> None:
    async with client_of(make_app(explainer, serving=False)) as client:
        for path in ("/explain", "/predict"):
            response = await client.post(path, content=b"x")
            assert (response.status_code, response.json()["code"], response.headers["retry-after"]) == (503, "not_ready", "2")
        assert (await client.get("/livez")).status_code == 200
        for path in ("/readyz", "/healthz", "/health", "/ping"):
            response = await client.get(path)
            assert (response.status_code, response.json()["code"]) == (503, "not_ready")


async def test_while_draining_requests_are_still_answered(app: FastAPI, client: httpx.AsyncClient) -> None:
    services_of(app).lifecycle.drain()
    response = await client.get("/readyz")
    assert (response.status_code, response.json()["code"]) == (503, "shutting_down")
    assert (await client.post("/explain", content=b"x")).status_code == 200


async def test_a_dead_worker_makes_the_service_not_ready(explainer: StandInExplainer) -> None:
    registry = StandInRegistry()
    async with client_of(make_app(explainer, registry)) as client:
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        registry.ready = False
        assert (await client.get("/readyz")).status_code == 503


async def test_the_greeting(client: httpx.AsyncClient) -> None:
    greeting = (await client.get("/")).json()
    assert (greeting["status"], greeting["name"]) == ("alive", "camserve")
    assert (await client.get(greeting["docs"])).status_code == 200


async def test_cancel_on_disconnect_cancels_when_it_is_cancelled_itself() -> None:
    never, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            await never.wait()
        finally:
            cancelled.set()

    async def receive() -> dict[str, object]:
        await never.wait()
        return {}

    task = asyncio.create_task(cancel_on_disconnect(receive, work()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()
