"""Answers against `api.md`: the JSON's fields and order, the headers, and the documented shapes."""

from __future__ import annotations

import base64

import httpx
import orjson
import pytest
from pydantic import BaseModel, TypeAdapter

from service.api.schemas import (
    ExplainForm,
    ExplainJson,
    InspectForm,
    InspectJson,
    JsonImage,
    PredictForm,
    PredictJson,
    Problem,
)
from service.explain.options import ExplainOptions, InspectOptions, PredictOptions, Targets
from service.explain.results import (
    ExplainResponse,
    InspectResponse,
    MethodList,
    ModelInfo,
    ModelList,
    PredictResponse,
)
from tests.api.stand_ins import StandInExplainer

pytestmark = pytest.mark.anyio


async def test_explain_json_is_the_documented_shape(client: httpx.AsyncClient) -> None:
    response = await client.post("/explain?class_id=1&class_id=2&overlay=true", content=b"x", headers={"X-Request-ID": "abc"})
    answer = TypeAdapter(ExplainResponse).validate_json(response.content, strict=True)
    assert answer.id == "abc"
    assert [explanation.class_id for explanation in answer.results[0].explanations] == [1, 2]
    document = orjson.loads(response.content)
    assert list(document) == ["id", "model", "results", "timings_ms", "batch_size"]
    assert list(document["model"]) == ["name", "version", "digest", "precision", "engine", "device"]
    assert list(document["results"][0]) == ["image", "predictions", "explanations"]
    assert list(document["results"][0]["explanations"][0]) == [
        "class_id", "label", "wordnet_id", "probability", "logit", "versus", "method", "layer", "polarity", "scale", "raw_min",
        "raw_max", "raw_unit", "blank", "grid", "region", "heatmap", "overlay", "evaluation",
    ]  # fmt: skip
    heatmap = document["results"][0]["explanations"][0]["heatmap"]
    assert list(heatmap) == ["media_type", "width", "height", "b64"]
    assert base64.b64decode(heatmap["b64"], validate=True) == b"\x89PNG heat"
    assert document["timings_ms"] == {
        "decode": 1.0, "queue": 0.25, "infer": 2.5, "evaluate": 0.0, "render": 0.5, "total": 4.25,
    }  # fmt: skip


async def test_predict_json_is_the_documented_shape(client: httpx.AsyncClient) -> None:
    response = await client.post("/predict", content=b"x")
    TypeAdapter(PredictResponse).validate_json(response.content, strict=True)
    assert list(response.json()) == ["id", "model", "results", "timings_ms", "batch_size"]
    assert "explanations" not in response.json()["results"][0]


async def test_inspect_json_is_the_documented_shape(client: httpx.AsyncClient) -> None:
    response = await client.post("/inspect", content=b"x")
    TypeAdapter(InspectResponse).validate_json(response.content, strict=True)
    document = response.json()
    assert list(document) == ["id", "model", "results", "timings_ms", "batch_size"]
    assert list(document["results"][0]) == ["image", "predictions", "inspection"]
    assert list(document["results"][0]["inspection"]) == [
        "class_id", "label", "wordnet_id", "probability", "logit", "versus", "layers",
    ]  # fmt: skip
    assert list(document["results"][0]["inspection"]["layers"][0]) == [
        "layer", "shape", "activation_min", "activation_mean", "activation_max", "gradients", "weights", "strongest",
    ]  # fmt: skip


async def test_headers(client: httpx.AsyncClient) -> None:
    response = await client.post("/explain", files=[("image", b"a"), ("image", b"b")], headers={"X-Request-ID": "a.b-C_1"})
    assert response.headers["x-request-id"] == "a.b-C_1"
    assert response.headers["server-timing"] == (
        "decode;dur=1.00, queue;dur=0.25, infer;dur=2.50, evaluate;dur=0.00, render;dur=0.50"
    )
    assert response.headers["x-batch-size"] == "2"
    assert response.headers["vary"] == "Accept"


@pytest.mark.parametrize("path", ["/explain", "/inspect"])
async def test_an_image_is_told_which_request_asks_for_it(
    client: httpx.AsyncClient, explainer: StandInExplainer, path: str
) -> None:
    response = await client.post(f"{path}?format=png", content=b"x")
    assert explainer.calls[-1].request_id == response.headers["x-request-id"]


async def test_an_image_carries_its_provenance(client: httpx.AsyncClient) -> None:
    response = await client.post("/explain?class_id=7&layer=blocks.6", content=b"x", headers={"Accept": "image/jpeg"})
    assert (response.headers["content-type"], response.content) == ("image/jpeg", b"an image")
    explain = {name: value for name, value in response.headers.items() if name.startswith("x-explain-")}
    assert explain == {
        "x-explain-class-id": "7",
        "x-explain-class-name": "class%207%2C%20%C3%A9lan",
        "x-explain-probability": "0.25",
        "x-explain-method": "gradcam",
        "x-explain-layer": "blocks.6",
        "x-explain-model": "efficientnet_lite0",
    }


async def test_a_sheet_lists_its_classes(client: httpx.AsyncClient) -> None:
    response = await client.post("/explain?class_id=7,0&overlay_type=panel&format=png", content=b"x")
    assert response.headers["x-explain-class-id"] == "7,0"
    assert len(response.headers["x-explain-class-name"].split(",")) == 2


async def test_the_catalogue_is_the_documented_shape(client: httpx.AsyncClient) -> None:
    models = TypeAdapter(ModelList).validate_json((await client.get("/models")).content, strict=True)
    assert [model.name for model in models.models] == ["efficientnet_lite0"]
    TypeAdapter(ModelInfo).validate_json((await client.get("/models/efficientnet_lite0")).content, strict=True)
    TypeAdapter(MethodList).validate_json((await client.get("/methods")).content, strict=True)


@pytest.mark.parametrize(
    "name", ["nope", "%2e%2e", "a%2Fb", "%00", "é", "a" * 5000, "EfficientNet_Lite0", "efficientnet_lite0.toml"]
)
async def test_an_unknown_model_is_a_404(client: httpx.AsyncClient, name: str) -> None:
    response = await client.get(f"/models/{name}")
    assert response.status_code == 404
    assert Problem.model_validate_json(response.content, strict=True).code in {"model_not_found", "not_found"}


@pytest.mark.parametrize(
    ("form", "document", "options"),
    [
        (PredictForm, PredictJson, PredictOptions),
        (ExplainForm, ExplainJson, ExplainOptions),
        (InspectForm, InspectJson, InspectOptions),
    ],
)
def test_the_forms_document_every_option(form: type[BaseModel], document: type[BaseModel], options: type[BaseModel]) -> None:
    assert set(document.model_fields) == {*options.model_fields, "image", "images"}
    assert set(form.model_fields) == {*options.model_fields, "image"}
    assert set(JsonImage.model_fields) == {*Targets.model_fields, "b64"}
