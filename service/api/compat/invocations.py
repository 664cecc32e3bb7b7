"""SageMaker's /invocations, and the address that Vertex AI sends instances to: one body of any form, one answer that suits it.

`instances` are answered as KServe v1 has it, everything else as POST /explain or /predict. On SageMaker options travel in the
header X-Amzn-SageMaker-Custom-Attributes alone, and images are explained unless `explain=false` is among them. Vertex AI passes
on `predictions` alone, so there parameter `explain` puts the explanations into each of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from fastapi import APIRouter
from fastapi.requests import Request
from fastapi.responses import Response

from service.api.compat.exchange import Inquiry, ask, documentation
from service.api.compat.instances import ImageSubmission, attributes, read_any
from service.api.compat.kserve import INSTANCES, explained_document
from service.api.dependencies import Services, ServicesDependency, request_log_of
from service.api.health import readyz
from service.api.responses import OFFERS, answer_response, json_response, measured_headers, negotiate
from service.errors import NotAcceptable
from service.explain.results import Answer, ExplainResponse, PredictResponse
from service.settings import Settings

ATTRIBUTES_HEADER: Final = "X-Amzn-SageMaker-Custom-Attributes"
LONGEST_ATTRIBUTES: Final = 1024  # characters: SageMaker's own limit

INVOCATION: Final[dict[str, Any]] = {
    "openapi_extra": INSTANCES
    | {
        "parameters": [
            {
                "name": ATTRIBUTES_HEADER,
                "in": "header",
                "required": False,
                "description": "Options: `method=gradcam,class_id=281`.",
                "schema": {"type": "string", "maxLength": LONGEST_ATTRIBUTES},
            }
        ]
    },
    **documentation("SageMaker: explain", "As of `instances`, or as of /explain.", {"type": "object"}, asks=True),
}


def sagemaker_router() -> APIRouter:
    """POST /invocations; GET /ping is among the probes."""
    router = APIRouter(default_response_class=Response)
    router.post("/invocations", **INVOCATION)(invocations)
    return router


async def invocations(request: Request, services: ServicesDependency) -> Response:
    """Explains what SageMaker passes on: instances, the JSON of /explain, or an image."""
    given = attributes(request.headers.get(ATTRIBUTES_HEADER), longest=LONGEST_ATTRIBUTES)
    submission, inquiry, answer = await _invoke(request, services, given, explain=True)
    if submission.has_instances and inquiry.explain:
        return json_response(explained_document(answer), measured_headers(answer))
    return _respond(request, submission, inquiry, answer)


def vertex_router(settings: Settings) -> APIRouter:
    """The two addresses that Vertex AI has told the container, if it has."""
    router = APIRouter(default_response_class=Response, include_in_schema=False)
    if settings.vertex_health_route is not None:
        router.get(settings.vertex_health_route)(readyz)
    if settings.vertex_predict_route is not None:
        router.post(settings.vertex_predict_route)(vertex_predict)
    return router


async def vertex_predict(request: Request, services: ServicesDependency) -> Response:
    """Classifies, and with parameter `explain` explains, what Vertex AI passes on: instances, or with rawPredict an image."""
    submission, inquiry, answer = await _invoke(request, services, {}, explain=False)
    return _respond(request, submission, inquiry, answer)


async def _invoke(
    request: Request, services: Services, given: dict[str, Any], *, explain: bool
) -> tuple[ImageSubmission, Inquiry, Answer]:
    submissions: list[ImageSubmission] = []

    async def read() -> Inquiry:
        submission = await read_any(request, services.settings)
        submission = replace(submission, query=given | submission.query)
        submissions.append(submission)
        inquiry = submission.inquire(explain=explain)
        if submission.has_instances and inquiry.options.format not in (None, "json"):
            raise NotAcceptable("format: instances are answered as application/json; send one image for an image.")
        if submission.has_instances:
            return inquiry
        offers = OFFERS[ExplainResponse if inquiry.explain else PredictResponse]
        return replace(inquiry, delivery=negotiate(request.headers.get("accept"), inquiry.options.format, offers))

    inquiry, answer = await ask(request, services, None, read)
    return submissions[0], inquiry, answer


def _respond(request: Request, submission: ImageSubmission, inquiry: Inquiry, answer: Answer) -> Response:
    if submission.has_instances:
        return json_response({"predictions": answer.results}, measured_headers(answer))
    response = ExplainResponse if inquiry.explain else PredictResponse
    return answer_response(answer, request_log_of(request.scope).id, response)
