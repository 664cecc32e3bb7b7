"""TorchServe's inference address: /predictions/{model} and /explanations/{model}, by POST and, as `curl -T` sends it, by PUT.

A prediction is `{label: probability}` of the best classes, an explanation the bare nested list ``[N, K, h, w]`` of the maps at
the network's input size: what TorchServe's image classifier and its explain handler answer. Of `instances` a prediction is
`{"predictions": [...]}`. An Accept header that names a type of POST /explain, or one of the options `format`, `heatmap` and
`overlay`, has an explanation answered as there.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import orjson
from fastapi import APIRouter
from fastapi.requests import Request
from fastapi.responses import Response

from service import errors
from service.api.compat.exchange import CardName, Inquiry, ask, documentation
from service.api.compat.instances import ImageSubmission, read_any
from service.api.dependencies import Services, ServicesDependency, request_log_of
from service.api.responses import OFFERS, answer_response, json_response, measured_headers, negotiate
from service.explain.options import TensorOptions
from service.explain.results import Answer, ExplainResponse, Prediction, PredictResult
from service.vocabulary import MEDIA_TYPES, Delivery

NATIVE_OPTIONS: Final = frozenset({"format", "heatmap", "overlay"})
BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": "The image: as the body, whatever its Content-Type, as a file part `data`, or in base64. Options of "
        "/explain in the query string, or as fields; `target` is `class_id`.",
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": {"type": "object"},
                "example": {"instances": [{"data": "iVBORw0KGgo=", "target": 281}]},
            },
        },
    }
}
MEMBERS: Final = ("type", "title", "status", "detail", "instance", "code", "error", "message")
PROBLEM: Final = {"type": "object", "required": list(MEMBERS)}
SCORES: Final = {"type": "object"}
LABEL_SCORES: Final[dict[str, Any]] = {
    "openapi_extra": BODY,
    **documentation("TorchServe: predict", "Probabilities of the best classes by label.", SCORES, asks=True, problem=PROBLEM),
}
EXPLANATION: Final[dict[str, Any]] = {
    "openapi_extra": BODY,
    **documentation("TorchServe: explain", "The maps, a nested list `[N, K, h, w]`.", {}, asks=True, problem=PROBLEM),
}

router = APIRouter(default_response_class=Response)


@router.post("/predictions/{model}", **LABEL_SCORES)
@router.put("/predictions/{model}", **LABEL_SCORES)
@router.post("/predictions/{model}/{version}", include_in_schema=False)
@router.put("/predictions/{model}/{version}", include_in_schema=False)
async def predictions(request: Request, services: ServicesDependency, card: CardName) -> Response:
    """Classifies an image. The address may end in the model's version."""
    submission: list[ImageSubmission] = []

    async def read() -> Inquiry:
        submission.append(await read_any(request, services.settings))
        return submission[0].inquire(explain=False)

    inquiry, answer = await ask(request, services, card, read)
    if inquiry.options.format == "json":
        return _native(request, answer)
    scores = [_label_scores(result) for result in answer.results]
    body = {"predictions": scores} if submission[0].has_instances else scores[0] if len(scores) == 1 else scores
    return json_response(body, measured_headers(answer))


@router.post("/explanations/{model}", **EXPLANATION)
@router.put("/explanations/{model}", **EXPLANATION)
@router.post("/explanations/{model}/{version}", include_in_schema=False)
@router.put("/explanations/{model}/{version}", include_in_schema=False)
async def explanations(request: Request, services: ServicesDependency, card: CardName) -> Response:
    """Explains an image. The address may end in the model's version."""
    inquiry, answer = await ask(request, services, card, partial(_read_explanation, request, services))
    if not isinstance(inquiry.options, TensorOptions):
        return _native(request, answer)
    maps = [one.heatmaps for one in answer.tensors]
    if len({(len(one), *heatmap.shape) for one in maps for heatmap in one}) > 1:
        raise errors.ParameterInvalid("size, fit: these images' maps are of several sizes. Send the images one by one.")
    return Response(
        orjson.dumps(maps, option=orjson.OPT_SERIALIZE_NUMPY), headers=measured_headers(answer), media_type="application/json"
    )


async def _read_explanation(request: Request, services: Services) -> Inquiry:
    submission = await read_any(request, services.settings)
    inquiry = submission.inquire(explain=True)
    options = inquiry.options
    accept = request.headers.get("accept", "").lower()
    if options.model_fields_set & NATIVE_OPTIONS or any(kind in accept for kind in MEDIA_TYPES.values()):
        delivery: Delivery = negotiate(request.headers.get("accept"), options.format, OFFERS[ExplainResponse])
        return Inquiry(images=inquiry.images, options=options, explain=True, delivery=delivery)
    size = options.size if "size" in options.model_fields_set else "input"
    tensors = TensorOptions.model_validate(
        options.model_dump() | {"size": size, "heatmap": "list", "tensors": frozenset({"heatmap"})}
    )
    return Inquiry(images=inquiry.images, options=tensors, explain=True)


def _native(request: Request, answer: Answer) -> Response:
    return answer_response(answer, request_log_of(request.scope).id, ExplainResponse)


def _label_scores(result: PredictResult) -> dict[str, float]:
    """Probabilities by label; of classes of the same name the better one keeps it, others have their id behind it."""
    scores: dict[str, float] = {}
    for one in result.predictions:
        scores[_key(one, scores)] = one.probability
    return scores


def _key(prediction: Prediction, taken: dict[str, float]) -> str:
    return f"{prediction.label} {prediction.class_id}" if prediction.label in taken else prediction.label
