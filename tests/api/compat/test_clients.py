"""The real, unmodified clients of KServe, Triton and the Open Inference Protocol against the real service."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import httpx
import numpy as np
import pytest
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import InferResponse, RequestedOutput
from numpy.typing import NDArray
from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.types import InferenceRequest
from tritonclient.http import InferenceServerClient, InferRequestedOutput
from tritonclient.http import InferInput as TritonInput
from tritonclient.utils import InferenceServerException

from tests.api.compat.wire import b64, decoded
from tests.conftest import Running
from tests.photographs import CHELSEA, CHINA, ROCKET

pytestmark = pytest.mark.anyio

MODEL = "efficientnet_lite0"
DEFAULT = {"scores": (1, 1000), "class_id": (1, 1), "heatmap": (1, 1, 224, 224), "overlay": (1, 1, 224, 224, 3)}


def explained(server: Running, data: bytes, **options: Any) -> httpx.Response:
    response = httpx.post(f"{server.url}/explain", content=data, params={"size": "input"} | options, timeout=60)
    assert response.status_code == 200, response.text
    return response


def npy(response: httpx.Response) -> NDArray[np.float32]:
    return np.asarray(np.load(io.BytesIO(response.content), allow_pickle=False), np.float32)


# KServe ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def kserve(request: pytest.FixtureRequest) -> AsyncIterator[InferenceRESTClient]:
    async with InferenceRESTClient(RESTConfig(protocol=request.param, timeout=60)) as client:
        yield client


v1 = pytest.mark.parametrize("kserve", ["v1"], indirect=True)
v2 = pytest.mark.parametrize("kserve", ["v2"], indirect=True)


@pytest.mark.parametrize("kserve", ["v1", "v2"], indirect=True)
async def test_kserve_asks_after_server_and_model(server: Running, kserve: InferenceRESTClient) -> None:
    assert await kserve.is_server_live(server.url) is True
    assert await kserve.is_model_ready(server.url, MODEL) is True
    if kserve._config.protocol == "v2":
        assert await kserve.is_server_ready(server.url) is True
        assert await kserve.is_model_ready(server.url, "nowhere") is False
    else:
        with pytest.raises(httpx.HTTPStatusError, match="There is no such model card"):
            await kserve.is_model_ready(server.url, "nowhere")


@v1
async def test_kserve_v1_predicts(server: Running, kserve: InferenceRESTClient) -> None:
    instances = [{"image": {"b64": b64(CHELSEA.data)}}, {"b64": b64(ROCKET.data)}]
    answer = await kserve.infer(server.url, {"instances": instances}, model_name=MODEL)
    assert [one["predictions"][0]["class_id"] for one in answer["predictions"]] == [CHELSEA.top[0], ROCKET.top[0]]


@v1
async def test_kserve_v1_explains_as_explain_does(server: Running, kserve: InferenceRESTClient) -> None:
    document = {"instances": [{"image": {"b64": b64(CHELSEA.data)}, "class_id": [281, 285]}]}
    options = {"size": "input", "heatmap": "list"}
    answer = await kserve.explain(server.url, MODEL, document | {"parameters": options})
    (explanations,) = answer["explanations"]
    maps = np.array([one["heatmap"] for one in explanations], np.float32)
    np.testing.assert_allclose(maps, npy(explained(server, CHELSEA.data, class_id="281,285", format="npy")), atol=1e-6)
    assert [one["class_id"] for one in explanations] == [281, 285]
    assert answer["predictions"][0]["predictions"][0]["class_id"] == CHELSEA.top[0]


@v2
@pytest.mark.parametrize("form", ["binary", "json", "uint8"])
async def test_kserve_v2_infers(server: Running, kserve: InferenceRESTClient, form: Literal["binary", "json", "uint8"]) -> None:
    if form == "json":
        tensor = InferInput("image", [1], "BYTES", data=[b64(CHELSEA.data)], parameters={"content_type": "base64"})
    elif form == "binary":
        tensor = InferInput("image", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([CHELSEA.data], np.object_), binary_data=True)
    else:
        pixels = decoded(CHELSEA.data)[None]
        tensor = InferInput("image", list(pixels.shape), "UINT8")
        tensor.set_data_from_numpy(pixels, binary_data=True)
    outputs = [RequestedOutput(name, {"binary_data": form != "json"}) for name in DEFAULT]
    request = InferRequest(
        model_name=MODEL,
        infer_inputs=[tensor],
        request_outputs=outputs,
        request_id="rq1",
        parameters={"method": "gradcam", "alpha": 0.5},
    )
    answer = await kserve.infer(server.url, request, model_name=MODEL)
    assert isinstance(answer, InferResponse)
    assert (answer.model_name, answer.id) == (MODEL, "rq1")
    found = {one.name: one.as_numpy() for one in answer.outputs}
    assert {name: values.shape for name, values in found.items()} == DEFAULT
    assert found["class_id"].tolist() == [[CHELSEA.top[0]]]
    np.testing.assert_allclose(found["heatmap"][0, 0], npy(explained(server, CHELSEA.data, format="npy")), atol=1e-6)


@v2
async def test_kserve_v2_reads_a_png_as_base64(server: Running, kserve: InferenceRESTClient) -> None:
    """Its reader of binary BYTES wants UTF-8."""
    tensor = InferInput("image", [1], "BYTES", data=[b64(CHELSEA.data)])
    outputs = [RequestedOutput("overlay_png", {"binary_data": False})]
    request = InferRequest(model_name=MODEL, infer_inputs=[tensor], request_outputs=outputs)
    answer = await kserve.infer(server.url, request, model_name=MODEL)
    native = explained(server, CHELSEA.data, format="png").content
    (found,) = (decoded(base64.b64decode(one)) for one in answer.outputs[0].data)
    np.testing.assert_array_equal(found, decoded(native))


# Triton ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def triton(server: Running) -> Iterator[InferenceServerClient]:
    client = InferenceServerClient(server.url.removeprefix("http://"), connection_timeout=60, network_timeout=60)
    yield client
    client.close()


def triton_image(*files: bytes) -> TritonInput:
    tensor = TritonInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, np.object_))
    return tensor


def test_triton_asks_after_server_and_model(triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready(MODEL)
    assert triton.is_model_ready(MODEL, "1")
    assert not triton.is_model_ready(MODEL, "2")
    assert not triton.is_model_ready("nowhere")


def test_triton_reads_what_there_is(triton: InferenceServerClient) -> None:
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    metadata = triton.get_model_metadata(MODEL, "1")
    assert [one["name"] for one in metadata["outputs"]] == [*DEFAULT, "overlay_png"]
    assert triton.get_model_config(MODEL)["input"][1] == {
        "name": "class_id", "data_type": "TYPE_INT64", "dims": [-1, -1], "optional": True,
    }  # fmt: skip
    (first, *others) = triton.get_model_repository_index()
    assert (first["name"], first["state"]) == (MODEL, "READY")
    assert {one["state"] for one in others} == {"UNAVAILABLE"}


@pytest.mark.parametrize("what", ["get_trace_settings", "get_log_settings", "get_system_shared_memory_status"])
def test_triton_is_told_what_there_is_not(triton: InferenceServerClient, what: str) -> None:
    with pytest.raises(InferenceServerException, match="There is nothing at this address"):
        getattr(triton, what)()


def test_triton_without_an_admin_key_loads_nothing(triton: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="There is nothing at this address"):
        triton.load_model(MODEL)


def test_triton_infers_with_its_defaults(server: Running, triton: InferenceServerClient) -> None:
    answer = triton.infer(MODEL, [triton_image(CHELSEA.data)])
    assert {name: answer.as_numpy(name).shape for name in DEFAULT} == DEFAULT
    assert answer.as_numpy("overlay_png") is None
    heatmap = npy(explained(server, CHELSEA.data, format="npy"))
    np.testing.assert_array_equal(answer.as_numpy("heatmap")[0, 0], heatmap)
    png = explained(server, CHELSEA.data, format="png")
    np.testing.assert_array_equal(answer.as_numpy("overlay")[0, 0], decoded(png.content))


def test_triton_infers_with_everything_said(server: Running, triton: InferenceServerClient) -> None:
    outputs = [
        InferRequestedOutput("heatmap", binary_data=True),
        InferRequestedOutput("class_id", binary_data=False),
        InferRequestedOutput("scores", class_count=7),
        InferRequestedOutput("overlay_png"),
    ]
    answer = triton.infer(
        MODEL,
        [triton_image(CHELSEA.data)],
        outputs=outputs,
        request_id="rq1",
        priority=1,
        timeout=60_000_000,
        parameters={"method": "layercam", "top_k": 2, "alpha": 0.25, "color_map": "viridis"},
    )
    assert answer.get_response()["id"] == "rq1"
    best = [text.decode().split(":") for text in answer.as_numpy("scores")[0]]
    assert best[0] == [f"{float(best[0][0]):.6f}", "282", "tiger cat"]
    assert [int(one[1]) for one in best[:2]] == answer.as_numpy("class_id")[0].tolist()
    assert len(best) == 7
    options = {"method": "layercam", "alpha": 0.25, "color_map": "viridis", "format": "png", "class_id": best[1][1]}
    # The files differ in what they say of their request.
    native = explained(server, CHELSEA.data, **options).content
    np.testing.assert_array_equal(decoded(answer.as_numpy("overlay_png")[0, 1]), decoded(native))


@pytest.mark.parametrize("classes", [[281, 285], "281,285"])
def test_triton_names_classes_in_a_parameter(triton: InferenceServerClient, classes: object) -> None:
    answer = triton.infer(MODEL, [triton_image(CHELSEA.data)], parameters={"class_id": classes})
    assert answer.as_numpy("class_id").tolist() == [[281, 285]]
    assert answer.as_numpy("heatmap").shape == (1, 2, 224, 224)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_names_classes_in_a_tensor(triton: InferenceServerClient, binary: bool) -> None:
    classes = TritonInput("class_id", [2, 2], "INT64")
    classes.set_data_from_numpy(np.array([[281, 285], [657, 0]], np.int64), binary_data=binary)
    answer = triton.infer(MODEL, [triton_image(CHELSEA.data, ROCKET.data), classes])
    assert answer.as_numpy("class_id").tolist() == [[281, 285], [657, 0]]
    for row, (photo, ids) in enumerate([(CHELSEA, [281, 285]), (ROCKET, [657, 0])]):
        for column, class_id in enumerate(ids):
            alone = triton.infer(MODEL, [triton_image(photo.data)], parameters={"class_id": class_id})
            found, expected = answer.as_numpy("heatmap")[row, column], alone.as_numpy("heatmap")[0, 0]
            np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("binary", [True, False])
def test_pixels_answer_as_their_file_does(triton: InferenceServerClient, binary: bool) -> None:
    file = triton.infer(MODEL, [triton_image(CHINA.data)])
    pixels = decoded(CHINA.data)[None]
    tensor = TritonInput("image", pixels.shape, "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    answer = triton.infer(MODEL, [tensor])
    for name in DEFAULT:
        np.testing.assert_array_equal(answer.as_numpy(name), file.as_numpy(name))


def test_triton_s_compression_is_refused_in_words(triton: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="without Content-Encoding"):
        triton.infer(MODEL, [triton_image(CHELSEA.data)], request_compression_algorithm="gzip")


# The protocol's own client --------------------------------------------------------------------------------------------------


def test_the_protocol_s_client(server: Running) -> None:
    with httpx.Client(timeout=60) as http:
        _ask_everything(OpenInferenceClient(base_url=server.url, httpx_client=http))


def _ask_everything(client: OpenInferenceClient) -> None:
    client.check_server_liveness()
    client.check_server_readiness()
    client.check_model_readiness(MODEL)
    client.check_model_version_readiness(MODEL, "1")
    assert client.read_server_metadata().name == "camserve"
    assert client.read_model_metadata(MODEL).versions == ["1"]
    assert client.read_model_version_metadata(MODEL, "1").platform == "camserve"
    request = {
        "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [b64(CHELSEA.data)]}],
        "outputs": [{"name": "class_id"}, {"name": "scores"}],
    }
    for answer in (
        client.model_infer(MODEL, request=InferenceRequest.parse_obj(request)),
        client.model_version_infer(MODEL, "1", request=InferenceRequest.parse_obj(request)),
    ):
        document = json.loads(answer.json())
        assert document["id"]
        assert document["outputs"][0]["data"] == [CHELSEA.top[0]]
