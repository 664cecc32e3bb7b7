"""Requests made from the service's own schema, right ones and wrong ones: nothing is a fault of ours, every answer documented.

Examples are derived from the tests themselves, so that every run sends the same requests.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, get_args

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.specs.openapi.checks import positive_data_acceptance

from service.api.schemas import Problem
from service.app import create_app
from service.settings import Settings
from service.vocabulary import (
    MEDIA_TYPES,
    ColorMap,
    Delivery,
    Fit,
    HeatmapEncoding,
    MapInterpolation,
    OverlayType,
    Polarity,
    Scale,
)
from tests import image_files as make
from tests.conftest import Running

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
IMAGES = st.sampled_from([make.save(make.scene(), kind) for kind in FORMATS])

for kind in ("image/jpeg", "image/png", "image/webp", "image/gif", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, IMAGES)
schemathesis.openapi.format("binary", IMAGES)

TWINS = r"^/models/[^/]+/"  # another address of the same work: random requests do, without every boundary of every option
BRIEFLY = schemathesis.Config.from_dict({"phases": {"coverage": {"enabled": False}}})
OWN = create_app(Settings(protocols="native")).openapi()  # those of other servers: compat/test_fuzz.py
schema = schemathesis.openapi.from_dict(OWN).exclude(path_regex=TWINS)
twins = schemathesis.openapi.from_dict(OWN, config=BRIEFLY).include(path_regex=TWINS)
repeatable = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@schema.parametrize()
@settings(repeatable, max_examples=20)
def test_the_schema_is_the_truth(case: Case[Any], server: Running, session: requests.Session) -> None:
    """Every check but one: no schema can say which bytes are an image or which classes a model has."""
    case.call_and_validate(base_url=server.url, session=session, excluded_checks=[positive_data_acceptance])


@twins.parametrize()
@settings(repeatable, max_examples=20)
def test_and_so_it_is_where_the_path_names_the_model(case: Case[Any], server: Running, session: requests.Session) -> None:
    case.call_and_validate(base_url=server.url, session=session, excluded_checks=[positive_data_acceptance])


def optional(**options: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=options)


# A class, a layer and a model that the default service has; sizes that are drawn in no time; the rest at random.
OPTIONS = optional(
    class_id=st.lists(st.integers(0, 999), min_size=1, max_size=3),
    class_name=st.lists(st.sampled_from(["tabby", "N02124075", "china cabinet", "lynx, catamount"]), min_size=1, max_size=2),
    versus=st.one_of(st.integers(0, 999), st.just("Egyptian cat")),
    top_k=st.integers(1, 16),
    model=st.just("efficientnet_lite0"),
    method=st.just("gradcam"),
    layer=st.lists(st.sampled_from(["bn2", "blocks.5", "blocks.0"]), min_size=1, max_size=3, unique=True),
    polarity=st.sampled_from(get_args(Polarity)),
    scale=st.sampled_from(get_args(Scale)),
    fit=st.sampled_from(get_args(Fit)),
    color_map=st.sampled_from(get_args(ColorMap)),
    alpha=st.floats(0, 1),
    overlay_type=st.sampled_from(get_args(OverlayType)),
    clip_percent_lowerbound=st.floats(0, 49),
    clip_percent_upperbound=st.floats(50, 100),
    interpolation=st.sampled_from(get_args(MapInterpolation)),
    size=st.one_of(st.sampled_from(["original", "input"]), st.integers(8, 300)),
    heatmap=st.sampled_from(get_args(HeatmapEncoding)),
    overlay=st.booleans(),
    format=st.sampled_from(get_args(Delivery)),
)
NOISE = optional(
    **{name: st.one_of(st.text(max_size=8), st.integers(), st.floats()) for name in ("alpha", "class_id", "versus")},
    size=st.one_of(st.just("grid"), st.text(max_size=8), st.integers(), st.floats()),
    layer=st.text(max_size=8),
    method=st.text(max_size=8),
    model=st.text(max_size=8),
    class_name=st.text(max_size=8),
    fit=st.text(max_size=8),
)


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def send(http: httpx.Client, path: str, form: str, image: bytes, options: dict[str, Any]) -> httpx.Response:
    if form == "json":
        document = {"images": [{"b64": base64.b64encode(image).decode()}], **options}
        return http.post(path, content=json.dumps(document), headers={"Content-Type": "application/json"})  # NaN as NaN
    plain = {name: list(map(str, value)) if isinstance(value, list) else str(value) for name, value in options.items()}
    if form == "query":
        return http.post(path, content=image, params=plain)
    return http.post(path, files={"image": image}, data=plain)


FORMS = st.sampled_from(["query", "form", "json"])


@settings(repeatable, max_examples=80)
@given(image=IMAGES, form=FORMS, options=OPTIONS)
def test_an_image_with_options_that_exist_is_explained(
    http: httpx.Client, image: bytes, form: str, options: dict[str, Any]
) -> None:
    response = send(http, "/explain", form, image, options)
    named = len(options.get("class_id", ())) + len(options.get("class_name", ()))
    several = (named or options.get("top_k", 1)) > 1
    delivery = options.get("format", "json")
    if several and delivery in {"png", "jpeg", "webp"} and options.get("overlay_type") != "panel":
        assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")
        return
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == MEDIA_TYPES[delivery]


@settings(repeatable, max_examples=120)
@given(image=IMAGES, form=FORMS, path=st.sampled_from(["explain", "predict"]), options=OPTIONS, noise=NOISE)
def test_whatever_else_stands_in_the_options_is_no_fault_of_ours(
    http: httpx.Client, image: bytes, form: str, path: str, options: dict[str, Any], noise: dict[str, Any]
) -> None:
    response = send(http, f"/models/efficientnet_lite0/{path}", form, image, options | noise)
    if response.status_code != 200:
        assert response.status_code < 500, response.text
        Problem.model_validate_json(response.content, strict=True)
