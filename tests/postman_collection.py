"""Writes the Postman collection from the app's OpenAPI schema: `python -m tests.postman_collection`, or `make postman`.

openapi-to-postmanv2 (npm) converts. What it cannot know is set here: an image in each body, options off and without invented
values, what an answer must be. The same schema gives the same text; a test holds the two together.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

ROOT: Final = Path(__file__).resolve().parent.parent
COLLECTION: Final = ROOT / "deploy" / "camserve.postman_collection.json"
TOOLS: Final = ROOT / "build" / "postman"
PACKAGES: Final = {"openapi-to-postmanv2": "6.3.3", "newman": "6.2.2"}
CONVERTER_OPTIONS: Final = "folderStrategy=Tags,parametersResolution=Example,preferredRequestBodyType=first-listed"

PHOTOGRAPHS: Final = ROOT / "service" / "engine" / "runtimes" / "calibration"
# Path parameters, by name.
EXAMPLES: Final = {"model": "efficientnet_lite0", "version": "1"}
# base64 of the first bytes of a PNG or a JPEG: how an image begins in an example of the schema.
IMAGE_IN_JSON: Final = re.compile(r"(?:iVBORw0KGgo|/9j/)[A-Za-z0-9+/]*=*")
METHODS: Final = frozenset({"get", "put", "post", "delete", "patch", "head", "options"})
TESTS: Final = (
    "pm.test('is answered with success', () => pm.expect(pm.response.code).to.equal(200));",
    "if ((pm.response.headers.get('Content-Type') || '').startsWith('application/json') && pm.response.text())",
    "    pm.test('is JSON', () => pm.response.json());",
)


def install() -> None:
    """Installs the converter and newman under build/, unless they are there.

    Raises:
        subprocess.CalledProcessError: npm could not; its `stderr` says why.
        FileNotFoundError: there is no npm.
    """
    if all(_installed_version(name) == version for name, version in PACKAGES.items()):
        return
    quiet = (
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
        "--fetch-retries=1",
        "--fetch-retry-mintimeout=1000",
    )
    packages = [f"{name}@{version}" for name, version in PACKAGES.items()]
    subprocess.run(["npm", "install", "--prefix", TOOLS, *quiet, *packages], check=True, capture_output=True, text=True)


def render(schema: Mapping[str, Any]) -> Json:
    """The collection (Postman 2.1), the same for the same schema. Needs what `install` installs.

    Args:
        schema: an OpenAPI 3.1 document.

    Raises:
        KeyError: a path has a parameter without an example here.
    """
    offered = without_operators(schema)
    folders = [
        {"name": folder["name"], "item": [_request(item, offered) for item in folder["item"]]}
        for folder in _convert(offered)["item"]
    ]
    return {
        "info": {
            "name": schema["info"]["title"],
            "description": schema["info"]["description"],
            "schema": "https://schema.getpostman.com/json/collection/v2.1.0/collection.json",
        },
        "variable": [{"key": key, "value": value} for key, value in _variables().items()],
        "auth": {
            "type": "apikey",
            "apikey": [
                {"key": "key", "value": "X-API-Key"},
                {"key": "value", "value": "{{api_key}}"},
                {"key": "in", "value": "header"},
            ],
        },
        "event": [{"listen": "test", "script": {"type": "text/javascript", "exec": list(TESTS)}}],
        "item": folders,
    }


def without_operators(schema: Mapping[str, Any]) -> Json:
    """The schema without routes that load and unload models, and without the bodies of answers, which the converter invents."""
    offered: Json = copy.deepcopy(dict(schema))
    for path, route in offered["paths"].items():
        if path.rpartition("/")[2] in {"load", "unload"}:
            route.clear()
        for method, operation in route.items():
            if method in METHODS:
                operation["responses"] = {"200": {"description": "Success."}}
    offered["paths"] = {path: route for path, route in offered["paths"].items() if route}
    return offered


def operations_of_schema(schema: Mapping[str, Any]) -> set[str]:
    """`POST /models/{model}/explain` and so on: the operations that the collection must have."""
    paths = without_operators(schema)["paths"]
    return {f"{method.upper()} {path}" for path, route in paths.items() for method in route if method in METHODS}


def operations_of_collection(collection: Mapping[str, Any]) -> set[str]:
    """The operations that a collection has, in the same words."""
    return {f"{request['method']} {_template(request['url']['path'])}" for request in requests(collection)}


def requests(collection: Mapping[str, Any]) -> Iterator[Json]:
    """Every request of a collection, folder by folder."""
    for folder in collection["item"]:
        for item in folder["item"]:
            yield item["request"]


def _installed_version(package: str) -> str | None:
    described = TOOLS / "node_modules" / package / "package.json"
    return json.loads(described.read_text())["version"] if described.exists() else None


def _convert(schema: Json) -> Json:
    written, converted = TOOLS / "openapi.json", TOOLS / "converted.json"
    written.write_text(json.dumps(schema))
    converter = TOOLS / "node_modules/.bin/openapi2postmanv2"
    subprocess.run(
        [converter, "-s", written, "-o", converted, "-O", CONVERTER_OPTIONS], check=True, capture_output=True, text=True
    )
    collection: Json = json.loads(converted.read_text())
    return collection


def _variables() -> dict[str, str]:
    image = base64.b64encode((PHOTOGRAPHS / "rocket.jpg").read_bytes()).decode()
    return {"baseUrl": "http://localhost:8000", "api_key": "", **EXAMPLES, "image_b64": image}


def _template(path: list[str]) -> str:
    """`["models", ":model"]` and `["models", "{{model}}"]` -> `/models/{model}`."""
    return "/" + "/".join(re.sub(r"^:(\w+)$|\{\{(\w+)\}\}", lambda match: f"{{{match[1] or match[2]}}}", part) for part in path)


def _request(item: Json, schema: Json) -> Json:
    request = item["request"]
    path = _template(request["url"]["path"])
    operation = schema["paths"][path][request["method"].lower()]
    if unknown := set(re.findall(r"\{(\w+)\}", path)) - EXAMPLES.keys():
        raise KeyError(f"{path}: EXAMPLES has no value of {', '.join(sorted(unknown))}")
    kept: Json = {
        "method": request["method"],
        "url": _url(path, [one for one in operation.get("parameters", ()) if one["in"] == "query"]),
    }
    if "description" in operation:
        kept["description"] = operation["description"]
    if "requestBody" in operation:
        kind, content = next(iter(operation["requestBody"]["content"].items()))  # the converter too takes the first
        if kind != "multipart/form-data":  # Postman writes that header itself, with the boundary
            kept["header"] = [{"key": "Content-Type", "value": kind.replace("image/*", "image/jpeg")}]
        kept["body"] = _body(request["body"], _resolved(content["schema"], schema))
    return {"name": operation["summary"], "request": kept}


def _url(path: str, options: list[Json]) -> Json:
    """Every option is there to be switched on; a value stands where the schema knows one."""
    parts = path.replace("{", "{{").replace("}", "}}").removeprefix("/").split("/")
    url: Json = {"raw": "{{baseUrl}}/" + "/".join(parts), "host": ["{{baseUrl}}"], "path": parts}
    if options:
        url["query"] = [
            {
                "key": option["name"],
                "value": str(option["schema"].get("default", option["schema"].get("enum", [""])[0])),
                "description": option.get("description", ""),
                "disabled": not option.get("required", False),
            }
            for option in options
        ]
    return url


def _body(body: Json, kind: Json) -> Json:
    photograph = str((PHOTOGRAPHS / "chelsea.jpg").relative_to(ROOT))
    if kind.get("format") == "binary":
        return {"mode": "file", "file": {"src": photograph}}
    if body["mode"] == "formdata":
        files = [name for name, part in kind["properties"].items() if part.get("items", part).get("format") == "binary"]
        return {"mode": "formdata", "formdata": [{"key": files[0], "type": "file", "src": photograph}]}
    return {**body, "raw": IMAGE_IN_JSON.sub("{{image_b64}}", body["raw"])}


def _resolved(kind: Json, schema: Json) -> Json:
    found: Json = schema["components"]["schemas"][kind["$ref"].rpartition("/")[2]] if "$ref" in kind else kind
    return found


def main() -> None:
    """Writes the collection of the app."""
    from service.app import create_app  # the renderer itself needs no network

    install()
    COLLECTION.write_text(json.dumps(render(create_app().openapi()), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
