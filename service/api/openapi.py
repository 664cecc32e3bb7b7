"""What the OpenAPI schema must say beyond what FastAPI reads off the routes: request forms, options, problems.

Everything is made from the models of `explain.options`, `explain.results` and `schemas`, so that a new option documents itself.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.schemas import ExplainForm, ExplainJson, InspectForm, InspectJson, PredictForm, PredictJson, Problem
from service.api.uploads import REPEATABLE
from service.errors import CamserveError
from service.explain.options import ExplainOptions, InspectOptions, PredictOptions
from service.vocabulary import MEDIA_TYPES

REF: Final = "#/components/schemas/{model}"
REQUEST_MODELS: Final[dict[type[BaseModel], tuple[type[BaseModel], type[BaseModel]]]] = {
    PredictOptions: (PredictForm, PredictJson),
    ExplainOptions: (ExplainForm, ExplainJson),
    InspectOptions: (InspectForm, InspectJson),
}
EXAMPLES: Final[dict[type[BaseModel], dict[str, Any]]] = {
    PredictOptions: {"images": [{"b64": "iVBORw0KGgo="}], "top_k": 3},
    ExplainOptions: {"images": [{"b64": "iVBORw0KGgo=", "class_id": [281]}], "overlay": True},
    InspectOptions: {"images": [{"b64": "iVBORw0KGgo=", "class_id": [281]}], "layer": ["bn2"]},
}
HIDDEN_MODELS: Final[tuple[type[BaseModel], ...]] = (*(model for pair in REQUEST_MODELS.values() for model in pair), Problem)
BINARY: Final = {"schema": {"type": "string", "format": "binary"}}

ANSWER_HEADERS: Final = {
    "X-Request-ID": "The request's id: the one sent, or a new one.",
    "Server-Timing": "Milliseconds of decode, queue, infer, evaluate and render.",
    "X-Batch-Size": "Images in the network's pass that answered this request; 0 of a hit.",
    "X-Cache": "`miss`: the network was asked; `coalesced`: for another request at the same time; `hit`: before. Of several "
    "images the costliest. Absent where nothing is cached (/inspect, `cache_entries` 0). `Cache-Control: no-cache` in a "
    "request asks the network anew, `no-store` caches nothing either.",
    "Vary": "`Accept`.",
}
IMAGE_HEADERS: Final = {
    "X-Explain-Class-Id": "Image and array answers: the class explained; of several a list with commas.",
    "X-Explain-Class-Name": "Its label, percent-encoded.",
    "X-Explain-Probability": "Its softmax probability.",
    "X-Explain-Method": "The method.",
    "X-Explain-Layer": "The layers, percent-encoded, with commas.",
    "X-Explain-Model": "The model.",
}

PROBLEM_BODY: Final = {"application/problem+json": {"schema": {"$ref": REF.format(model="Problem")}}}
OTHER: Final[dict[int | str, dict[str, Any]]] = {"default": {"description": "Another problem.", "content": PROBLEM_BODY}}


def request_documentation(
    options: type[PredictOptions] | type[ExplainOptions] | type[InspectOptions], *, model_in_path: bool = False
) -> dict[str, Any]:
    """`openapi_extra=` of a route: its options as query parameters, and the forms of its body.

    Args:
        options: of the route.
        model_in_path: whether the path names the model, so that there is no option for it.
    """
    form, document = REQUEST_MODELS[options]
    return {
        "parameters": [
            _query_parameter(name, described)
            for name, described in options.model_json_schema(ref_template=REF)["properties"].items()
            if not (model_in_path and name == "model")
        ],
        "requestBody": {
            "required": True,
            "description": "The image in one of three forms; options go with each of them, or in the query string. "
            "An option in the body replaces the same option of the query string.",
            "content": {
                "multipart/form-data": {
                    "schema": {"$ref": REF.format(model=form.__name__)},
                    "encoding": {
                        name: {"style": "form", "explode": True} for name in sorted(REPEATABLE & options.model_fields.keys())
                    },
                },
                "image/*": BINARY,
                "application/octet-stream": BINARY,
                "application/json": {
                    "schema": {"$ref": REF.format(model=document.__name__)},
                    "example": EXAMPLES[options],
                },
            },
        },
    }


def _query_parameter(name: str, described: dict[str, Any]) -> dict[str, Any]:
    schema = {key: value for key, value in described.items() if key not in {"title", "description"}}
    kinds = [kind for kind in schema.pop("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) == 1:
        schema |= kinds[0]
    elif kinds:
        schema["anyOf"] = kinds
    if schema.get("default") in (None, []):
        schema.pop("default", None)
    return {"name": name, "in": "query", "required": False, "description": described["description"], "schema": schema}


def problems(*errors: type[CamserveError]) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route for the errors it can answer with, grouped by status."""
    codes: dict[HTTPStatus, list[str]] = {}
    for error in errors:
        codes.setdefault(error.status, []).append(error.code)
    return {
        int(status): {
            "description": ", ".join(f"`{code}`" for code in dict.fromkeys(found)),
            "content": PROBLEM_BODY,
            **({"headers": _headers({"Retry-After": "Seconds."})} if status in (429, 503) else {}),
        }
        for status, found in sorted(codes.items())
    }


def answers(model: type) -> dict[int | str, dict[str, Any]]:
    """`responses=` for a plain JSON 200."""
    return {200: {"model": model}}


def success(model: type, *, images: bool = False, arrays: bool = True) -> dict[int | str, dict[str, Any]]:
    """`responses=` for the 200 of /predict, /explain and /inspect, with its headers."""
    response: dict[str, Any] = {"model": model, "description": "Everything, as JSON."}
    headers = dict(ANSWER_HEADERS)
    if images:
        response["description"] = (
            f"Everything as JSON{', ' if arrays else ' or '}one image{', or one array' * arrays}, as Accept or `format` ask."
        )
        response["content"] = {
            kind: BINARY for name, kind in MEDIA_TYPES.items() if name != "json" and (arrays or name != "npy")
        }
        headers |= IMAGE_HEADERS
    response["headers"] = _headers(headers)
    return {200: response}


def install(app: FastAPI) -> None:
    """Makes `app.openapi()` complete: adds the models that no route's signature mentions."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
            )
            _, hidden = models_json_schema([(model, "validation") for model in HIDDEN_MODELS], ref_template=REF)
            schema["components"]["schemas"] |= hidden["$defs"]
            schema["components"]["schemas"] = dict(sorted(schema["components"]["schemas"].items()))
            schema["components"]["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            }
            # The empty object: the service is open unless the operator sets keys.
            schema["security"] = [{}, {"bearer": []}, {"apiKey": []}]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to extend the schema


def _headers(described: dict[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in described.items()}
