"""openapi.md is what the app says of itself."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from service.app import create_app
from service.errors import CamserveError
from service.explain.options import ExplainOptions, InspectOptions, PredictOptions
from service.settings import Settings
from tests.openapi_reference import CURL, render

COMMITTED = Path(__file__).resolve().parent.parent / "openapi.md"


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings())


def test_the_committed_reference_is_current(app: FastAPI) -> None:
    assert COMMITTED.read_text() == render(app.openapi()), "run `make openapi` and look at the difference"


def test_it_depends_on_no_setting(app: FastAPI) -> None:
    other = create_app(Settings(models=("resnet50",), max_body_bytes=1024, api_keys="a" * 32))
    assert other.openapi() == app.openapi()


def test_every_route_has_its_curl_and_no_other(app: FastAPI) -> None:
    routes = {f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods}
    assert set(CURL) == routes


@pytest.mark.parametrize(
    ("name", "options"), [("predict", PredictOptions), ("explain", ExplainOptions), ("inspect", InspectOptions)]
)
def test_every_option_is_told_where_it_can_be_given(name: str, options: type[BaseModel]) -> None:
    table = section(f"POST /{name}").partition("| option | type | default | meaning |\n")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(options.model_fields)
    twin = section(f"POST /models/{{model}}/{name}")
    assert f"Takes every option of [POST /{name}](#post-{name}) but `model`." in twin
    assert "| option |" not in twin


def section(route: str) -> str:
    return COMMITTED.read_text().partition(f"\n## {route}\n")[2].partition("\n## ")[0]


def test_the_rules_of_options_stand_once() -> None:
    assert " ".join(COMMITTED.read_text().split()).count("an empty one counts as not given; an unknown one is a 422") == 1


def test_routes_that_differ_in_their_options_are_not_taken_for_twins(app: FastAPI) -> None:
    document = copy.deepcopy(app.openapi())
    document["paths"]["/models/{model}/explain"]["post"]["parameters"].pop()
    with pytest.raises(ValueError, match="has other options than POST /explain"):
        render(document)


def test_every_error_code_is_told() -> None:
    text = COMMITTED.read_text()

    def below(error: type[CamserveError]) -> set[str]:
        return {error.code}.union(*(below(child) for child in error.__subclasses__()))

    # Those of the framework answer where there is no route.
    for code in below(CamserveError) - {"not_found", "method_not_allowed"}:
        assert f"`{code}`" in text


def test_every_form_is_documented(app: FastAPI) -> None:
    names = ("explain", "predict", "inspect")
    for path in (*(f"/{name}" for name in names), *(f"/models/{{model}}/{name}" for name in names)):
        operation = app.openapi()["paths"][path]["post"]
        forms = {"multipart/form-data", "image/*", "application/octet-stream", "application/json"}
        assert set(operation["requestBody"]["content"]) == forms
        for status, response in operation["responses"].items():
            assert status == "200" or set(response["content"]) == {"application/problem+json"}
