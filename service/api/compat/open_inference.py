"""Open Inference Protocol v2 over HTTP, as Triton and KServe speak it: the server, its models and their repository."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import orjson
from fastapi import APIRouter, Depends
from fastapi.requests import Request
from fastapi.responses import Response

from service import __version__, errors
from service.api.admin import load_model, require_admin
from service.api.compat.exchange import CardName, ModelName, documentation, object_schema
from service.api.compat.kserve import check_model_ready
from service.api.dependencies import ServicesDependency
from service.api.health import check_ready
from service.api.responses import json_response
from service.api.uploads import read, refuse_early
from service.explain.results import ModelInfo
from service.vocabulary import ModelState, TensorName

STATES: Final[dict[ModelState, str]] = {
    "ready": "READY",
    "loading": "LOADING",
    "available": "UNAVAILABLE",
    "failed": "UNAVAILABLE",
}
EXTENSIONS: Final = ("binary_tensor_data", "classification", "model_repository")
READY: Final = object_schema(name={"type": "string"}, ready={"type": "boolean"})
METADATA: Final = object_schema(
    name={"type": "string"}, versions={"type": "array"}, platform={"type": "string"}, inputs={"type": "array"},
    outputs={"type": "array"},
)  # fmt: skip

router = APIRouter(prefix="/v2", default_response_class=Response)


# The server and its models --------------------------------------------------------------------------------------------------


@router.get(
    "",
    **documentation(
        "Open Inference Protocol: the server",
        "Name, version and extensions.",
        object_schema(name={"type": "string"}, version={"type": "string"}, extensions={"type": "array"}),
    ),
)
async def server() -> Response:
    """What server this is."""
    return json_response({"name": "camserve", "version": __version__, "extensions": EXTENSIONS})


@router.get(
    "/health/live",
    **documentation("Open Inference Protocol: is the server alive?", "It is.", object_schema(live={"type": "boolean"})),
)
async def live() -> Response:
    """200 as long as the process answers."""
    return json_response({"live": True})


@router.get(
    "/health/ready",
    **documentation("Open Inference Protocol: is the server ready?", "It is.", object_schema(ready={"type": "boolean"})),
)
async def ready(services: ServicesDependency) -> Response:
    """200 when every model asked for at start is loaded and warmed."""
    check_ready(services)
    return json_response({"ready": True})


@router.get("/models/{model}/ready", **documentation("Open Inference Protocol: is a model ready?", "It is.", READY))
@router.get("/models/{model}/versions/{version}/ready", include_in_schema=False)
async def model_ready(services: ServicesDependency, model: ModelName, card: CardName) -> Response:
    """200 when the model is loaded and warm, 503 before."""
    check_model_ready(services, card)
    return json_response({"name": model, "ready": True})


@router.get("/models/{model}", **documentation("Open Inference Protocol: describe a model", "Its tensors.", METADATA))
@router.get("/models/{model}/versions/{version}", include_in_schema=False)
async def metadata(services: ServicesDependency, model: ModelName, card: CardName) -> Response:
    """Inputs, of which `class_id` may be left out, and outputs."""
    info = services.registry.describe_one(card)
    inputs, outputs = described_tensors(info)
    return json_response(
        {"name": model, "versions": [info.version], "platform": "camserve", "inputs": inputs, "outputs": outputs}
    )


@router.get(
    "/models/{model}/config",
    **documentation("Open Inference Protocol: a model's configuration", "As Triton writes it.", {"type": "object"}),
)
@router.get("/models/{model}/versions/{version}/config", include_in_schema=False)
async def config(services: ServicesDependency, model: ModelName, card: CardName) -> Response:
    """Triton's model configuration, as far as it has a meaning here."""
    info = services.registry.describe_one(card)
    inputs, outputs = (
        [{"name": one["name"], "data_type": f"TYPE_{_config_type(one['datatype'])}", "dims": one["shape"]} for one in tensors]
        for tensors in described_tensors(info)
    )
    optional = [one | {"optional": one["name"] != "image"} for one in inputs]
    return json_response(
        {
            "name": model,
            "platform": "camserve",
            "backend": "camserve",
            "max_batch_size": 0,
            "input": optional,
            "output": outputs,
        }
    )


def _config_type(datatype: str) -> str:
    return {"BYTES": "STRING"}.get(datatype, datatype)


def described_tensors(info: ModelInfo) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Name, datatype and shape of each input and each output of a model; -1 is a size that varies."""
    inputs = [("image", "BYTES", [-1]), ("class_id", "INT64", [-1, -1])]
    outputs: list[tuple[TensorName, str, list[int]]] = [
        ("scores", "FP32", [-1, info.classes or -1]),
        ("class_id", "INT64", [-1, -1]),
        ("heatmap", "FP32", [-1, -1, -1, -1]),
        ("overlay", "UINT8", [-1, -1, -1, -1, 3]),
        ("overlay_png", "BYTES", [-1, -1]),
    ]

    def described(tensors: Sequence[tuple[str, str, list[int]]]) -> list[dict[str, Any]]:
        return [{"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in tensors]

    return described(inputs), described(outputs)


# The repository -------------------------------------------------------------------------------------------------------------


@router.post(
    "/repository/index",
    **documentation("Open Inference Protocol: list the models", "Every card, with its state.", {"type": "array"}),
)
async def index(request: Request, services: ServicesDependency) -> Response:
    """Every card with the state of its model; with `{"ready": true}` those that are ready. The body may be empty."""
    refuse_early(request, services.settings.max_body_bytes)
    body = await read(request, services.settings.max_body_bytes)
    try:
        document = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError:
        raise errors.JsonInvalid('The body is not valid JSON. Send none, or {"ready": true}.') from None
    only_ready = isinstance(document, dict) and document.get("ready") is True
    infos = services.registry.describe()
    return json_response(
        [
            {"name": info.name, "version": info.version, "state": STATES[info.state], "reason": info.error or ""}
            for info in infos
            if info.state == "ready" or not only_ready
        ]
    )


CHANGE: Final[dict[str, Any]] = {"dependencies": [Depends(require_admin)]}


@router.post(
    "/repository/models/{model}/load",
    **documentation("Open Inference Protocol: load a model", "It is ready."),
    **CHANGE,
)
async def load(services: ServicesDependency, card: CardName) -> Response:
    """Loads and warms the model, and answers when it is ready. Wants an admin key; the body is not read."""
    await load_model(services, card)
    return Response()


@router.post(
    "/repository/models/{model}/unload",
    **documentation("Open Inference Protocol: unload a model", "It is gone."),
    **CHANGE,
)
async def unload(services: ServicesDependency, card: CardName) -> Response:
    """Refuses new requests for the model, finishes those it has, and gives its memory back. Wants an admin key."""
    await services.registry.unload(card)
    return Response()
