"""POST /predict, /explain and /inspect: each a translation from a request to one call of the explainer and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Path
from fastapi.requests import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service import errors
from service.api.dependencies import Phase, Services, ServicesDependency, request_log_of
from service.api.openapi import problems, request_documentation, success
from service.api.responses import OFFERS, answer_response, negotiate
from service.api.uploads import Upload, read_upload
from service.explain.options import ExplainOptions, InspectOptions, PredictOptions
from service.explain.results import Answer, ExplainResponse, InspectResponse, PredictResponse
from service.explain.scheduler import Deadline
from service.vocabulary import CachePolicy, Delivery

PROBLEMS: Final = problems(
    errors.RequestError,
    errors.JsonInvalid,
    errors.Base64Invalid,
    errors.MultipartInvalid,
    errors.AuthRequired,
    errors.AuthInvalid,
    errors.ModelNotFound,
    errors.NotAcceptable,
    errors.PayloadTooLarge,
    errors.UnsupportedImageType,
    errors.ContentTypeUnsupported,
    errors.ContentEncodingUnsupported,
    errors.ImageMissing,
    errors.ImageEmpty,
    errors.ImageTruncated,
    errors.ImageCorrupt,
    errors.ImageTooManyPixels,
    errors.ImageTooSmall,
    errors.ImageAspectRatio,
    errors.ImageTooComplex,
    errors.ImageUnsupportedFeature,
    errors.TooManyImages,
    errors.ClassNotFound,
    errors.LayerNotFound,
    errors.MethodNotApplicable,
    errors.ParameterInvalid,
    errors.Overloaded,
    errors.EngineError,
    errors.InferenceNonFinite,
    errors.NotReady,
    errors.ShuttingDown,
    errors.ModelUnhealthy,
    errors.DeadlineExceeded,
)
PREDICT: Final[dict[str, Any]] = {
    "response_class": Response,
    "responses": success(PredictResponse) | PROBLEMS,
    "tags": ["classify"],
}
EXPLAIN: Final[dict[str, Any]] = {
    "response_class": Response,
    "responses": success(ExplainResponse, images=True) | PROBLEMS,
    "tags": ["explain"],
}
INSPECT: Final[dict[str, Any]] = {
    "response_class": Response,
    "responses": success(InspectResponse, images=True, arrays=False) | PROBLEMS,
    "tags": ["inspect"],
}

ModelName = Annotated[str, Path(description="Name of a model card, see GET /models.")]
Result = TypeVar("Result")
OptionsT = TypeVar("OptionsT", ExplainOptions, InspectOptions)
Ask = Callable[[Upload[OptionsT], Delivery, Deadline], Coroutine[Any, Any, Answer]]

router = APIRouter()


@router.post("/predict", summary="Classify images", openapi_extra=request_documentation(PredictOptions), **PREDICT)
async def predict(request: Request, services: ServicesDependency) -> Response:
    """The best classes of one or more images, with probabilities and logits.

    Options of /explain are accepted and checked here too, since one client often sends the same to both.
    """
    return await _predict(request, services, None)


@router.post(
    "/models/{model}/predict",
    summary="Classify images with a named model",
    openapi_extra=request_documentation(PredictOptions, model_in_path=True),
    **PREDICT,
)
async def predict_with(request: Request, services: ServicesDependency, model: ModelName) -> Response:
    """As POST /predict, with the model named in the path."""
    return await _predict(request, services, model)


@router.post("/explain", summary="Explain images", openapi_extra=request_documentation(ExplainOptions), **EXPLAIN)
async def explain(request: Request, services: ServicesDependency) -> Response:
    """Where in one or more images a class was found: heatmaps and overlays, with everything needed to read them.

    `Accept: image/png`, `image/jpeg` or `image/webp` (or option `format`) returns the overlay of one image and one class, or
    a contact sheet of several with `overlay_type=panel`. `application/x-npy` returns the float32 map. Else JSON. Overlays say
    inside the file which model, class and method they show: XMP, which `camserve show` prints.
    """
    return await _explain(request, services, None)


@router.post(
    "/models/{model}/explain",
    summary="Explain images with a named model",
    openapi_extra=request_documentation(ExplainOptions, model_in_path=True),
    **EXPLAIN,
)
async def explain_with(request: Request, services: ServicesDependency, model: ModelName) -> Response:
    """As POST /explain, with the model named in the path."""
    return await _explain(request, services, model)


@router.post("/inspect", summary="Look into layers", openapi_extra=request_documentation(InspectOptions), **INSPECT)
async def inspect(request: Request, services: ServicesDependency) -> Response:
    """What layers do for one class of one or more images: shapes, activations, gradients, the channels that weigh most.

    `class_id`, `class_name` or `top_k` may name one class; it is the predicted one if none does. `Accept: image/png`,
    `image/jpeg` or `image/webp` (or option `format`) returns a sheet with the strongest channels' feature maps of each layer.
    Else JSON.
    """
    return await _inspect(request, services, None)


@router.post(
    "/models/{model}/inspect",
    summary="Look into layers of a named model",
    openapi_extra=request_documentation(InspectOptions, model_in_path=True),
    **INSPECT,
)
async def inspect_with(request: Request, services: ServicesDependency, model: ModelName) -> Response:
    """As POST /inspect, with the model named in the path."""
    return await _inspect(request, services, model)


async def _predict(request: Request, services: Services, model: str | None) -> Response:
    async def ask(upload: Upload[ExplainOptions], _delivery: Delivery, deadline: Deadline) -> Answer:
        return await services.explainer.predict(upload.images, upload.options, deadline, cache_policy(request))

    return await _answer(request, services, model, ExplainOptions, PredictResponse, ask)


async def _explain(request: Request, services: Services, model: str | None) -> Response:
    async def ask(upload: Upload[ExplainOptions], delivery: Delivery, deadline: Deadline) -> Answer:
        policy, request_id = cache_policy(request), request_log_of(request.scope).id
        return await services.explainer.explain(upload.images, upload.options, delivery, deadline, policy, request_id)

    return await _answer(request, services, model, ExplainOptions, ExplainResponse, ask)


async def _inspect(request: Request, services: Services, model: str | None) -> Response:
    async def ask(upload: Upload[InspectOptions], delivery: Delivery, deadline: Deadline) -> Answer:
        request_id = request_log_of(request.scope).id
        return await services.explainer.inspect(upload.images, upload.options, delivery, deadline, request_id)

    return await _answer(request, services, model, InspectOptions, InspectResponse, ask)


async def _answer(
    request: Request,
    services: Services,
    model: str | None,
    accepted: type[OptionsT],
    response: type[PredictResponse],
    ask: Ask[OptionsT],
) -> Response:
    """Answers a request: reads it, asks the explainer, writes what that says.

    Args:
        request: its body must not have been read.
        services: of the application.
        model: named in the path, or None.
        accepted: the options of the route.
        response: the shape of the answer.
        ask: calls the explainer.

    Raises:
        CamserveError: the child that says what is wrong.
    """
    log = request_log_of(request.scope)
    if services.phase is Phase.STARTING:
        raise errors.NotReady("The models are still loading. GET /readyz says when they are ready.", retry_after_s=2)
    deadline = Deadline(services.settings.request_timeout_s)
    async with deadline.enforce():
        upload = with_model(await read_upload(request, services.settings, accepted), model)
        name = upload.options.model or services.registry.default
        log.model = name if name in services.registry else ""
        delivery = negotiate(request.headers.get("accept"), upload.options.format, OFFERS[response])
        answer = await cancel_on_disconnect(request.receive, ask(upload, delivery, deadline))
    log.answer = answer
    return answer_response(answer, log.id, response)


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Runs the work to its end, or cancels it as soon as the client closes the connection.

    Args:
        receive: the request's ASGI channel; its body must have been read.
        work: raises as it likes; cancelled here it must only clean up.

    Raises:
        ClientDisconnect: the client left first.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def cache_policy(request: Request) -> CachePolicy:
    """What the request's Cache-Control allows; directives that are not about this are ignored, as RFC 9111 asks."""
    given = {one.strip().lower() for line in request.headers.getlist("cache-control") for one in line.split(",")}
    if "no-store" in given:
        return "off"
    return "renew" if "no-cache" in given else "use"


def with_model(upload: Upload[OptionsT], model: str | None) -> Upload[OptionsT]:
    """The upload, for the model that the address names, if it names one.

    Raises:
        ParameterInvalid: its options name another.
    """
    if model is None:
        return upload
    if upload.options.model not in (None, model):
        raise errors.ParameterInvalid("model: the address names one already; leave the option out")
    return Upload(upload.images, upload.options.model_copy(update={"model": model}))
