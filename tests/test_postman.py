"""The Postman collection is what the app's schema says, and newman's run of it against the service is green."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.settings import Settings
from tests import postman_collection
from tests.conftest import Running
from tests.postman_collection import COLLECTION, ROOT, TOOLS

STALE = "run `make postman`"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return create_app(Settings()).openapi()


@pytest.fixture(scope="module")
def collection() -> dict[str, Any]:
    document = json.loads(COLLECTION.read_text())
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="module")
def tools() -> Path:
    """The folder of the converter and newman."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    try:
        postman_collection.install()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"npm could not install the converter: {error.stderr.strip().splitlines()[0]}")
    return TOOLS / "node_modules" / ".bin"


def test_it_has_every_route_of_the_schema_and_no_other(schema: dict[str, Any], collection: dict[str, Any]) -> None:
    operations = postman_collection.operations_of_collection(collection)
    assert operations == postman_collection.operations_of_schema(schema), STALE
    assert {"POST /explain", "POST /models/{model}/predict", "GET /readyz"} <= operations
    assert not any("/admin/" in operation for operation in operations)


def test_it_has_every_option_and_all_are_off(schema: dict[str, Any], collection: dict[str, Any]) -> None:
    for request in postman_collection.requests(collection):
        path = request["url"]["raw"].removeprefix("{{baseUrl}}").replace("{{", "{").replace("}}", "}")
        operation = schema["paths"][path][request["method"].lower()]
        options = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
        assert [one["key"] for one in request["url"].get("query", ())] == options, STALE
        assert all(one["disabled"] for one in request["url"].get("query", ()))


def test_every_image_it_sends_is_in_the_checkout(collection: dict[str, Any]) -> None:
    bodies = [request["body"] for request in postman_collection.requests(collection) if "body" in request]
    files = [part["src"] for body in bodies for part in body.get("formdata", ())]
    files += [body["file"]["src"] for body in bodies if body["mode"] == "file"]
    assert files
    assert all((ROOT / file).is_file() for file in files)


@pytest.mark.slow
def test_the_converter_writes_what_is_committed(schema: dict[str, Any], collection: dict[str, Any], tools: Path) -> None:
    assert postman_collection.render(schema) == collection, STALE


@pytest.mark.slow
def test_every_form_of_body_and_of_path_is_understood(schema: dict[str, Any], tools: Path) -> None:
    explain = schema["paths"]["/models/{model}/explain"]["post"]
    model = [one for one in explain["parameters"] if one["in"] == "path"]
    binary = {"image/*": {"schema": {"type": "string", "format": "binary"}}}
    example = {"instances": [{"image": {"b64": "iVBORw0KGgoAAAANSUhEUg=="}}]}
    forms = {
        "/m/{model}:explain": {"application/json": {"schema": {"type": "object"}, "example": example}},
        "/m/{model}/versions/{version}/infer": binary,
    }
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
    paths = {
        path: {"post": {**explain, "parameters": [*model, version][: path.count("{")], "requestBody": {"content": content}}}
        for path, content in forms.items()
    }
    rendered = postman_collection.render({**schema, "paths": paths})
    assert postman_collection.operations_of_collection(rendered) == {f"POST {path}" for path in paths}
    by_path = {request["url"]["raw"]: request for request in postman_collection.requests(rendered)}
    instances = json.loads(by_path["{{baseUrl}}/m/{{model}}:explain"]["body"]["raw"])
    assert instances == {"instances": [{"image": {"b64": "{{image_b64}}"}}]}
    assert by_path["{{baseUrl}}/m/{{model}}/versions/{{version}}/infer"]["body"]["mode"] == "file"


@pytest.mark.slow
def test_newman_is_green(server: Running, collection: dict[str, Any], tools: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command: list[str | Path] = [
        tools / "newman",
        "run",
        COLLECTION,
        "--env-var",
        f"baseUrl={server.url}",
        "--reporters",
        "json",
    ]
    newman = subprocess.run(
        [*command, "--reporter-json-export", report], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    run = json.loads(report.read_text())["run"]
    failures = [(failure["source"]["name"], failure["error"]["message"]) for failure in run["failures"]]
    assert not failures
    assert newman.returncode == 0, newman.stderr
    assert run["stats"]["requests"]["total"] == len(list(postman_collection.requests(collection)))
    assert run["stats"]["assertions"]["total"] >= run["stats"]["requests"]["total"]
