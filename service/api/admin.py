"""POST /admin/models/{model}/load and /unload: what an operator does while the service runs. Off unless admin keys are set."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path
from fastapi.requests import Request
from fastapi.responses import Response

from service import errors
from service.api.auth import ApiKeySet, refusal
from service.api.dependencies import Phase, Services, ServicesDependency
from service.api.openapi import OTHER, answers, problems
from service.api.responses import json_response
from service.explain.results import ModelInfo

ModelName = Annotated[str, Path(description="Name of a model card, see GET /models.")]
ANSWERS: Final[dict[str, Any]] = {
    "response_class": Response,
    "responses": answers(ModelInfo)
    | problems(
        errors.AuthRequired,
        errors.AuthInvalid,
        errors.Forbidden,
        errors.NotFound,
        errors.ModelNotFound,
        errors.ModelUnhealthy,
        errors.ShuttingDown,
    )
    | OTHER,
}


async def require_admin(request: Request, services: ServicesDependency) -> None:
    """Lets operators pass; without admin keys there is nothing here."""
    settings = services.settings
    admins = ApiKeySet(settings.admin_keys)
    if not admins:
        raise errors.NotFound("There is nothing at this address. GET / says what is served.")
    if admins.open(request.headers):
        return
    if ApiKeySet(settings.api_keys).open(request.headers):
        raise errors.Forbidden("This API key is not an operator's.")
    raise refusal(request.headers)


router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(require_admin)])


@router.post("/models/{model}/load", summary="Load a model", **ANSWERS)
async def load(services: ServicesDependency, model: ModelName) -> Response:
    """Loads and warms the model, and answers when it is ready; at once when it is already. Wants an admin key."""
    await load_model(services, model)
    return _described(services, model)


@router.post("/models/{model}/unload", summary="Unload a model", **ANSWERS)
async def unload(services: ServicesDependency, model: ModelName) -> Response:
    """Refuses new requests for the model, finishes those it has, and gives its memory back. Wants an admin key."""
    await services.registry.unload(model)
    return _described(services, model)


async def load_model(services: Services, model: str) -> None:
    """Loads a model unless the service is shutting down.

    Raises:
        CamserveError: as `Registry.load`.
        ShuttingDown: the service has been told to stop.
    """
    if services.phase is Phase.DRAINING:
        raise errors.ShuttingDown("The service is shutting down. Ask another instance.", retry_after_s=5)
    await services.registry.load(model)


def _described(services: Services, model: str) -> Response:
    return json_response(services.registry.describe_one(model))
