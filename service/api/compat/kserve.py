"""KServe's v1 protocol: GET /v1/models, and POST /v1/models/{model}:predict and :explain with `instances`.

Each prediction is what POST /predict says of the image, each explanation the list that POST /explain gives for it. With
parameter `explain` each prediction of :predict holds its explanations, for platforms that pass on `predictions` alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from fastapi import APIRouter
from fastapi.requests import Request
from fastapi.responses import Response

from service import errors
from service.api.compat.exchange import CardName, ModelName, ask, documentation, object_schema
from service.api.compat.instances import ImageSubmission, read_instances
from service.api.dependencies import Phase, Services, ServicesDependency
from service.api.responses import json_response, measured_headers
from service.explain.results import Answer, ExplainResult

INSTANCES: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "Images in base64, whatever the Content-Type says. An instance may also be a text, or have its image "
        "under `b64`, `image_bytes` or `data`; options beside the image are its own, those in `parameters` are of all.",
        "content": {
            "application/json": {
                "schema": object_schema(instances={"type": "array", "minItems": 1}),
                "example": {"instances": [{"image": {"b64": "iVBORw0KGgo="}}], "parameters": {"method": "gradcam"}},
            }
        },
    }
}
PREDICTIONS: Final = {"type": "array", "items": {"type": "object"}}
EXPLANATIONS: Final = {"type": "array", "items": {"type": "array", "items": {"type": "object"}}}
NAMES: Final = {"type": "array", "items": {"type": "string"}}

router = APIRouter(prefix="/v1/models", default_response_class=Response)


@router.get("", **documentation("KServe v1: list the models", "Names of the models.", object_schema(models=NAMES)))
async def models(services: ServicesDependency) -> Response:
    """Models that are loaded, or will be; first the other name of the default model, where it has one."""
    alias = services.settings.model_name
    names = [one.name for one in services.registry.describe() if one.state != "available"]
    return json_response({"models": list(dict.fromkeys([*([alias] if alias else []), *names]))})


@router.post(
    "/{model}:predict",
    openapi_extra=INSTANCES,
    **documentation("KServe v1: predict", "One for each instance.", object_schema(predictions=PREDICTIONS), asks=True),
)
async def predict(request: Request, services: ServicesDependency, card: CardName) -> Response:
    """Classifies instances; with parameter `explain` true each prediction holds its explanations too."""
    _, answer = await ask(request, services, card, partial(_read, request, services, explain=False))
    return json_response({"predictions": answer.results}, measured_headers(answer))


@router.post(
    "/{model}:explain",
    openapi_extra=INSTANCES,
    **documentation(
        "KServe v1: explain",
        "One list of explanations for each instance.",
        object_schema(predictions=PREDICTIONS, explanations=EXPLANATIONS),
        asks=True,
    ),
)
async def explain(request: Request, services: ServicesDependency, card: CardName) -> Response:
    """Explains instances."""
    _, answer = await ask(request, services, card, partial(_read, request, services, explain=True))
    return json_response(explained_document(answer), measured_headers(answer))


@router.get(
    "/{model}",
    **documentation(
        "KServe v1: is a model ready?",
        "It is.",
        object_schema(name={"type": "string"}, ready={"type": "boolean"}),
    ),
)
async def model(services: ServicesDependency, model: ModelName, card: CardName) -> Response:
    """200 when the model is loaded and warm, 503 before."""
    check_model_ready(services, card)
    return json_response({"name": model, "ready": True})


def check_model_ready(services: Services, card: str) -> None:
    """Whether a model answers requests now.

    Raises:
        NotReady: it does not yet, or not any more.
        ShuttingDown: the service has been told to stop.
    """
    if services.phase is Phase.DRAINING:
        raise errors.ShuttingDown("The service is shutting down. Ask another instance.", retry_after_s=5)
    if services.phase is Phase.STARTING or not services.registry.is_ready(card):
        raise errors.NotReady("This model is not ready. Try again soon.", retry_after_s=2)


def explained_document(answer: Answer) -> dict[str, Any]:
    """Predictions and explanations apart, each one for each instance."""
    results = answer.results
    return {
        "predictions": [{"image": one.image, "predictions": one.predictions} for one in results],
        "explanations": [one.explanations if isinstance(one, ExplainResult) else () for one in results],
    }


async def _read(request: Request, services: Services, *, explain: bool) -> Any:
    submission: ImageSubmission = await read_instances(request, services.settings)
    inquiry = submission.inquire(explain=explain)
    if inquiry.options.format not in (None, "json"):
        raise errors.NotAcceptable("format: this address answers with application/json; /explain answers with images.")
    return inquiry
