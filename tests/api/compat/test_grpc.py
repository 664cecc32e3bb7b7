"""The Open Inference Protocol over gRPC: the service as a process, asked by real clients in processes of their own.

The clients' stubs register the same protobuf symbols, so that two of them cannot be imported into one process.
"""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests import image_files as make
from tests.model_cards import write_card

KEY = "secret-key"
READY_S = 120
OF_STUB = """
import json, sys
import grpc
from open_inference.grpc import protocol as p
from open_inference.grpc.service import GRPCInferenceServiceStub
address, image = sys.argv[1], open(sys.argv[2], "rb").read()
channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
stub, keys = GRPCInferenceServiceStub(channel), (("authorization", "Bearer secret-key"),)
def infer(parameters=None, outputs=(), metadata=keys, raw=None, timeout=60, name="tiny", **tensor):
    content = raw if raw is not None else [len(image).to_bytes(4, "little") + image]
    request = p.ModelInferRequest(
        model_name=name, id="rq1", inputs=[{"name": "image", "datatype": "BYTES", "shape": [1], **tensor}],
        raw_input_contents=content, parameters=parameters or {}, outputs=[{"name": one} for one in outputs],
    )
    return stub.ModelInfer(request, metadata=metadata, timeout=timeout)
def code(**arguments):
    try:
        infer(**arguments)
    except grpc.RpcError as error:
        return [error.code().name, error.details(), dict(error.trailing_metadata()).get("camserve-code")]
answer = infer({"class_id": {"string_param": "3,1"}, "method": {"string_param": "layercam"}, "alpha": {"string_param": "0.25"}})
typed = infer(raw=[], contents={"bytes_contents": [image]}, outputs=["class_id"])
print(json.dumps({
    "live": stub.ServerLive(p.ServerLiveRequest()).live, "ready": stub.ServerReady(p.ServerReadyRequest()).ready,
    "model_ready": stub.ModelReady(p.ModelReadyRequest(name="tiny"), metadata=keys).ready,
    "server": stub.ServerMetadata(p.ServerMetadataRequest(), metadata=keys).name,
    "metadata": [one.name for one in stub.ModelMetadata(p.ModelMetadataRequest(name="tiny"), metadata=keys).outputs],
    "head": [answer.model_name, answer.model_version, answer.id],
    "outputs": [[one.name, one.datatype, list(one.shape), content.hex()]
                for one, content in zip(answer.outputs, answer.raw_output_contents)],
    "typed": [[one.name, list(one.shape)] for one in typed.outputs],
    "errors": {
        "no key": code(metadata=()), "wrong key": code(metadata=(("x-api-key", "other"),)), "no model": code(name="other"),
        "class": code(parameters={"class_id": {"int64_param": 99}}), "length": code(raw=[b"\\xff\\xff\\xff\\xff123"]),
        "image": code(raw=[(6).to_bytes(4, "little") + b"nothing"[:6]]), "shape": code(shape=[7]),
        "deadline": code(parameters={"method": {"string_param": "rise"}, "samples": {"int64_param": 10000}}, timeout=0.3),
    },
}))
"""
OF_KSERVE = """
import asyncio, json, sys
from kserve import InferenceGRPCClient, InferInput, InferRequest
async def ask():
    client = InferenceGRPCClient(sys.argv[1], channel_args=[("grpc.max_receive_message_length", -1)])
    headers = (("authorization", "Bearer secret-key"),)
    image = InferInput("image", [1], "BYTES")
    image._raw_data = None
    image.data = None
    content = open(sys.argv[2], "rb").read()
    import numpy as np
    image.set_data_from_numpy(np.array([content], object), binary_data=True)
    request = InferRequest(model_name="tiny", infer_inputs=[image], parameters={"class_id": "3,1", "method": "layercam"})
    answer = await client.infer(request, headers=headers)
    print(json.dumps({
        "live": await client.is_server_live(), "ready": await client.is_server_ready(),
        "model_ready": await client.is_model_ready("tiny", headers=headers),
        "shapes": {one.name: list(one.shape) for one in answer.outputs},
        "class_id": [int(one) for one in answer.get_output_by_name("class_id").as_numpy().ravel()],
    }))
asyncio.run(ask())
"""


@dataclass(frozen=True)
class Served:
    """A running service: its addresses, and an image to send."""

    http: str
    grpc: str
    image: Path
    log: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("grpc")
    write_card(folder, "tiny")
    (folder / "image.png").write_bytes(make.save(make.scene(96, 48), "PNG"))
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    command = [
        sys.executable, "-m", "service", "serve", "--models", "tiny", "--models-dir", str(folder), "--port", str(ports[0]),
        "--grpc-port", str(ports[1]), "--api-keys", KEY, "--log-format", "json", "--shutdown-delay-s", "0",
    ]  # fmt: skip
    log = folder / "log"
    with log.open("wb") as file, subprocess.Popen(command, stderr=file) as process:
        try:
            started = time.monotonic()
            while b'"service_ready"' not in log.read_bytes():
                assert process.poll() is None, log.read_text(encoding="utf-8")
                assert time.monotonic() - started < READY_S
                time.sleep(0.2)
            yield Served(f"http://127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", folder / "image.png", log)
        finally:
            process.terminate()
            assert process.wait(60) == 0


def run(program: str, served: Served) -> dict[str, Any]:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, served.grpc, str(served.image)],
        capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return answer


@pytest.fixture(scope="module")
def stub(served: Served) -> dict[str, Any]:
    return run(OF_STUB, served)


def test_the_server_and_its_model(stub: dict[str, Any]) -> None:
    assert (stub["live"], stub["ready"], stub["model_ready"], stub["server"]) == (True, True, True, "camserve")
    assert stub["metadata"] == ["scores", "class_id", "heatmap", "overlay", "overlay_png"]


def test_it_answers_as_over_http(stub: dict[str, Any], served: Served) -> None:
    assert stub["head"] == ["tiny", "1", "rq1"]
    found = {name: (datatype, shape, bytes.fromhex(content)) for name, datatype, shape, content in stub["outputs"]}
    assert list(found) == ["scores", "class_id", "heatmap", "overlay"]
    assert np.frombuffer(found["class_id"][2], np.int64).tolist() == [3, 1]
    response = httpx.post(
        f"{served.http}/explain", content=served.image.read_bytes(), headers={"X-API-Key": KEY},
        params={"class_id": "3,1", "method": "layercam", "format": "npy", "size": "input"},
    )  # fmt: skip
    native = np.load(io.BytesIO(response.content))
    datatype, shape, content = found["heatmap"]
    assert (datatype, shape) == ("FP32", [1, *native.shape])
    np.testing.assert_allclose(np.frombuffer(content, np.float32).reshape(native.shape), native, atol=1e-6)
    assert stub["typed"] == [["class_id", [1, 1]]]


@pytest.mark.parametrize(
    ("case", "status", "code"),
    [
        ("no key", "UNAUTHENTICATED", "auth_required"), ("wrong key", "UNAUTHENTICATED", "auth_invalid"),
        ("no model", "NOT_FOUND", "model_not_found"), ("class", "INVALID_ARGUMENT", "class_not_found"),
        ("length", "INVALID_ARGUMENT", "request_malformed"), ("shape", "INVALID_ARGUMENT", "request_malformed"),
    ],
)  # fmt: skip
def test_errors_have_grpc_s_codes_and_ours(stub: dict[str, Any], case: str, status: str, code: str) -> None:
    found_status, detail, found_code = stub["errors"][case]
    assert (found_status, found_code) == (status, code)
    assert detail


def test_what_is_no_image_and_what_takes_too_long(stub: dict[str, Any]) -> None:
    assert stub["errors"]["image"][0] == "INVALID_ARGUMENT"
    assert stub["errors"]["deadline"][0] == "DEADLINE_EXCEEDED"


def test_kserve_s_client(served: Served) -> None:
    answer = run(OF_KSERVE, served)
    assert (answer["live"], answer["ready"], answer["model_ready"]) == (True, True, True)
    assert answer["shapes"]["heatmap"] == [1, 2, 64, 64]
    assert answer["class_id"] == [3, 1]


def test_calls_are_logged_and_counted(stub: dict[str, Any], served: Served) -> None:
    assert stub["live"]
    lines = [json.loads(line) for line in served.log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    calls = [line for line in lines if line.get("route") == "/inference.GRPCInferenceService/ModelInfer"]
    assert {line["status"] for line in calls} >= {200, 401, 404, 422}
    metrics = httpx.get(f"{served.http}/metrics", headers={"X-API-Key": KEY}).text
    assert 'camserve_requests_total{model="tiny",route="/inference.GRPCInferenceService/ModelInfer",status="200"}' in metrics
