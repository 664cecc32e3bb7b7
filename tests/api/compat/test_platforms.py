"""SageMaker, Vertex AI, Azure ML and a service of only some protocols: their addresses, headers and environment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import urllib3

from service.app import create_app
from service.errors import ConfigurationError
from service.settings import Settings
from tests import image_files as make
from tests.api.compat.wire import b64
from tests.api.stand_ins import client_of
from tests.conftest import Running
from tests.explain.small_service import load_small, small_settings, until
from tests.model_cards import write_card
from tests.photographs import CHELSEA

pytestmark = pytest.mark.anyio

IMAGE = make.save(make.scene(96, 48), "PNG")
TEXT = b64(IMAGE)
KEY = "k" * 32
CANARY = "CANARY-4f1d"
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


@asynccontextmanager
async def service(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The app with a small network and these settings, started."""
    load_small(monkeypatch)
    app = create_app(small_settings(folder, **settings))
    async with app.router.lifespan_context(app), client_of(app) as client:

        async def ready() -> bool:
            return (await client.get("/readyz")).status_code == 200

        await until(ready)
        yield client


# SageMaker --------------------------------------------------------------------------------------------------------------------


def invoke_endpoint(server: Running, body: bytes, **headers: str) -> urllib3.BaseHTTPResponse:
    """As `LocalSagemakerRuntimeClient.invoke_endpoint` of sagemaker 2.257.7 sends it, whose package would bring boto3 along."""
    with urllib3.PoolManager() as http:
        return http.request("POST", f"{server.url}/invocations", body=body, headers=headers)


def test_sagemaker_s_local_client(server: Running) -> None:
    native = httpx.post(
        f"{server.url}/explain",
        content=CHELSEA.data,
        params={"method": "layercam", "class_id": 281},
        headers={"Accept": "image/png", "X-Request-ID": "same"},
    )
    headers = {"Content-type": "image/png", "Accept": "image/png", "X-Request-ID": "same"}
    found = invoke_endpoint(server, CHELSEA.data, **headers, **{ATTRIBUTES: "method=layercam,class_id=281"})
    assert (found.status, found.headers["content-type"], found.data) == (200, "image/png", native.content)
    assert httpx.get(f"{server.url}/ping").status_code == 200


async def test_attributes_name_lists(whole: httpx.AsyncClient) -> None:
    headers = {ATTRIBUTES: "class_id=3, 1, polarity=both,heatmap=none"}
    answer = await whole.post("/invocations", content=IMAGE, headers=headers)
    explanations = answer.json()["results"][0]["explanations"]
    assert [(one["class_id"], one["polarity"], one["heatmap"]) for one in explanations] == [
        (3, "both", None),
        (1, "both", None),
    ]


async def test_instances_of_sagemaker(whole: httpx.AsyncClient) -> None:
    document = {"instances": [{"image": {"b64": TEXT}}, TEXT]}
    answer = await whole.post("/invocations", json=document, headers={ATTRIBUTES: "class_id=2"})
    assert [[one["class_id"] for one in row] for row in answer.json()["explanations"]] == [[2], [2]]
    predicted = await whole.post("/invocations", json=document, headers={ATTRIBUTES: "explain=false"})
    assert predicted.json().keys() == {"predictions"}


async def test_sagemaker_s_other_bodies(whole: httpx.AsyncClient) -> None:
    native = (await whole.post("/explain", content=IMAGE)).json()["results"]
    for body in ({"json": {"image": TEXT}}, {"files": {"image": IMAGE}}, {"content": TEXT}):
        assert (await whole.post("/invocations", **body)).json()["results"] == native
    predicted = await whole.post("/invocations", content=IMAGE, params={"explain": "false"})
    assert predicted.json()["results"] == (await whole.post("/predict", content=IMAGE)).json()["results"]


@pytest.mark.parametrize(
    ("header", "status", "code"),
    [
        ("281", 400, "request_malformed"),
        ("a=" + "x" * 1023, 400, "request_malformed"),
        ("nonsense=1", 422, "parameter_invalid"),
        ("method=nonsense", 422, "method_not_applicable"),
        ("alpha=0.1,alpha=0.2", 422, "parameter_invalid"),
        ("model=nowhere", 404, "model_not_found"),
    ],
)
async def test_attributes_that_are_wrong(whole: httpx.AsyncClient, header: str, status: int, code: str) -> None:
    answer = await whole.post("/invocations", content=IMAGE, headers={ATTRIBUTES: header})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/json"
    assert "x" * 20 not in answer.text


# Vertex AI --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["/v1/endpoints/7/deployedModels/8:predict", "/predict", "/"])
async def test_vertex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/v1/endpoints/7/deployedModels/8")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", route)
    if route == "/":
        with pytest.raises(ValueError, match="vertex_predict_route"):
            small_settings(tmp_path)
        return
    async with service(tmp_path, monkeypatch, api_keys=KEY) as client:
        # Vertex AI probes without a key.
        assert (await client.get("/v1/endpoints/7/deployedModels/8")).json() == {"status": "ready"}
        client.headers["X-API-Key"] = KEY
        plain = await client.post(route, json={"instances": [{"b64": TEXT}], "parameters": {"top_k": 2}})
        assert [len(one["predictions"]) for one in plain.json()["predictions"]] == [2]
        explained = await client.post(
            route, json={"instances": [{"b64": TEXT}], "parameters": {"explain": True, "class_id": 1}}
        )
        assert explained.json().keys() == {"predictions"}
        assert [one["class_id"] for one in explained.json()["predictions"][0]["explanations"]] == [1]
        raw = await client.post(route, content=IMAGE, headers={"Accept": "image/png"}, params={"explain": "true"})
        assert raw.headers["content-type"] == "image/png"
        refused = await client.post(route, json={"instances": []})
        assert (refused.status_code, refused.headers["content-type"]) == (422, "application/json")


# Azure ML, and the rest ------------------------------------------------------------------------------------------------------


async def test_azure_ml_s_three_routes(whole: httpx.AsyncClient) -> None:
    """Its deployment names /livez, /readyz and /explain; its front sends an x-request-id and looks for it."""
    assert (await whole.get("/livez")).status_code == (await whole.get("/readyz")).status_code == 200
    answer = await whole.post("/explain", json={"image": TEXT}, headers={"x-request-id": "azure-1"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, "azure-1")


ADDRESSES = {
    "native": ("POST", "/explain"),
    "kserve": ("GET", "/v1/models"),
    "oip": ("GET", "/v2"),
    "torchserve": ("PUT", "/predictions/tiny"),
    "sagemaker": ("POST", "/invocations"),
    "vertex": ("POST", "/score"),
}


@pytest.mark.parametrize("wanted", ["native", "kserve", "oip,sagemaker", "torchserve,vertex", ""])
async def test_only_the_protocols_that_are_wanted(tmp_path: Path, wanted: str) -> None:
    settings = small_settings(tmp_path, vertex_predict_route="/score", **({"protocols": wanted} if wanted else {}))
    async with client_of(create_app(settings)) as client:
        there = {name for name, (method, path) in ADDRESSES.items() if (await client.request(method, path)).status_code != 404}
        assert (await client.get("/livez")).status_code == 200
    assert there == set(wanted.split(",") if wanted else ADDRESSES)


async def test_an_inference_service_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KServe's clients ask for the name of the InferenceService, not for that of the card in its container."""
    async with service(tmp_path, monkeypatch, model_name="cats") as client:
        assert (await client.get("/v1/models")).json() == {"models": ["cats", "tiny"]}
        assert (await client.get("/v1/models/cats")).json() == {"name": "cats", "ready": True}
        assert (await client.post("/v1/models/cats:explain", json={"instances": [TEXT]})).status_code == 200
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
        answer = (await client.post("/v2/models/cats/infer", json={"inputs": [tensor], "outputs": [{"name": "scores"}]})).json()
        assert answer["model_name"] == "cats"
        assert (await client.put("/predictions/cats", content=IMAGE)).status_code == 200
        assert (await client.get("/v1/models/dogs")).status_code == 404
        assert 'model="tiny"' in (await client.get("/metrics")).text
        assert "cats" not in (await client.get("/metrics")).text


def test_that_name_is_no_other_card_s(tmp_path: Path) -> None:
    write_card(tmp_path, "other")
    with pytest.raises(ConfigurationError, match="model_name: there is a card other, and the default model is tiny"):
        create_app(small_settings(tmp_path, model_name="other"))
    assert create_app(small_settings(tmp_path, model_name="tiny"))


@pytest.mark.parametrize("name", ["a:b", "Cats", "a/b", ""])
def test_that_name_can_stand_in_an_address(name: str) -> None:
    with pytest.raises(ValueError, match="model_name"):
        Settings(model_name=name)


# Nothing comes back -------------------------------------------------------------------------------------------------------


async def test_no_header_of_a_request_comes_back(whole: httpx.AsyncClient) -> None:
    names = ("Authorization", "Cookie", "User-Agent", "X-API-Key", "ce-id", "ce-source", "X-Custom", "Referer", "Origin")
    headers = dict.fromkeys(names, CANARY) | {
        "X-Request-ID": f"{CANARY} {CANARY}",
        "X-Amzn-SageMaker-Inference-Id": CANARY,
    }
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [b64(IMAGE)]}
    bodies = ({"json": {"instances": [b64(IMAGE)]}}, {"json": {"inputs": [tensor]}}, {"content": IMAGE}, {"content": b""})
    paths = (await whole.get("/openapi.json")).json()["paths"]
    statuses = set()
    for path, methods in paths.items():
        for method in methods:
            for body in bodies if method != "get" else ({},):
                answer = await whole.request(method, path.replace("{model}", "tiny"), headers=headers, **body)
                statuses.add(answer.status_code)
                assert answer.status_code < 500
                assert CANARY not in answer.text
                assert CANARY not in str(answer.headers)
    assert {200, 400, 401, 422} <= statuses
