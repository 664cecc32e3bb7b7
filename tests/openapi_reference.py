"""Writes openapi.md from the app's OpenAPI schema: `python -m tests.openapi_reference > openapi.md`.

A test holds the two together. This file knows OpenAPI and Markdown, and one curl for each route; everything else comes from the
schema.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from service.api.compat.exchange import PROTOCOL_TAG

Json = Mapping[str, Any]

IMAGE: Final = "curl -F image=@cat.jpg"
BASE64: Final = "$(base64 -w0 cat.jpg)"
INSTANCE: Final = f'{{\\"instances\\": [{{\\"image\\": {{\\"b64\\": \\"{BASE64}\\"}}}}]}}'
TENSOR: Final = (
    f'{{\\"inputs\\": [{{\\"name\\": \\"image\\", \\"datatype\\": \\"BYTES\\", \\"shape\\": [1], '
    f'\\"data\\": [\\"{BASE64}\\"]}}]}}'
)
CURL: Final = {
    "POST /predict": f"{IMAGE} localhost:8000/predict",
    "POST /models/{model}/predict": ("curl --data-binary @cat.jpg 'localhost:8000/models/efficientnet_lite0/predict?top_k=3'"),
    "POST /explain": (
        f"{IMAGE} -H 'Accept: image/png' localhost:8000/explain -o overlay.png\n"
        f"{IMAGE} -F class_id=281,285 -F overlay_type=panel -F scale=shared -F format=png localhost:8000/explain -o sheet.png\n"
        """curl -H 'Content-Type: application/json' -d "{\\"image\\": \\"$(base64 -w0 cat.jpg)\\"}" localhost:8000/explain"""
    ),
    "POST /models/{model}/explain": (
        f"{IMAGE} -F class_name='tabby' -F versus='tiger cat' -F overlay=true localhost:8000/models/efficientnet_lite0/explain"
    ),
    "POST /inspect": (
        f"{IMAGE} -F layer=blocks.2 -F layer=bn2 localhost:8000/inspect\n"
        f"{IMAGE} -F channels=16 -F format=png localhost:8000/inspect -o layers.png"
    ),
    "POST /models/{model}/inspect": f"{IMAGE} -F class_name='tabby' localhost:8000/models/efficientnet_lite0/inspect",
    "GET /models": "curl localhost:8000/models",
    "GET /models/{model}": "curl localhost:8000/models/efficientnet_lite0",
    "GET /models/{model}/classes": (
        "curl -D - localhost:8000/models/efficientnet_lite0/classes -o classes.json\n"
        """curl -H 'If-None-Match: "<ETag of the answer before>"' localhost:8000/models/efficientnet_lite0/classes"""
    ),
    "GET /methods": "curl localhost:8000/methods",
    "POST /admin/models/{model}/load": "curl -X POST -H 'X-API-Key: <admin key>' localhost:8000/admin/models/resnet50/load",
    "POST /admin/models/{model}/unload": "curl -X POST -H 'X-API-Key: <admin key>' localhost:8000/admin/models/resnet50/unload",
    "GET /": "curl localhost:8000/",
    "GET /livez": "curl localhost:8000/livez",
    "GET /readyz": "curl --fail localhost:8000/readyz",
    "GET /metrics": "curl localhost:8000/metrics",
    "GET /v1/models": "curl localhost:8000/v1/models",
    "GET /v1/models/{model}": "curl localhost:8000/v1/models/efficientnet_lite0",
    "POST /v1/models/{model}:predict": (
        f"curl -d '{INSTANCE}' localhost:8000/v1/models/efficientnet_lite0:predict".replace("'", '"')
    ),
    "POST /v1/models/{model}:explain": (
        f"curl -d '{INSTANCE}' localhost:8000/v1/models/efficientnet_lite0:explain".replace("'", '"')
    ),
    "GET /v2": "curl localhost:8000/v2",
    "GET /v2/health/live": "curl localhost:8000/v2/health/live",
    "GET /v2/health/ready": "curl --fail localhost:8000/v2/health/ready",
    "GET /v2/models/{model}": "curl localhost:8000/v2/models/efficientnet_lite0",
    "GET /v2/models/{model}/ready": "curl --fail localhost:8000/v2/models/efficientnet_lite0/ready",
    "GET /v2/models/{model}/config": "curl localhost:8000/v2/models/efficientnet_lite0/config",
    "POST /v2/models/{model}/infer": (
        f"curl -d '{TENSOR}' localhost:8000/v2/models/efficientnet_lite0/infer".replace("'", '"')
    ),
    "POST /v2/repository/index": "curl -X POST localhost:8000/v2/repository/index",
    "POST /v2/repository/models/{model}/load": (
        "curl -X POST -H 'X-API-Key: <admin key>' localhost:8000/v2/repository/models/resnet50/load"
    ),
    "POST /v2/repository/models/{model}/unload": (
        "curl -X POST -H 'X-API-Key: <admin key>' localhost:8000/v2/repository/models/resnet50/unload"
    ),
    "POST /predictions/{model}": "curl -F data=@cat.jpg localhost:8000/predictions/efficientnet_lite0",
    "PUT /predictions/{model}": "curl -T cat.jpg localhost:8000/predictions/efficientnet_lite0",
    "POST /explanations/{model}": "curl -F data=@cat.jpg -F target=281 localhost:8000/explanations/efficientnet_lite0",
    "PUT /explanations/{model}": "curl -T cat.jpg localhost:8000/explanations/efficientnet_lite0",
    "POST /invocations": (
        "curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' -H 'Accept: image/png' \\\n"
        "  -H 'X-Amzn-SageMaker-Custom-Attributes: method=gradcam,class_id=281' localhost:8000/invocations -o overlay.png"
    ),
}


def render(schema: Json) -> str:
    """The reference as Markdown.

    Args:
        schema: an OpenAPI 3.1 document.

    Raises:
        KeyError: a route has no curl here.
        ValueError: a route with the model in its path has other options than the one without.
        ValueError: a route with the model in its path has other options than the one without.
    """
    return "\n".join(_lines(schema)) + "\n"


def _lines(schema: Json) -> Iterator[str]:
    yield f"# {schema['info']['title']} {schema['info']['version']}: HTTP reference"
    yield ""
    yield "Written from the app's OpenAPI schema by `make openapi`; do not edit it by hand."
    yield ""
    yield from schema["info"]["description"].strip().splitlines()
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    }
    others = {route: operation for route, operation in operations.items() if PROTOCOL_TAG in operation["tags"]}
    own = {route: operation for route, operation in operations.items() if route not in others}
    yield ""
    yield from _index(own)
    yield ""
    yield "With API keys set, every route but the probes wants `Authorization: Bearer <key>` or `X-API-Key: <key>`."
    yield ""
    yield "Options go in the query string, as form fields or in the JSON body alike. An option in the body replaces the query"
    yield "string's; an empty one counts as not given; an unknown one is a 422 that names it."
    for route, operation in own.items():
        yield from _route("##", route, operation, own)
    yield from ("", f"## {PROTOCOL_TAG.capitalize()}", "")
    yield "Their clients work unchanged; what answers is the same. Setting `protocols` leaves out those that are not wanted."
    yield "Problems are those of the other routes, as `application/json`. Addresses that Vertex AI gives to a container are not"
    yield "listed."
    yield ""
    yield from _index(others)
    for route, operation in others.items():
        yield from _route("###", route, operation, others)
    yield from ("", "## Shapes")
    for name, shape in schema["components"]["schemas"].items():
        yield from ("", f"### {name}", "")
        if "description" in shape:
            yield from (*shape["description"].splitlines(), "")
        required = set(shape.get("required", ()))
        rows = (
            (f"`{field}`", _type(kind), "yes" if field in required else "", kind.get("description", ""))
            for field, kind in shape["properties"].items()
        )
        yield from _table(("field", "type", "required", "meaning"), rows)


def _index(operations: Mapping[str, Json]) -> Iterator[str]:
    yield from _table(("route", "what"), ((_link(route), operation["summary"]) for route, operation in operations.items()))


def _route(level: str, route: str, operation: Json, operations: Mapping[str, Json]) -> Iterator[str]:
    yield from ("", f"{level} {route}", "", *operation["description"].splitlines(), "")
    yield from ("```sh", *CURL[route].splitlines(), "```")
    in_path, options = (_parameters(operation, place) for place in ("path", "query"))
    if in_path:
        yield ""
        yield from _parameter_table("name", in_path)
    if options:
        yield ""
        yield from _options(route, options, operations)
    if "requestBody" in operation:
        body = operation["requestBody"]
        yield from ("", body["description"], "")
        yield from _table(
            ("Content-Type", "body"),
            ((f"`{kind}`", _type(content["schema"])) for kind, content in body["content"].items()),
        )
        example = body["content"].get("application/json", {}).get("example")
        if example is not None:
            yield from ("", "```json", json.dumps(example), "```")
    yield ""
    yield from _table(("status", "answer", "body"), (_response(*response) for response in operation["responses"].items()))
    headers = operation["responses"].get("200", {}).get("headers", {})
    if headers:
        yield ""
        yield from _table(("header", "meaning"), ((f"`{name}`", header["description"]) for name, header in headers.items()))


def _options(route: str, options: Sequence[Json], operations: Mapping[str, Json]) -> Iterator[str]:
    """A table; where the path names the model one sentence, for the route without it has the table."""
    twin = route.replace("/models/{model}", "")
    if twin == route:
        yield from _parameter_table("option", options)
        return
    if options != [option for option in _parameters(operations[twin], "query") if option["name"] != "model"]:
        raise ValueError(f"{route} has other options than {twin}")
    yield f"Takes every option of [{twin}](#{_anchor(twin)}) but `model`."


def _response(status: str, response: Json) -> tuple[str, str, str]:
    kinds = ", ".join(
        f"`{kind}`: {_type(content['schema'])}" if "$ref" in content["schema"] else f"`{kind}`"
        for kind, content in response.get("content", {}).items()
    )
    return status, response["description"], kinds


def _parameters(operation: Json, place: str) -> list[Json]:
    return [parameter for parameter in operation.get("parameters", ()) if parameter["in"] == place]


def _parameter_table(head: str, parameters: Iterable[Json]) -> Iterator[str]:
    yield from _table(
        (head, "type", "default", "meaning"),
        ((f"`{one['name']}`", _type(one["schema"]), _default(one["schema"]), one.get("description", "")) for one in parameters),
    )


def _default(kind: Json) -> str:
    return f"`{json.dumps(kind['default'])}`" if kind.get("default") not in (None, []) else ""


def _type(kind: Json) -> str:
    """A JSON schema in a few words."""
    match kind:
        case {"$ref": ref}:
            name = ref.rpartition("/")[2]
            words = f"[{name}](#{name.lower()})"
        case {"anyOf": kinds}:
            words = " or ".join(dict.fromkeys(_type(one) for one in kinds))
        case {"enum": values}:
            words = ", ".join(f"`{value}`" for value in values)
        case {"const": value}:
            words = f"`{value}`"
        case {"prefixItems": items}:
            words = f"{len(items)} of {_type(items[0])}"
        case {"type": "array"}:
            words = f"list of {_type(kind['items'])}" if kind.get("items") else "list"
        case {"format": "binary"}:
            words = "bytes"
        case _:
            words = str(kind.get("type", "any")) + _bounds(kind)
    return words


def _bounds(kind: Json) -> str:
    low, high = kind.get("minimum"), kind.get("maximum")
    if low is not None and high is not None:
        return f" {low:g} to {high:g}"
    return f" from {low:g}" if low is not None else ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in row)} |"


def _link(route: str) -> str:
    return f"[`{route}`](#{_anchor(route)})"


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return "".join(letter for letter in heading.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")


def main() -> None:
    """Prints the reference of the app."""
    from service.app import create_app  # the renderer itself needs no network

    sys.stdout.write(render(create_app().openapi()))


if __name__ == "__main__":
    main()
