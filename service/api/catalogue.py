"""GET /models and GET /methods: what there is to ask for."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import Response

from service import errors
from service.api.dependencies import ServicesDependency
from service.api.openapi import OTHER, answers, problems
from service.api.responses import json_response
from service.explain.results import MethodList, ModelInfo, ModelList

router = APIRouter(tags=["catalogue"])
REFUSED = problems(errors.AuthRequired, errors.AuthInvalid)


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
async def model(
    services: ServicesDependency, model: Annotated[str, Path(description="Name of a model card, see GET /models.")]
) -> Response:
    """One card with the state of its model."""
    return json_response(services.registry.describe_one(model))


@router.get("/methods", summary="List the methods", response_class=Response, responses=answers(MethodList) | REFUSED)
async def methods(services: ServicesDependency) -> Response:
    """Every explanation method: family, cost, options and paper."""
    return json_response(MethodList(services.explainer.methods()))
