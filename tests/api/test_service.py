"""The whole service over real HTTP: its wire is what the schema says, with the embedded model and a real photograph."""

from __future__ import annotations

import base64
import io
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import numpy as np
import pytest
import skimage
from PIL import Image
from pydantic import TypeAdapter

from service.api.dependencies import services_of
from service.api.schemas import Problem
from service.explain.results import ExplainResponse, MethodList, ModelList, PredictResponse
from service.imaging.provenance import decode_xmp
from tests.conftest import Running

CHELSEA = (Path(skimage.__file__).parent / "data" / "chelsea.png").read_bytes()


@pytest.fixture
def http(server: Running) -> Any:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def test_a_cat_is_a_cat_in_every_form(http: httpx.Client) -> None:
    b64 = base64.b64encode(CHELSEA).decode()
    answers = [
        http.post("/predict", files={"image": CHELSEA}),
        http.post("/predict", content=CHELSEA, headers={"Content-Type": "image/png"}),
        http.post("/predict", json={"images": [{"b64": b64}]}),
    ]
    for response in answers:
        answer = TypeAdapter(PredictResponse).validate_json(response.content, strict=True)
        assert answer.results[0].predictions[0].wordnet_id == "n02123159"
        assert answer.results[0].predictions[0].probability == pytest.approx(0.393, abs=0.02)
        assert (answer.results[0].image.width, answer.results[0].image.height) == (451, 300)


@pytest.mark.parametrize("heatmap", ["png", "png16", "npy", "list", "none"])
def test_real_explanations_have_the_documented_shape(http: httpx.Client, heatmap: str) -> None:
    fields = {"class_id": "281,285", "versus": "282", "heatmap": heatmap, "overlay": "true", "polarity": "both"}
    response = http.post("/explain", files={"image": CHELSEA}, data=fields)
    answer = TypeAdapter(ExplainResponse).validate_json(response.content, strict=True)
    assert [explanation.class_id for explanation in answer.results[0].explanations] == [281, 285]
    first = answer.results[0].explanations[0]
    assert first.versus is not None
    assert first.versus.class_id == 282
    assert (first.heatmap is None) == (heatmap == "none")
    assert first.overlay is not None
    overlay = Image.open(io.BytesIO(base64.b64decode(first.overlay.b64)))
    assert overlay.size == (451, 300)
    assert response.headers["x-batch-size"] == "1"
    assert answer.id == response.headers["x-request-id"]


@pytest.mark.parametrize(("accept", "kind"), [("image/png", "PNG"), ("image/jpeg", "JPEG"), ("image/webp", "WEBP")])
def test_images(http: httpx.Client, accept: str, kind: str) -> None:
    response = http.post("/explain", files={"image": CHELSEA}, headers={"Accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (200, accept)
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, image.size) == (kind, (451, 300))
    assert response.headers["x-explain-class-id"] == "282"
    assert unquote(response.headers["x-explain-class-name"]).startswith("tiger cat")
    provenance = decode_xmp(image.info["xmp"])
    assert provenance is not None
    digest = http.get("/models/efficientnet_lite0").json()["digest"]
    assert (provenance.request_id, provenance.digest) == (response.headers["x-request-id"], digest)
    assert [shown.label for shown in provenance.classes] == ["tiger cat"]


def test_an_array(http: httpx.Client) -> None:
    response = http.post("/explain?class_id=281,285&format=npy", content=CHELSEA)
    maps = np.load(io.BytesIO(response.content), allow_pickle=False)
    assert (maps.shape, maps.dtype) == ((2, 300, 451), np.float32)


def test_several_classes_are_no_one_image_but_a_sheet(http: httpx.Client) -> None:
    response = http.post("/explain?class_id=281,285&format=png", content=CHELSEA)
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")
    assert http.post("/explain?class_id=281,285&format=png&overlay_type=panel", content=CHELSEA).status_code == 200


def test_the_catalogue(http: httpx.Client) -> None:
    models = TypeAdapter(ModelList).validate_json(http.get("/models").content, strict=True).models
    assert (models[0].name, models[0].state, models[0].input_size) == ("efficientnet_lite0", "ready", (224, 224))
    assert {model.state for model in models[1:]} == {"available"}
    methods = TypeAdapter(MethodList).validate_json(http.get("/methods").content, strict=True).methods
    assert "gradcam" in {method.name for method in methods}


@pytest.mark.parametrize(
    ("query", "body", "status", "code"),
    [
        ("", b"not an image", 415, "unsupported_image_type"),
        ("", CHELSEA[:5000], 422, "image_truncated"),
        ("class_id=1000", CHELSEA, 422, "class_not_found"),
        ("class_id=100000000000000000000000", CHELSEA, 422, "class_not_found"),
        ("class_name=nothing%20such", CHELSEA, 422, "class_not_found"),
        ("class_id=" + ",".join(["1"] * 17), CHELSEA, 422, "parameter_invalid"),
        ("top_k=17", CHELSEA, 422, "parameter_invalid"),
        ("layer=nowhere", CHELSEA, 422, "layer_not_found"),
        ("method=magic", CHELSEA, 422, "method_not_applicable"),
        ("model=nope", CHELSEA, 404, "model_not_found"),
        ("model=../../etc/passwd", CHELSEA, 404, "model_not_found"),
        ("model=%00", CHELSEA, 404, "model_not_found"),
    ],
)
def test_real_errors(http: httpx.Client, query: str, body: bytes, status: int, code: str) -> None:
    response = http.post(f"/explain?{query}", content=body)
    problem = Problem.model_validate_json(response.content, strict=True)
    assert (response.status_code, problem.code) == (status, code)


def test_predict_checks_the_options_of_explain(http: httpx.Client) -> None:
    assert http.post("/predict?layer=nowhere", content=CHELSEA).json()["code"] == "layer_not_found"
    assert http.post("/predict?method=magic", content=CHELSEA).json()["code"] == "method_not_applicable"
    assert http.post("/predict?layer=blocks.6&method=gradcam&alpha=1", content=CHELSEA).status_code == 200


def metric(http: httpx.Client, name: str) -> float:
    """The value of a metric, summed over the labels that are not named; there must be one."""
    values = [line.rpartition(" ")[2] for line in http.get("/metrics").text.splitlines() if line.startswith(name)]
    assert values, name
    return sum(map(float, values))


def test_metrics_of_real_requests(http: httpx.Client) -> None:
    names = [
        "camserve_images_total",
        "camserve_batch_size_sum",
        *(f'camserve_stage_seconds_count{{stage="{stage}"}}' for stage in ("decode", "queue", "infer", "render")),
    ]
    before = [metric(http, name) for name in names]
    http.post("/explain", files=[("image", CHELSEA)] * 2)
    assert [metric(http, name) - value for name, value in zip(names, before, strict=True)] == [2, 2, 1, 1, 1, 1]
    assert metric(http, 'camserve_model_ready{model="efficientnet_lite0"}') == 1


@pytest.mark.parametrize(
    ("query", "lane", "other"), [("method=gradcam", "fast", "slow"), ("method=rise&samples=8", "slow", "fast")]
)
def test_each_lane_has_its_metrics(http: httpx.Client, query: str, lane: str, other: str) -> None:
    def labels(name: str) -> str:
        return f'{{lane="{name}",model="efficientnet_lite0"}}'

    counts = ("camserve_batch_size_sum", "camserve_batch_seconds_count", "camserve_queue_wait_seconds_count")
    before = {(count, name): metric(http, count + labels(name)) for count in counts for name in (lane, other)}
    assert http.post(f"/explain?{query}", content=CHELSEA).status_code == 200
    for count in counts:
        assert metric(http, count + labels(lane)) == before[count, lane] + 1
        assert metric(http, count + labels(other)) == before[count, other]
    assert metric(http, "camserve_pass_seconds" + labels(lane)) > 0
    assert metric(http, "camserve_queue_depth" + labels(lane)) == 0


def test_a_declared_giant_is_refused_before_it_is_sent(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        head = f"POST /explain HTTP/1.1\r\nHost: {host}\r\nContent-Length: {1 << 30}\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        answer = b""
        while chunk := connection.recv(65536):  # until the server closes
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"payload_too_large" in answer


def test_clients_that_leave_do_not_disturb_those_that_stay(server: Running, http: httpx.Client) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        f"POST /explain HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\nContent-Length: {len(CHELSEA)}\r\n\r\n".encode()
    )
    for cut in (len(head), len(head) + 1000, len(head) + len(CHELSEA)):
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall((head + CHELSEA)[:cut])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: http.post("/predict", content=CHELSEA), range(16)))
    assert {response.status_code for response in answers} == {200}
    assert len({response.json()["results"][0]["predictions"][0]["logit"].__round__(2) for response in answers}) == 1
    assert services_of(server.app).registry.ready


def test_head_over_the_wire(http: httpx.Client) -> None:
    started = time.monotonic()
    response = http.head("/models")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) > 100
    assert http.get("/livez").status_code == 200  # the connection is still in step
    assert time.monotonic() - started < 5
