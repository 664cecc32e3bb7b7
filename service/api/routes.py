"""POST /predict and POST /explain: each a translation from a request to one call of the explainer and back."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path
from fastapi.requests import Request
from fastapi.responses import Response

from service import errors
from service.api import negotiation
from service.api.disconnect import cancel_on_disconnect
from service.api.openapi import REQUEST_BODY, option_parameters, problems, success
from service.api.request_log import request_log_of
from service.api.responses import answer_response
from service.api.schemas import ExplainResponse, PredictResponse
from service.api.services import Phase, Services, ServicesDependency
from service.api.uploads import read_upload
from service.explain.cache import CachePolicy
from service.explain.options import Options

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
WITH_MODEL: Final[dict[str, Any]] = REQUEST_BODY | {"parameters": option_parameters()}
MODEL_IN_PATH: Final[dict[str, Any]] = REQUEST_BODY | {"parameters": option_parameters(leave_out=["model"])}

ModelName = Annotated[str, Path(description="Name of a model card, see GET /models.")]

router = APIRouter()


@router.post("/predict", summary="Classify images", openapi_extra=WITH_MODEL, **PREDICT)
async def predict(request: Request, services: ServicesDependency) -> Response:
    """The best classes of one or more images, with probabilities and logits."""
    return await answer(request, services, None, "predict")


@router.post("/models/{model}/predict", summary="Classify images with a named model", openapi_extra=MODEL_IN_PATH, **PREDICT)
async def predict_with(request: Request, services: ServicesDependency, model: ModelName) -> Response:
    """As POST /predict, with the model named in the path."""
    return await answer(request, services, model, "predict")


@router.post("/explain", summary="Explain images", openapi_extra=WITH_MODEL, **EXPLAIN)
async def explain(request: Request, services: ServicesDependency) -> Response:
    """Where in one or more images a class was found: heatmaps and overlays, with everything needed to read them.

    `Accept: image/png`, `image/jpeg` or `image/webp` (or option `format`) returns the overlay of one image and one class, or
    a contact sheet of several with `overlay_type=panel`. `application/x-npy` returns the float32 map. Else JSON.
    """
    return await answer(request, services, None, "explain")


@router.post("/models/{model}/explain", summary="Explain images with a named model", openapi_extra=MODEL_IN_PATH, **EXPLAIN)
async def explain_with(request: Request, services: ServicesDependency, model: ModelName) -> Response:
    """As POST /explain, with the model named in the path."""
    return await answer(request, services, model, "explain")


async def answer(
    request: Request, services: Services, model: str | None, question: Literal["predict", "explain", "inspect"]
) -> Response:
    """Answers a request: reads it, asks the explainer, writes what that says.

    Args:
        request: its body must not have been read.
        services: of the application.
        model: named in the path, or None.
        question: which of the explainer's.

    Raises:
        CamserveError: the child that says what is wrong.
    """
    settings, registry, explainer = services.settings, services.registry, services.explainer
    record = request_log_of(request.scope)
    if services.phase is Phase.STARTING:
        raise errors.NotReady("The models are still loading. GET /readyz says when they are ready.", retry_after_s=2)
    deadline = asyncio.get_running_loop().time() + settings.request_timeout_s
    try:
        async with asyncio.timeout_at(deadline) as limit:
            upload = await read_upload(request, settings)
            options = _with_model(upload.options, model)
            name = options.model or settings.models[0]
            record.model = name if name in registry else ""
            delivery = negotiation.negotiate(request.headers.get("accept"), options.format, negotiation.OFFERS[question])
            if question == "predict":
                work = explainer.predict(upload.subjects, options, deadline, _reuse(request))
            elif question == "explain":
                work = explainer.explain(upload.subjects, options, delivery, deadline, _reuse(request))
            else:
                work = explainer.inspect(upload.subjects, options, delivery, deadline)
            record.answer = found = await cancel_on_disconnect(request.receive, work)
    except TimeoutError:
        if not limit.expired():
            raise
        raise errors.DeadlineExceeded(
            f"There was no answer within {settings.request_timeout_s:g} seconds. Send fewer images, or try again."
        ) from None
    return answer_response(found, record.id, explaining=question == "explain")


def _reuse(request: Request) -> CachePolicy:
    """What the request's Cache-Control allows; directives that are not about this are passed over, as RFC 9111 asks."""
    given = {one.strip().lower() for line in request.headers.getlist("cache-control") for one in line.split(",")}
    if "no-store" in given:
        return "off"
    return "renew" if "no-cache" in given else "use"


def _with_model(options: Options, model: str | None) -> Options:
    if model is None:
        return options
    if options.model not in (None, model):
        raise errors.ParameterInvalid("model: the address names one already; leave the option out")
    return options.model_copy(update={"model": model})
