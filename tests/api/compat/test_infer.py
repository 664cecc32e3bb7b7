"""Open Inference Protocol v2: forms of tensors, what is refused before anything is allocated, the repository."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import httpx
import numpy as np
import pytest

from tests import image_files as make
from tests.api.compat.wire import LENGTH_HEADER, b64, binary, bytes_input, decoded, elements, tensors_of
from tests.api.stand_ins import ADMIN_KEY

pytestmark = pytest.mark.anyio

IMAGE = make.save(make.scene(96, 48), "PNG")
OTHER = make.save(make.scene(64, 64), "JPEG")
TEXT = b64(IMAGE)
ONE = elements(IMAGE)


def image(**changes: Any) -> dict[str, Any]:
    """The one image as JSON; a change to None leaves a member out."""
    entry = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [TEXT]} | changes
    return {name: value for name, value in entry.items() if value is not None}


async def infer(client: httpx.AsyncClient, document: dict[str, Any], path: str = "infer") -> httpx.Response:
    return await client.post(f"/v2/models/tiny/{path}", json=document)


async def send(client: httpx.AsyncClient, body: bytes, headers: dict[str, str]) -> httpx.Response:
    return await client.post("/v2/models/tiny/infer", content=body, headers=headers)


def found(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return tensors_of(response.content, response.headers.get(LENGTH_HEADER))


async def test_binary_json_and_pixels_agree(whole: httpx.AsyncClient) -> None:
    pixels = decoded(IMAGE)
    raw = binary({"inputs": [bytes_input(1, len(ONE))], "parameters": {"binary_data_output": True}}, ONE)
    coded = binary({"inputs": [bytes_input(1, 4 + len(TEXT))]}, elements(TEXT.encode()))
    shape = {"name": "image", "shape": [1, *pixels.shape], "datatype": "UINT8"}
    flat = binary({"inputs": [shape | {"parameters": {"binary_data_size": pixels.size}}]}, pixels.tobytes())
    answers = [
        await send(whole, *raw),
        await send(whole, *coded),
        await send(whole, *flat),
        await infer(whole, {"inputs": [image()]}),
        await infer(whole, {"inputs": [image(data=[f"data:image/png;base64,{TEXT}"])]}),
        await infer(whole, {"inputs": [image(shape=[1, 1], data=[[TEXT]])]}),
        await infer(whole, {"inputs": [shape | {"data": pixels.ravel().tolist()}]}),
        await infer(whole, {"inputs": [shape | {"data": [pixels.tolist()]}]}),
        await infer(whole, {"inputs": [shape | {"shape": [*pixels.shape], "data": pixels.tolist()}]}),
        await infer(whole, {"inputs": [image()]}, "explain"),
        await infer(whole, {"inputs": [image()]}, "versions/1/infer"),
        await infer(whole, {"inputs": [image()]}, "versions/1.0/explain"),
    ]
    assert answers[0].headers["content-type"] == "application/octet-stream"
    first = found(answers[0])
    assert {name: values.shape for name, values in first.items()} == {
        "scores": (1, 10), "class_id": (1, 1), "heatmap": (1, 1, 32, 32), "overlay": (1, 1, 32, 32, 3),
    }  # fmt: skip
    for answer in answers[1:]:
        assert answer.headers["content-type"] == "application/json"
        for name, values in found(answer).items():
            np.testing.assert_array_equal(values, first[name])


async def test_it_answers_as_explain_does(whole: httpx.AsyncClient) -> None:
    query = {"size": "input", "heatmap": "list", "class_id": "1,2", "polarity": "both", "overlay": "true"}
    same = {"X-Request-ID": "same"}  # images tell it
    native = (await whole.post("/explain", content=IMAGE, params=query, headers=same)).json()["results"][0]
    parameters = {"class_id": "1,2", "polarity": "both"}
    outputs = [{"name": name} for name in ("overlay_png", "heatmap", "class_id", "scores")]
    document = {"inputs": [image()], "parameters": parameters, "outputs": outputs}
    answer = await whole.post("/v2/models/tiny/infer", json=document, headers=same)
    assert [one["name"] for one in answer.json()["outputs"]] == [one["name"] for one in outputs]
    tensors = found(answer)
    np.testing.assert_array_equal(
        tensors["heatmap"][0], np.array([one["heatmap"] for one in native["explanations"]], np.float32)
    )
    assert tensors["overlay_png"][0].tolist() == [one["overlay"]["b64"] for one in native["explanations"]]
    assert answer.json()["outputs"][0]["parameters"] == {"content_type": "base64"}
    assert tensors["class_id"].tolist() == [[1, 2]]
    best = native["predictions"][0]
    assert tensors["scores"][0, best["class_id"]] == pytest.approx(best["probability"], abs=1e-6)
    assert tensors["scores"].sum() == pytest.approx(1, abs=1e-6)


async def test_scores_alone_ask_for_no_map(whole: httpx.AsyncClient) -> None:
    outputs = [{"name": "class_id"}, {"name": "scores", "parameters": {"classification": 2}}]
    answer = await infer(whole, {"inputs": [image()], "outputs": outputs, "parameters": {"top_k": 3}})
    native = (await whole.post("/predict", content=IMAGE)).json()["results"][0]["predictions"]
    tensors = found(answer)
    assert tensors["class_id"].tolist() == [[one["class_id"] for one in native[:3]]]
    assert tensors["scores"].tolist() == [[f"{one['probability']:.6f}:{one['class_id']}:{one['label']}" for one in native[:2]]]


async def test_a_class_that_is_named_is_answered_with_scores_too(whole: httpx.AsyncClient) -> None:
    outputs = [{"name": "class_id"}, {"name": "scores"}]
    answer = await infer(whole, {"inputs": [image()], "outputs": outputs, "parameters": {"class_id": 3}})
    assert found(answer)["class_id"].tolist() == [[3]]


async def test_several_images_and_their_classes_keep_their_order(whole: httpx.AsyncClient) -> None:
    files = elements(IMAGE, OTHER)
    classes = np.array([[3, 0], [1, 2]], "<i8").tobytes()
    inputs = [
        bytes_input(2, len(files)),
        {"name": "class_id", "shape": [2, 2], "datatype": "INT64", "parameters": {"binary_data_size": len(classes)}},
    ]
    tensors = found(await send(whole, *binary({"inputs": inputs}, files, classes)))
    assert tensors["class_id"].tolist() == [[3, 0], [1, 2]]
    # The order of tensors behind the JSON is that of `inputs`.
    swapped = found(await send(whole, *binary({"inputs": inputs[::-1]}, classes, files)))
    for name, values in swapped.items():
        np.testing.assert_array_equal(values, tensors[name])


async def test_the_id_comes_back_or_is_made(whole: httpx.AsyncClient) -> None:
    answer = (await infer(whole, {"inputs": [image()], "id": "rq1"})).json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("rq1", "tiny", "1")
    made = await whole.post("/v2/models/tiny/infer", json={"inputs": [image()]}, headers={"X-Request-ID": "mine"})
    assert made.json()["id"] == "mine"


async def test_maps_of_several_sizes_are_no_tensor(whole: httpx.AsyncClient) -> None:
    document: dict[str, Any] = {"inputs": [image(shape=[2], data=[TEXT, b64(OTHER)])]}
    assert found(await infer(whole, document))["heatmap"].shape == (2, 1, 32, 32)
    refused = await infer(whole, document | {"parameters": {"size": "original"}})
    assert (refused.status_code, refused.json()["code"]) == (422, "parameter_invalid")
    alone = {"inputs": [image()], "parameters": {"size": "original"}}
    assert found(await infer(whole, alone))["heatmap"].shape == (1, 1, 48, 96)


async def test_a_client_s_own_deadline(whole: httpx.AsyncClient) -> None:
    late = await infer(whole, {"inputs": [image()], "parameters": {"timeout": 1}})
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    for timeout in (0, 60_000_000, 10**18):
        assert (await infer(whole, {"inputs": [image()], "parameters": {"timeout": timeout}})).status_code == 200
    wrong = await infer(whole, {"inputs": [image()], "parameters": {"timeout": -1}})
    assert wrong.json()["code"] == "parameter_invalid"


SIZE = len(ONE)
LYING: dict[str, tuple[bytes, dict[str, str]]] = {
    "a header longer than the body": (b"{}", {LENGTH_HEADER: "3"}),
    "a header of many digits": (b"{}", {LENGTH_HEADER: "9" * 40}),
    "a header below zero": (b"{}", {LENGTH_HEADER: "-1"}),
    "a header that is no number": (b"{}", {LENGTH_HEADER: "two"}),
    "a header that cuts the JSON": (b'{"inputs": []}', {LENGTH_HEADER: "3"}),
    "a size that is short": binary({"inputs": [bytes_input(1, SIZE - 1)]}, ONE),
    "a size that is long": binary({"inputs": [bytes_input(1, SIZE + 1)]}, ONE),
    "a size of more than all memory": binary({"inputs": [bytes_input(1, 1 << 62)]}, ONE),
    "a size below zero": binary({"inputs": [bytes_input(1, -1)]}, ONE),
    "a size that is no number": binary({"inputs": [{**image(data=None), "parameters": {"binary_data_size": "9"}}]}, ONE),
    "bytes behind the last tensor": binary({"inputs": [bytes_input(1, SIZE)]}, ONE, b"more"),
    "an element of 4 GiB": binary({"inputs": [bytes_input(1, 8)]}, struct.pack("<I", 2**32 - 1) + b"1234"),
    "an element longer by one": binary({"inputs": [bytes_input(1, 8)]}, struct.pack("<I", 5) + b"1234"),
    "half a length": binary({"inputs": [bytes_input(1, 2)]}, b"\x00\x00"),
    "fewer elements than the shape says": binary({"inputs": [bytes_input(2, SIZE)]}, ONE),
    "more elements than the shape says": binary({"inputs": [bytes_input(1, 2 * SIZE)]}, ONE, ONE),
    "10 000 inputs": binary({"inputs": [image(data=["/9j/"])] * 10_000}),
    "no inputs": binary({"inputs": []}),
    "inputs that are no list": binary({"inputs": {}}),
    "an input that is no object": binary({"inputs": [1]}),
    "an input of another name": binary({"inputs": [image(name="x")]}),
    "an input twice": binary({"inputs": [image(), image()]}),
    "another datatype": binary({"inputs": [image(datatype="FP32")]}),
    "a datatype that is a list": binary({"inputs": [image(datatype=[])]}),
    "no shape": binary({"inputs": [image(shape=None)]}),
    "an empty shape": binary({"inputs": [image(shape=[])]}),
    "a shape of many dimensions": binary({"inputs": [image(shape=[1] * 9)]}),
    "a shape with a negative side": binary({"inputs": [image(shape=[-1])]}),
    "a shape with a truth": binary({"inputs": [image(shape=[True])]}),
    "a shape beyond 64 bits": binary({"inputs": [image(shape=[2**40])]}),
    "data and a size": binary({"inputs": [image(parameters={"binary_data_size": 1})]}, b"x"),
    "neither data nor a size": binary({"inputs": [image(data=None)]}),
    "data that is a text": binary({"inputs": [image(data=TEXT)]}),
    "data of numbers where texts belong": binary({"inputs": [image(data=[1])]}),
    "an element that is neither image nor base64": binary({"inputs": [bytes_input(1, 8)]}, elements(b"\xff\x00ab")),
    "pixels of no shape": binary({"inputs": [image(datatype="UINT8", shape=[48, 96], data=[0])]}),
    "pixels of four channels": binary({"inputs": [image(datatype="UINT8", shape=[1, 1, 1, 4], data=[0] * 4)]}),
    "fewer pixels than the shape says": binary({"inputs": [image(datatype="UINT8", shape=[1, 9, 9, 3], data=[0])]}),
    "pixels beyond 255": binary({"inputs": [image(datatype="UINT8", shape=[1, 1, 1, 3], data=[0, 0, 256])]}),
    "pixels below 0": binary({"inputs": [image(datatype="UINT8", shape=[1, 1, 1, 3], data=[0, 0, -1])]}),
    "pixels that are no integers": binary({"inputs": [image(datatype="UINT8", shape=[1, 1, 1, 3], data=[0, 0, 0.5])]}),
    "pixels that are texts": binary({"inputs": [image(datatype="UINT8", shape=[1, 1, 1, 3], data=["a", "b", "c"])]}),
    "pixels with no side": binary({"inputs": [image(datatype="UINT8", shape=[1, 0, 2**30, 3], data=[])]}),
    "pixels of a shape that does not fit memory": binary(
        {"inputs": [{**image(datatype="UINT8", shape=[1, 2**30, 2**30, 3], data=None), "parameters": {"binary_data_size": 3}}]},
        b"123",
    ),
    "an id that is a number": binary({"inputs": [image()], "id": 1}),
    "an id without end": binary({"inputs": [image()], "id": "x" * 257}),
    "parameters that are a list": binary({"inputs": [image()], "parameters": [1]}),
    "outputs that are no list": binary({"inputs": [image()], "outputs": 1}),
    "10 000 outputs": binary({"inputs": [image()], "outputs": [{"name": "scores"}] * 10_000}),
    "an output of another name": binary({"inputs": [image()], "outputs": [{"name": "x"}]}),
    "an output twice": binary({"inputs": [image()], "outputs": [{"name": "scores"}] * 2}),
    "a classification of maps": binary(
        {"inputs": [image()], "outputs": [{"name": "heatmap", "parameters": {"classification": 1}}]}
    ),
    "classes for another number of images": binary(
        {"inputs": [image(), {"name": "class_id", "shape": [2, 1], "datatype": "INT64", "data": [1, 2]}]}
    ),
    "classes that are texts": binary(
        {"inputs": [image(), {"name": "class_id", "shape": [1, 1], "datatype": "INT64", "data": ["1"]}]}
    ),
    "classes beyond 64 bits": binary(
        {"inputs": [image(), {"name": "class_id", "shape": [1, 1], "datatype": "INT64", "data": [2**63]}]}
    ),
    "no JSON": (b"\x00\x01", {}),
    "an empty body": (b"", {}),
}  # fmt: skip


async def test_requests_that_lie_are_refused_at_once(whole: httpx.AsyncClient) -> None:
    await whole.get("/v2")  # what the first request of a client allocates is none of the others'
    for name, (body, headers) in LYING.items():
        tracemalloc.start()
        try:
            answer = await send(whole, body, headers)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert answer.status_code == 400, f"{name}: {answer.text}"
        assert answer.headers["content-type"] == "application/json", name
        assert answer.json()["code"] in {"request_malformed", "json_invalid", "base64_invalid"}, name
        # Python's objects of a JSON text take many times its bytes.
        assert peak < 2**20 + 40 * len(body), name


WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"inputs": [image(shape=[17], data=[TEXT] * 17)]}, 422, "too_many_images"),
    ({"inputs": [image(shape=[0], data=[])]}, 422, "image_missing"),
    ({"inputs": [{"name": "class_id", "shape": [1, 1], "datatype": "INT64", "data": [1]}]}, 422, "image_missing"),
    ({"inputs": [image(data=[b64(b"no image")])]}, 415, "unsupported_image_type"),
    ({"inputs": [image(datatype="UINT8", shape=[1, 4, 4, 3], data=[0] * 48)]}, 422, "image_too_small"),
    ({"inputs": [image(datatype="UINT8", shape=[1, 8, 808, 3], data=[0] * 19392)]}, 422, "image_aspect_ratio"),
    ({"inputs": [image()], "parameters": {"alpha": 2}}, 422, "parameter_invalid"),
    ({"inputs": [image()], "parameters": {"nonsense": 2}}, 422, "parameter_invalid"),
    ({"inputs": [image()], "parameters": {"class_id": 99}}, 422, "class_not_found"),
    ({"inputs": [image()], "parameters": {"model": "other"}}, 422, "parameter_invalid"),
    (
        {
            "inputs": [image(), {"name": "class_id", "shape": [1, 1], "datatype": "INT64", "data": [-1]}],
        },
        422,
        "parameter_invalid",
    ),
    (
        {
            "inputs": [image(), {"name": "class_id", "shape": [1, 1], "datatype": "INT64", "data": [1]}],
            "parameters": {"class_id": 1},
        },
        422,
        "parameter_invalid",
    ),
    ({"inputs": [image()], "parameters": {"size": 4000}}, 422, "parameter_invalid"),  # 8 million numbers as JSON
]


async def test_what_is_well_formed_and_wrong(whole: httpx.AsyncClient) -> None:
    for document, status, code in WRONG:
        answer = await infer(whole, document)
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def test_pixels_have_the_limits_of_files(whole: httpx.AsyncClient) -> None:
    tall = np.zeros((1, 17_000, 180, 3), np.uint8)
    shape = {"name": "image", "shape": [*tall.shape], "datatype": "UINT8", "parameters": {"binary_data_size": tall.size}}
    answer = await send(whole, *binary({"inputs": [shape]}, tall.tobytes()))
    assert (answer.status_code, answer.json()["code"]) == (422, "image_too_many_pixels")


async def test_pixels_of_one_length_and_two_shapes_are_two_images(whole: httpx.AsyncClient) -> None:
    """The service keeps answers by the digest of what came."""
    pixels = decoded(IMAGE)
    one, other = (
        {"name": "image", "shape": [1, *shape, 3], "datatype": "UINT8", "parameters": {"binary_data_size": pixels.size}}
        for shape in ((48, 96), (96, 48))
    )
    first = await send(whole, *binary({"inputs": [one]}, pixels.tobytes()))
    second = await send(whole, *binary({"inputs": [other]}, pixels.tobytes()))
    assert [answer.headers["x-cache"] for answer in (first, second)] == ["miss", "miss"]
    assert (found(first)["scores"] != found(second)["scores"]).any()


NOWHERE: list[tuple[str, str, int, str]] = [
    ("GET", "/v2/models/nowhere", 404, "model_not_found"),
    ("GET", "/v2/models/tiny/versions/7", 404, "model_not_found"),
    ("GET", "/v2/models/tiny/versions/7/ready", 404, "model_not_found"),
    ("POST", "/v2/models/tiny/versions/7/infer", 404, "model_not_found"),
    ("POST", "/v2/models/nowhere/infer", 404, "model_not_found"),
    ("GET", "/v2/models/tiny/infer", 405, "method_not_allowed"),
    ("GET", "/v2/models/tiny/stats", 404, "not_found"),
    ("GET", "/v2/nothing", 404, "not_found"),
]


async def test_addresses_that_are_not_there(whole: httpx.AsyncClient) -> None:
    for method, path, status, code in NOWHERE:
        answer = await whole.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/json"


async def test_the_repository(whole: httpx.AsyncClient) -> None:
    async def states(**document: Any) -> list[dict[str, Any]]:
        response = (
            await whole.post("/v2/repository/index", json=document) if document else await whole.post("/v2/repository/index")
        )
        return [dict(one) for one in response.json()]

    ready = {"name": "tiny", "version": "1", "state": "READY", "reason": ""}
    assert await states() == [ready]
    key = {"X-API-Key": ADMIN_KEY}
    assert (await whole.post("/v2/repository/models/tiny/unload")).status_code == 401
    unloaded = await whole.post("/v2/repository/models/tiny/unload", json={"parameters": {"x": False}}, headers=key)
    assert (unloaded.status_code, unloaded.content) == (200, b"")
    assert await states() == [ready | {"state": "UNAVAILABLE"}]
    assert await states(ready=True) == []
    assert (await whole.get("/v2/models/tiny/ready")).json()["code"] == "not_ready"
    assert (await infer(whole, {"inputs": [image()]})).status_code == 404
    assert (await whole.post("/v2/repository/models/tiny/load", json={}, headers=key)).status_code == 200
    assert await states(ready=True) == [ready]
    assert (await whole.post("/v2/repository/models/nowhere/load", headers=key)).json()["code"] == "model_not_found"
    assert (await whole.post("/v2/repository/index", content=b"{")).json()["code"] == "json_invalid"


async def test_lists_deeper_than_any_tensor(whole: httpx.AsyncClient) -> None:
    deep: Any = TEXT
    for _ in range(200):
        deep = [deep]
    answer = await whole.post("/v2/models/tiny/infer", content=json.dumps({"inputs": [image(data=deep)]}))
    assert answer.status_code == 400
