"""Probes, metrics and the greeting at /. Asks the registry whether it is ready and knows nothing else of models."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from service import __version__, errors
from service.api.dependencies import Phase, Services, ServicesDependency
from service.api.openapi import answers, problems
from service.api.responses import json_response
from service.api.schemas import Welcome
from service.explain.results import Health

router = APIRouter(tags=["operations"])


@router.get("/", summary="Greeting", response_class=Response, responses=answers(Welcome))
async def welcome() -> Response:
    """What this is and where to go on."""
    return json_response(
        {
            "status": "alive",
            "name": "camserve",
            "version": __version__,
            "explain": "/explain",
            "predict": "/predict",
            "models": "/models",
            "methods": "/methods",
            "docs": "/docs",
        }
    )


@router.get("/livez", summary="Is the process alive?", response_class=Response, responses=answers(Health))
async def livez() -> Response:
    """200 as long as the process answers."""
    return json_response(Health("alive"))


@router.get(
    "/readyz",
    summary="Are the models ready?",
    response_class=Response,
    responses=answers(Health) | problems(errors.NotReady, errors.ShuttingDown),
)
@router.get("/healthz", include_in_schema=False)
@router.get("/health", include_in_schema=False)
async def readyz(services: ServicesDependency) -> Response:
    """200 when every model asked for at start is loaded and warmed. Aliases: /healthz, /health, /ping."""
    check_ready(services)
    return json_response(Health("ready"))


@router.get("/ping", include_in_schema=False)
async def ping(services: ServicesDependency) -> Response:
    """As /readyz, in TorchServe's words, which scripts look for; SageMaker asks here too."""
    check_ready(services)
    return json_response({"status": "Healthy"})


def check_ready(services: Services) -> None:
    """Whether every model asked for at start is loaded and warmed.

    Raises:
        ShuttingDown: the service has been told to stop.
        NotReady: a model is not ready.
    """
    if services.phase is Phase.DRAINING:
        raise errors.ShuttingDown("The service is shutting down. Ask another instance.", retry_after_s=5)
    if services.registry.failed:
        raise errors.NotReady("A model could not be loaded. GET /models and the log tell which, and why.", retry_after_s=5)
    if services.phase is Phase.STARTING or not services.registry.ready:
        raise errors.NotReady("Not every model is ready. Try again soon.", retry_after_s=2)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(services: ServicesDependency, request: Request) -> Response:
    """Requests, stage durations, batch sizes, queue depth, rejections and readiness; with exemplars as OpenMetrics."""
    body, content_type = services.metrics.render(request.headers.get("accept", ""))
    return Response(body, media_type=content_type)
