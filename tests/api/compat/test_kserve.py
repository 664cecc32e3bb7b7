"""KServe v1: every form of an instance, options, what is refused and how; the whole service over a small network."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests import image_files as make
from tests.api.compat.wire import b64

pytestmark = pytest.mark.anyio

IMAGE = make.save(make.scene(96, 48), "PNG")
TEXT = b64(IMAGE)


async def ask(client: httpx.AsyncClient, what: str, document: dict[str, Any], **headers: str) -> httpx.Response:
    return await client.post(f"/v1/models/tiny:{what}", json=document, headers=headers)


@pytest.mark.parametrize(
    "instance",
    [
        TEXT,
        f"data:image/png;base64,{TEXT}",
        {"b64": TEXT},
        {"image": {"b64": TEXT}},
        {"image": TEXT},
        {"image_bytes": {"b64": TEXT}},
        {"data": TEXT},
        {"data": {"b64": TEXT}},
    ],
)
async def test_every_form_of_an_instance(whole: httpx.AsyncClient, instance: Any) -> None:
    native = (await whole.post("/explain", content=IMAGE)).json()["results"][0]
    answer = await ask(whole, "explain", {"instances": [instance]})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "predictions": [{"image": native["image"], "predictions": native["predictions"]}],
        "explanations": [native["explanations"]],
    }
    predicted = await ask(whole, "predict", {"instances": [instance]})
    assert predicted.json() == {"predictions": answer.json()["predictions"]}


async def test_the_type_of_the_body_does_not_matter(whole: httpx.AsyncClient) -> None:
    body = f'{{"instances": ["{TEXT}"]}}'
    for kind in (
        "application/x-www-form-urlencoded",
        "application/octet-stream",
        "text/plain",
        "application/json; charset=utf-8",
    ):
        answer = await whole.post("/v1/models/tiny:predict", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 200, kind


async def test_options_are_parameters_and_each_instance_may_have_its_own(whole: httpx.AsyncClient) -> None:
    instances = [{"image": {"b64": TEXT}, "class_id": [1, 0]}, {"data": TEXT, "target": 2}, TEXT]
    parameters = {"class_id": 3, "polarity": "both", "heatmap": "none"}
    answer = await ask(whole, "explain", {"instances": instances, "parameters": parameters})
    explanations = answer.json()["explanations"]
    assert [[one["class_id"] for one in row] for row in explanations] == [[1, 0], [2], [3]]
    assert {one["polarity"] for row in explanations for one in row} == {"both"}
    assert {one["heatmap"] for row in explanations for one in row} == {None}


async def test_any_option_may_stand_in_an_instance_where_all_agree(whole: httpx.AsyncClient) -> None:
    alike = [{"b64": TEXT, "polarity": "negative"}] * 2
    answer = await ask(whole, "explain", {"instances": alike})
    assert [row[0]["polarity"] for row in answer.json()["explanations"]] == ["negative"] * 2
    refused = await ask(whole, "explain", {"instances": [alike[0], TEXT]})
    assert (refused.status_code, refused.json()["code"]) == (422, "parameter_invalid")


@pytest.mark.parametrize("value", [True, "true", "1"])
async def test_a_parameter_puts_explanations_into_predictions(whole: httpx.AsyncClient, value: Any) -> None:
    answer = await ask(whole, "predict", {"instances": [TEXT], "parameters": {"explain": value, "class_id": 1}})
    (prediction,) = answer.json()["predictions"]
    assert [one["class_id"] for one in prediction["explanations"]] == [1]
    assert answer.json().keys() == {"predictions"}


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({}, 422, "image_missing"),
    ({"instances": []}, 422, "image_missing"),
    ({"instances": "x"}, 422, "image_missing"),
    ({"instances": [1]}, 422, "image_missing"),
    ({"instances": [{}]}, 422, "image_missing"),
    ({"instances": [{"b64": TEXT, "data": TEXT}]}, 422, "image_missing"),
    ({"instances": [{"image": {"b64": TEXT, "x": 1}}]}, 422, "image_missing"),
    ({"instances": [{"image": {"b64": None}}]}, 422, "image_missing"),
    ({"instances": ["?"]}, 400, "base64_invalid"),
    ({"instances": [b64(b"no image")]}, 415, "unsupported_image_type"),
    ({"instances": [TEXT] * 17}, 422, "too_many_images"),
    ({"instances": [TEXT], "parameters": 1}, 400, "json_invalid"),
    ({"instances": [TEXT], "parameters": {"nonsense": 1}}, 422, "parameter_invalid"),
    ({"instances": [TEXT], "parameters": {"explain": 7}}, 422, "parameter_invalid"),
    ({"instances": [TEXT], "parameters": {"format": "png"}}, 406, "not_acceptable"),
    ({"instances": [TEXT], "parameters": {"model": "other"}}, 422, "parameter_invalid"),
    ({"instances": [TEXT], "signature_name": "x"}, 422, "parameter_invalid"),
    ({"instances": [{"b64": TEXT, "target": 1, "class_id": 1}]}, 422, "parameter_invalid"),
    ({"instances": [{"b64": TEXT, "class_id": 10**6}]}, 422, "class_not_found"),
]


async def test_refused(whole: httpx.AsyncClient) -> None:
    for document, status, code in REFUSED:
        answer = await ask(whole, "explain", document)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["error"] == answer.json()["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b'{"instances": NaN}'])
async def test_a_body_that_is_no_json_object(whole: httpx.AsyncClient, body: bytes) -> None:
    answer = await whole.post("/v1/models/tiny:predict", content=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "json_invalid")


async def test_a_compressed_body_is_refused(whole: httpx.AsyncClient) -> None:
    answer = await ask(whole, "predict", {"instances": [TEXT]}, **{"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (415, "content_encoding_unsupported")


NOWHERE: list[tuple[str, str, int]] = [
    ("GET", "/v1/models/nowhere", 404),
    ("GET", "/v1/models/tiny:explain", 404),
    ("POST", "/v1/models/a:b:explain", 404),
    ("POST", "/v1/models/nowhere:explain", 404),
    ("POST", "/v1/models/tiny:summarize", 405),
    ("PUT", "/v1/models/tiny:explain", 405),
    ("GET", "/v1/nothing", 404),
]


async def test_addresses_that_are_not_there(whole: httpx.AsyncClient) -> None:
    for method, path, status in NOWHERE:
        answer = await whole.request(method, path)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")


async def test_models(whole: httpx.AsyncClient) -> None:
    assert (await whole.get("/v1/models")).json() == {"models": ["tiny"]}
    assert (await whole.get("/v1/models/tiny")).json() == {"name": "tiny", "ready": True}


async def test_where_the_time_went_and_what_was_cached(whole: httpx.AsyncClient) -> None:
    answers = [await ask(whole, "explain", {"instances": [TEXT]}) for _ in range(2)]
    assert [one.headers["x-cache"] for one in answers] == ["miss", "hit"]
    assert "infer;dur=" in answers[0].headers["server-timing"]
    renewed = await ask(whole, "explain", {"instances": [TEXT]}, **{"Cache-Control": "no-cache"})
    assert renewed.headers["x-cache"] == "miss"
