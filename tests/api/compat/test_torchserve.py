"""TorchServe's inference address: every way to send an image, its two shapes of answers, POST /explain's where asked for."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests import image_files as make
from tests.api.compat.wire import b64

pytestmark = pytest.mark.anyio

IMAGE = make.save(make.scene(96, 48), "PNG")
TEXT = b64(IMAGE)
FORMS: dict[str, dict[str, Any]] = {
    "curl -T": {"content": IMAGE},
    "curl --data-binary": {"content": IMAGE, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    "as an image": {"content": IMAGE, "headers": {"Content-Type": "image/png"}},
    "as anything": {"content": IMAGE, "headers": {"Content-Type": "text/csv"}},
    "curl -F data=@": {"files": {"data": IMAGE}},
    "curl -F body=@": {"files": {"body": IMAGE}},
    "curl -F image=@": {"files": {"image": IMAGE}},
    "a text part in base64": {"files": {"data": (None, TEXT)}},
    "base64 as the body": {"content": TEXT},
    "JSON with data": {"json": {"data": TEXT}},
    "JSON of /explain": {"json": {"image": TEXT}},
    "JSON without its type": {"content": json.dumps({"data": TEXT}), "headers": {"Content-Type": "application/octet-stream"}},
}


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("form", FORMS)
async def test_every_way_to_send_an_image(whole: httpx.AsyncClient, method: str, form: str) -> None:
    native = (await whole.post("/explain", content=IMAGE, params={"size": "input", "heatmap": "list"})).json()["results"][0]
    predicted = await whole.request(method, "/predictions/tiny", **FORMS[form])
    assert predicted.status_code == 200, predicted.text
    assert predicted.json() == {one["label"]: one["probability"] for one in native["predictions"]}
    explained = await whole.request(method, "/explanations/tiny/1.0", **FORMS[form])
    assert explained.status_code == 200, explained.text
    maps = np.array(explained.json(), np.float32)
    assert maps.shape == (1, 1, 32, 32)
    np.testing.assert_array_equal(maps[0, 0], np.array(native["explanations"][0]["heatmap"], np.float32))


async def test_a_target_in_every_place(whole: httpx.AsyncClient) -> None:
    query = {"size": "input", "heatmap": "list", "class_id": "2"}
    native = (await whole.post("/explain", content=IMAGE, params=query)).json()["results"][0]["explanations"][0]["heatmap"]
    address = "/explanations/tiny"
    for answer in (
        await whole.put(address, content=IMAGE, params={"target": "2"}),
        await whole.post(address, files={"data": IMAGE}, data={"target": "2"}),
        await whole.post(address, json={"data": TEXT, "target": 2}),
        await whole.post(address, json={"instances": [{"data": TEXT, "target": 2}]}),
    ):
        np.testing.assert_allclose(np.array(answer.json())[0, 0], np.array(native), atol=1e-6)
    several = await whole.post(address, json={"data": TEXT, "target": [2, 0, 1]})
    assert np.array(several.json()).shape == (1, 3, 32, 32)
    twice = await whole.post(address, files={"data": IMAGE}, data={"target": "2", "class_id": "2"})
    assert twice.json()["code"] == "parameter_invalid"


async def test_instances_are_predictions(whole: httpx.AsyncClient) -> None:
    alone = (await whole.post("/predictions/tiny", content=IMAGE)).json()
    answer = await whole.post("/predictions/tiny", json={"instances": [{"data": TEXT}, {"data": TEXT, "top_k": 1}]})
    assert answer.json() == {"predictions": [alone, dict(list(alone.items())[:1])]}
    maps = await whole.post("/explanations/tiny", json={"instances": [{"data": TEXT}, TEXT]})
    assert np.array(maps.json()).shape == (2, 1, 32, 32)


@pytest.mark.parametrize(
    ("headers", "query", "kind"),
    [
        ({"Accept": "image/png"}, {}, "image/png"),
        ({"Accept": "application/json"}, {}, "application/json"),
        ({"Accept": "application/x-npy"}, {}, "application/x-npy"),
        ({}, {"format": "webp"}, "image/webp"),
        ({}, {"overlay": "true"}, "application/json"),
        ({}, {"heatmap": "npy"}, "application/json"),
    ],
)
async def test_explanations_as_of_explain(
    whole: httpx.AsyncClient, headers: dict[str, str], query: dict[str, str], kind: str
) -> None:
    headers = headers | {"X-Request-ID": "same"}  # images tell it
    native = await whole.post("/explain", content=IMAGE, headers=headers, params=query)
    answer = await whole.put("/explanations/tiny", content=IMAGE, headers=headers, params=query)
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    if kind == "application/json":
        assert answer.json()["results"] == native.json()["results"]
    else:
        assert answer.content == native.content


async def test_predictions_as_of_predict(whole: httpx.AsyncClient) -> None:
    native = (await whole.post("/predict", content=IMAGE)).json()["results"]
    answer = await whole.post("/predictions/tiny", content=IMAGE, params={"format": "json"})
    assert answer.json()["results"] == native


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("/predictions/nowhere", FORMS["curl -T"], 404, "model_not_found"),
    ("/predictions/tiny/2.0", FORMS["curl -T"], 404, "model_not_found"),
    ("/explanations/tiny", {"content": b""}, 422, "image_missing"),
    ("/explanations/tiny", {"content": b"not base64"}, 400, "base64_invalid"),
    ("/explanations/tiny", {"content": b"\x00\xff no image"}, 415, "unsupported_image_type"),
    ("/explanations/tiny", {"content": b"{"}, 400, "json_invalid"),
    ("/explanations/tiny", {"json": {"nothing": 1}}, 422, "image_missing"),
    ("/explanations/tiny", {"files": {"picture": IMAGE}}, 422, "parameter_invalid"),
    ("/explanations/tiny", {"files": {"target": (None, "1")}}, 422, "image_missing"),
    ("/explanations/tiny", {"files": [("data", IMAGE)] * 17}, 422, "too_many_images"),
    ("/explanations/tiny", {"files": [("data", IMAGE)] * 16 + [("data", (None, TEXT))]}, 422, "too_many_images"),
    ("/explanations/tiny", FORMS["curl -T"] | {"params": {"target": "x"}}, 422, "parameter_invalid"),
    (
        "/explanations/tiny",
        FORMS["curl -T"] | {"headers": {"Content-Encoding": "gzip"}},
        415,
        "content_encoding_unsupported",
    ),
    ("/predictions/tiny/a/b", {}, 404, "not_found"),
]


async def test_refused(whole: httpx.AsyncClient) -> None:
    for path, request_arguments, status, code in REFUSED:
        answer = await whole.post(path, **request_arguments)
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (status, code), answer.text
        assert answer.headers["content-type"] == "application/json"
        assert problem["message"] == problem["error"] == problem["detail"]


async def test_ping_says_healthy(whole: httpx.AsyncClient) -> None:
    assert (await whole.get("/ping")).json() == {"status": "Healthy"}
