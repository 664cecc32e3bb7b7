"""The application: every part built once, in one function that reads like a list. Nothing here knows how any part works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import structlog
from fastapi import APIRouter, FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.middleware import Middleware

from service import __version__
from service.api import admin, catalogue, health, openapi, problems, routes
from service.api.compat import infer, kserve, open_inference, torchserve
from service.api.compat.invocations import sagemaker_router, vertex_router
from service.api.dependencies import Lifecycle, Services
from service.api.middleware import PUBLIC_PATHS, QUIET_ROUTES, ApiKeyMiddleware, HeadMiddleware, RequestLogMiddleware
from service.errors import ConfigurationError
from service.explain.explainer import Explainer
from service.explain.registry import Registry
from service.settings import Settings
from service.telemetry import Metrics, configure_logging
from service.tracing import Tracer, create_tracer

DESCRIPTION = """Explanations for image classifiers: send an image, get back where its class was found.

`curl -F image=@cat.jpg -H 'Accept: image/png' localhost:8000/explain -o overlay.png`
"""

log = structlog.get_logger(__name__)


def create_app(settings: Settings | None = None, *, on_fatal: Callable[[BaseException], None] | None = None) -> FastAPI:
    """Builds the service.

    `services_of(app)` gives its parts. Whoever is told to stop may call `lifecycle.drain()` first, so that /readyz says so
    while requests are still answered.

    Args:
        settings: read from the environment if not given.
        on_fatal: called when the models cannot be loaded, for instance to stop the server. Without it the process lives on,
            never ready, with the reason in its log.

    Raises:
        ConfigurationError: a card is bad, or one is asked for that is not there.
    """
    settings = settings or Settings()
    metrics = Metrics()
    metrics.queue_limit.set(settings.max_queue_size)
    configure_logging(settings)
    tracer = create_tracer()
    registry = Registry(settings, metrics)
    codecs = ThreadPoolExecutor(settings.codec_threads, thread_name_prefix="codec")  # its threads start with their first task
    services = Services(
        settings=settings,
        registry=registry,
        explainer=Explainer(registry, settings, codecs, metrics, tracer),
        metrics=metrics,
        lifecycle=Lifecycle(),
    )
    probes = PUBLIC_PATHS | {route for route in (settings.vertex_health_route,) if route}
    app = FastAPI(
        title="camserve",
        version=__version__,
        description=DESCRIPTION,
        lifespan=_lifespan(services, codecs, tracer, on_fatal),
        middleware=[
            Middleware(HeadMiddleware),
            Middleware(
                RequestLogMiddleware, metrics=metrics, lifecycle=services.lifecycle, tracer=tracer, quiet=QUIET_ROUTES | probes
            ),
            *([Middleware(ApiKeyMiddleware, keys=settings.api_keys, probes=probes)] if settings.api_keys else []),
        ],
        telemetry=_telemetry(tracer),
        redirect_slashes=False,  # a redirect would repeat the client's Host header
        redoc_url=None,
    )
    services.install(app)
    for router in _routers(settings):
        app.include_router(router)
    problems.install(app)
    openapi.install(app)
    return app


def _routers(settings: Settings) -> Iterator[APIRouter]:
    """Those of the protocols that the operator wants, and those that every service has."""
    wanted = set(settings.protocols)
    if "vertex" in wanted:
        yield vertex_router(settings)  # the first, for its addresses are the operator's choice and may be any
    # Routes are tried one after the other, so those that are asked most come first.
    if "native" in wanted:
        yield routes.router
    if "oip" in wanted:
        yield infer.router
    if "kserve" in wanted:
        yield kserve.router
    if "torchserve" in wanted:
        yield torchserve.router
    if "sagemaker" in wanted:
        yield sagemaker_router()
    yield from (health.router, admin.router)
    if "native" in wanted:
        yield catalogue.router
    if "oip" in wanted:
        yield open_inference.router


def _telemetry(tracer: Tracer | None) -> TelemetryConfig:
    """FastAPI's own OpenTelemetry: a span for each request, but for probes and scrapes. Metrics and logs are ours."""
    config = TelemetryConfig(tracing=False, metrics=False, logs=False, operation_spans=False)
    if tracer is not None:
        config |= TelemetryConfig(tracing=True, tracer_provider=tracer.provider, exclude=_is_untraced)
    return config


def _is_untraced(scope: MutableMapping[str, Any]) -> bool:
    return scope["path"] in QUIET_ROUTES


def _lifespan(
    services: Services, codecs: ThreadPoolExecutor, tracer: Tracer | None, on_fatal: Callable[[BaseException], None] | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with codecs:
            grpc_server = await _start_grpc(services)
            loading = asyncio.create_task(_load(services, on_fatal))
            try:
                yield
            finally:
                services.lifecycle.drain()
                if grpc_server is not None:
                    await grpc_server.stop(services.settings.request_timeout_s)
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
                await services.registry.close()
                if tracer is not None:
                    await asyncio.to_thread(tracer.close)

    return lifespan


async def _start_grpc(services: Services) -> Any:
    """The gRPC server, if a port is set for it.

    Raises:
        ConfigurationError: its libraries are not installed.
    """
    settings = services.settings
    if settings.grpc_port is None:
        return None
    try:
        from service.api.compat.grpc_service import start_grpc_server  # noqa: PLC0415 (optional)
    except ModuleNotFoundError as error:
        raise ConfigurationError("grpc_port: gRPC is not installed; pip install 'camserve[grpc]'") from error
    return await start_grpc_server(services, settings.host, settings.grpc_port)


async def _load(services: Services, on_fatal: Callable[[BaseException], None] | None) -> None:
    """In the background, so that /livez answers while the models load."""
    try:
        await services.registry.start()
    except Exception as error:
        log.critical("models_not_loaded", reason=str(error), exc_info=not isinstance(error, ConfigurationError))
        if on_fatal is not None:
            on_fatal(error)
    else:
        if services.lifecycle.serve():
            log.info("service_ready", models=list(services.registry.startup_models))
