"""GET /models, their classes, and GET /methods: what there is to ask for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path
from fastapi.requests import Request
from fastapi.responses import Response

from service import errors
from service.api.dependencies import ServicesDependency
from service.api.openapi import OTHER, answers, problems
from service.api.responses import json_response
from service.explain.results import ClassList, MethodList, ModelInfo, ModelList

router = APIRouter(tags=["catalogue"])
REFUSED = problems(errors.AuthRequired, errors.AuthInvalid)
TAG_DIGITS: Final = 32
ModelName = Annotated[str, Path(description="Name of a model card, see GET /models.")]
NOT_MODIFIED: Final[dict[int | str, dict[str, Any]]] = {304: {"description": "The same as the one that If-None-Match names."}}


@router.get("/models", summary="List the models", response_class=Response, responses=answers(ModelList) | REFUSED)
async def models(services: ServicesDependency) -> Response:
    """Every card with the state of its model, its layers, methods and input size."""
    return json_response(ModelList(services.registry.describe()))


@router.get(
    "/models/{model}",
    summary="Describe a model",
    response_class=Response,
    responses=answers(ModelInfo) | REFUSED | problems(errors.ModelNotFound) | OTHER,
)
async def model(services: ServicesDependency, model: ModelName) -> Response:
    """One card with the state of its model."""
    return json_response(services.registry.describe_one(model))


@router.get(
    "/models/{model}/classes",
    summary="List a model's classes",
    response_class=Response,
    responses=answers(ClassList)
    | NOT_MODIFIED
    | REFUSED
    | problems(errors.ModelNotFound, errors.NotReady, errors.ShuttingDown, errors.ModelUnhealthy)
    | OTHER,
)
async def classes(request: Request, services: ServicesDependency, model: ModelName) -> Response:
    """Every class of a loaded model: its id, label and WordNet id.

    The ETag changes with the weights and the labels; a request with it in If-None-Match is answered 304.
    """
    found, digest = services.registry.list_classes(model)
    response = json_response(found)
    etag = entity_tag(digest, bytes(response.body))
    headers = {"ETag": etag, "Cache-Control": "no-cache"}  # to be kept, and to be asked for again before it is used
    if _names(request.headers.getlist("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return response


def entity_tag(digest: str, body: bytes) -> str:
    """The strong entity tag of an answer that a model of these weights gave."""
    return f'"{hashlib.sha256(digest.encode() + body).hexdigest()[:TAG_DIGITS]}"'


def _names(conditions: Sequence[str], etag: str) -> bool:
    """Whether If-None-Match names an entity tag; by the weak comparison, as RFC 9110, section 13.1.2, asks."""
    tags = [tag.strip().removeprefix("W/") for condition in conditions for tag in condition.split(",")]
    return "*" in tags or etag in tags


@router.get("/methods", summary="List the methods", response_class=Response, responses=answers(MethodList) | REFUSED)
async def methods(services: ServicesDependency) -> Response:
    """Every explanation method: family, cost, options and paper."""
    return json_response(MethodList(services.explainer.methods()))
