"""openapi.md is what the app says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI

from service.app import create_app
from service.errors import CamserveError
from service.explain.options import Options
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


def test_every_option_and_every_error_code_is_told() -> None:
    text = COMMITTED.read_text()
    for name in Options.model_fields:
        assert f"| `{name}` |" in text

    def below(error: type[CamserveError]) -> set[str]:
        return {error.code}.union(*(below(child) for child in error.__subclasses__()))

    # Those of the framework answer where there is no route.
    for code in below(CamserveError) - {"not_found", "method_not_allowed"}:
        assert f"`{code}`" in text


def test_every_form_is_documented(app: FastAPI) -> None:
    for path in ("/explain", "/predict", "/models/{model}/explain", "/models/{model}/predict"):
        operation = app.openapi()["paths"][path]["post"]
        forms = {"multipart/form-data", "image/*", "application/octet-stream", "application/json"}
        assert set(operation["requestBody"]["content"]) == forms
        for status, response in operation["responses"].items():
            assert status == "200" or set(response["content"]) == {"application/problem+json"}
