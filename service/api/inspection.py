"""POST /inspect: what a network's layers do for a class. A translation, as in `routes.py`."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter
from fastapi.requests import Request
from fastapi.responses import Response

from service.api.openapi import success
from service.api.routes import MODEL_IN_PATH, PROBLEMS, WITH_MODEL, ModelName, answer
from service.api.schemas import InspectResponse
from service.api.services import ServicesDependency

INSPECT: Final[dict[str, Any]] = {
    "response_class": Response,
    "responses": success(InspectResponse, images=True, arrays=False) | PROBLEMS,
    "tags": ["inspect"],
}

router = APIRouter()


@router.post("/inspect", summary="Look into layers", openapi_extra=WITH_MODEL, **INSPECT)
async def inspect(request: Request, services: ServicesDependency) -> Response:
    """What layers do for one class of one or more images: shapes, activations, gradients, the channels that weigh most.

    Uses the options `model`, `fit`, `layer` (repeatable; a few stages over the depth if not given), `class_id` or `class_name`
    (one; the predicted class if not given), `versus`, `channels`, `top_k` and `color_map`. `Accept: image/png`, `image/jpeg` or
    `image/webp` (or option `format`) returns a sheet with the strongest channels' feature maps of each layer. Else JSON.
    """
    return await answer(request, services, None, "inspect")


@router.post("/models/{model}/inspect", summary="Look into layers of a named model", openapi_extra=MODEL_IN_PATH, **INSPECT)
async def inspect_with(request: Request, services: ServicesDependency, model: ModelName) -> Response:
    """As POST /inspect, with the model named in the path."""
    return await answer(request, services, model, "inspect")
