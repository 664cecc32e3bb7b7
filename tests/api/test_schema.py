"""What the routes really answer is what the service says of them: the whole application, over a small network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from service.api.compat.exchange import PROTOCOL_TAG
from service.api.schemas import Problem, Welcome
from service.explain.results import (
    ClassList,
    ExplainResponse,
    FaithfulnessScores,
    Health,
    InspectResponse,
    MethodCheck,
    MethodList,
    ModelCheck,
    ModelInfo,
    ModelList,
    PredictResponse,
)
from tests import image_files as make
from tests.api.stand_ins import ADMIN_KEY
from tests.explain.small_service import small_network

pytestmark = pytest.mark.anyio

IMAGE = make.save(make.scene(96, 48), "PNG")
# Every route that answers in JSON: the type of its answer, and options that fill each of that type's fields.
ANSWERS: dict[str, tuple[type, str]] = {
    "GET /": (Welcome, ""),
    "GET /livez": (Health, ""),
    "GET /readyz": (Health, ""),
    "GET /models": (ModelList, ""),
    "GET /models/{model}": (ModelInfo, ""),
    "GET /models/{model}/classes": (ClassList, ""),
    "GET /methods": (MethodList, ""),
    "POST /predict": (PredictResponse, "top_k=3"),
    "POST /models/{model}/predict": (PredictResponse, ""),
    "POST /explain": (ExplainResponse, "class_id=1,0&versus=2&overlay=true&evaluate=true"),
    "POST /models/{model}/explain": (ExplainResponse, "heatmap=list"),
    "POST /inspect": (InspectResponse, "class_id=1&versus=2"),
    "POST /models/{model}/inspect": (InspectResponse, ""),
    "POST /admin/models/{model}/load": (ModelInfo, ""),
    "POST /admin/models/{model}/unload": (ModelInfo, ""),  # the last, for without a model there is little to ask
}
# Fields that only some answers have; all others are always there.
SOMETIMES = {"Problem": {"estimate_s"}}
REQUEST_COMPONENTS = {"ExplainForm", "ExplainJson", "InspectForm", "InspectJson", "JsonImage", "PredictForm", "PredictJson"}


async def ask(client: httpx.AsyncClient, route: str, query: str = "") -> httpx.Response:
    method, path = route.replace("{model}", "tiny").split()
    sends_image = method == "POST" and not path.startswith("/admin/")
    return await client.request(
        method, path, params=query, content=IMAGE if sends_image else None, headers={"X-API-Key": ADMIN_KEY}
    )


def components_of(value: Any, schema: dict[str, Any], components: dict[str, Any]) -> Iterator[str]:
    """Names of the components that a JSON value consists of, each of which must have the fields of its component."""
    match schema:
        case {"$ref": reference}:
            name = reference.rpartition("/")[2]
            fields = components[name]["properties"]
            assert value.keys() - SOMETIMES.get(name, set()) == set(components[name]["required"]), name
            assert fields.keys() - SOMETIMES.get(name, set()) == set(components[name]["required"]), name
            yield name
            for field in value:
                yield from components_of(value[field], fields[field], components)
        case {"anyOf": kinds}:
            (kind,) = (kind for kind in kinds if is_of_kind(value, kind))
            yield from components_of(value, kind, components)
        case {"items": kind}:
            for item in value:
                yield from components_of(item, kind, components)


def is_of_kind(value: Any, kind: dict[str, Any]) -> bool:
    if "$ref" in kind:
        return isinstance(value, dict)
    types: dict[str, type] = {"null": type(None), "array": list, "string": str, "integer": int, "number": float}
    return isinstance(value, types[kind["type"]])


def keep_check(folder: Path) -> None:
    """As `camserve check --keep` does, so that the description of the model has it."""
    scores = FaithfulnessScores(deletion=0.1, insertion=0.5, average_drop=0.2, road=0.1)
    check = ModelCheck(
        camserve="0",
        digest=small_network().digest,
        layer=("block",),
        images=1,
        methods=(MethodCheck(method="gradcam", ms=1.0, sanity=0.5, verdict="depends on the class", faithfulness=scores),),
        random=scores,
        center=None,
    )
    (folder / "tiny.check.json").write_bytes(TypeAdapter(ModelCheck).dump_json(check))


async def test_every_answer_is_of_its_type_and_has_the_fields_of_its_schema(whole: httpx.AsyncClient, tmp_path: Path) -> None:
    keep_check(tmp_path)
    document = (await whole.get("/openapi.json")).json()
    components, met = document["components"]["schemas"], set()
    for route, (answer, query) in ANSWERS.items():
        response = await ask(whole, route, query)
        assert response.status_code == 200, response.text
        TypeAdapter(answer).validate_json(response.content, strict=True)
        method, path = route.split()
        documented = document["paths"][path][method.lower()]["responses"]["200"]["content"]["application/json"]["schema"]
        assert documented == {"$ref": f"#/components/schemas/{answer.__name__}"}
        met |= set(components_of(response.json(), documented, components))

    problem = await ask(whole, "POST /explain", "alpha=2")
    TypeAdapter(Problem).validate_json(problem.content, strict=True)
    met |= set(components_of(problem.json(), {"$ref": "#/components/schemas/Problem"}, components))
    assert met == components.keys() - REQUEST_COMPONENTS  # nothing is documented that was not seen


async def test_every_route_that_answers_in_json_is_among_them(whole: httpx.AsyncClient) -> None:
    documented = {
        f"{method.upper()} {path}"
        for path, methods in (await whole.get("/openapi.json")).json()["paths"].items()
        for method, operation in methods.items()
        if PROTOCOL_TAG not in operation["tags"] and "application/json" in operation["responses"]["200"]["content"]
    }
    assert documented == ANSWERS.keys()
