"""Requests made from the schema of the other servers' routes, right ones and wrong ones: none is a fault of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from service.app import create_app
from service.settings import Settings
from tests import image_files as make
from tests.api.compat.wire import LENGTH_HEADER, binary, bytes_input, elements
from tests.conftest import Running

IMAGES = st.sampled_from([make.save(make.scene(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF")])
schemathesis.openapi.media_type("application/octet-stream", IMAGES)
schemathesis.openapi.format("binary", IMAGES)

PATHS = r"^/(v1|v2|predictions|explanations|invocations)"
schema = schemathesis.openapi.from_dict(create_app(Settings()).openapi()).include(path_regex=PATHS)
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


repeatable = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@schema.parametrize()
@settings(repeatable, max_examples=15)
def test_no_request_is_a_fault_of_ours(case: Case[Any], server: Running, session: requests.Session) -> None:
    # The one model that the service has is asked as often as those that it does not have.
    if "model" in case.path_parameters and len(str(case.path_parameters["model"])) % 2:
        case.path_parameters["model"] = "efficientnet_lite0"
    case.call_and_validate(base_url=server.url, session=session, checks=CHECKS)


FILE = make.save(make.scene(96, 48), "PNG")
CLASSES = {"name": "class_id", "shape": [1, 1], "datatype": "INT64", "parameters": {"binary_data_size": 8}}
INFER, INFER_HEADERS = binary(
    {"inputs": [bytes_input(1, len(FILE) + 4), CLASSES], "outputs": [{"name": "class_id"}]}, elements(FILE), bytes(8)
)
HEAD = int(INFER_HEADERS[LENGTH_HEADER])


@settings(repeatable, max_examples=150)
@given(
    place=st.one_of(st.integers(0, HEAD + 40), st.integers(0, len(INFER))),
    cut=st.integers(0, 9),
    inserted=st.binary(max_size=9),
    header=st.one_of(st.just(HEAD), st.integers(-5, len(INFER) + 5)),
)
def test_no_damage_to_a_binary_request_is_a_fault_of_ours(
    server: Running, session: requests.Session, place: int, cut: int, inserted: bytes, header: int
) -> None:
    body = INFER[:place] + inserted + INFER[place + cut :]
    answer = session.post(
        f"{server.url}/v2/models/efficientnet_lite0/infer", data=body, headers={LENGTH_HEADER: str(header)}, timeout=60
    )
    assert answer.status_code in {200, 400, 415, 422}, answer.text
    assert answer.headers["content-type"] in {"application/json", "application/octet-stream"}
