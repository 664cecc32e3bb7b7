"""Accept and `format`, as RFC 9110 has it."""

from __future__ import annotations

import httpx
import pytest

from service.api.responses import OFFERS, negotiate
from service.errors import NotAcceptable
from service.explain.results import ExplainResponse, InspectResponse, PredictResponse
from service.vocabulary import Delivery
from tests.api.stand_ins import StandInExplainer

EXPLAIN, PREDICT, INSPECT = OFFERS[ExplainResponse], OFFERS[PredictResponse], OFFERS[InspectResponse]


@pytest.mark.parametrize(
    ("accept", "delivery"),
    [
        (None, "json"),
        ("", "json"),
        ("*/*", "json"),
        ("application/json", "json"),
        ("application/*", "json"),
        ("image/*", "png"),
        ("image/png", "png"),
        ("IMAGE/PNG", "png"),
        ("image/jpeg", "jpeg"),
        ("image/jpg", "jpeg"),
        ("image/webp", "webp"),
        ("application/x-npy", "npy"),
        ("image/png;q=0.5, image/jpeg", "jpeg"),
        ("image/png;q=0.5, image/jpeg;q=0.4", "png"),
        ("image/jpeg, image/png", "jpeg"),
        ("application/json, image/png", "json"),
        ("image/png, application/json", "png"),
        ("image/png;q=0, image/*", "jpeg"),
        ("image/*;q=0.2, image/webp;q=0.1, */*;q=0.05", "png"),
        ("*/*, image/webp", "webp"),
        ("text/html, application/xhtml+xml, */*;q=0.8", "json"),
        ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", "webp"),
        ("image/png;q=high, image/jpeg;q=0.1", "jpeg"),
        ("image/png;level=1;q=0.3, image/jpeg;q=0.4", "jpeg"),
        ("application/json;q=0, */*;q=0.1", "png"),
        (", ,image/png,;", "png"),
    ],
)
def test_accept(accept: str | None, delivery: Delivery) -> None:
    assert negotiate(accept, None, EXPLAIN) == delivery


@pytest.mark.parametrize(
    "accept",
    ["text/html", "image/gif", "image/png;q=0", "*/*;q=0", "nonsense", "image/png;q=2", "/", "image/", "video/*", "*/png"],
)
def test_nothing_acceptable(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="image/webp"):
        negotiate(accept, None, EXPLAIN)


def test_format_outweighs_accept() -> None:
    assert negotiate("application/json", "png", EXPLAIN) == "png"
    assert negotiate("text/html", "json", PREDICT) == "json"
    with pytest.raises(NotAcceptable, match=r"answers with application/json; "):
        negotiate("*/*", "png", PREDICT)
    with pytest.raises(NotAcceptable, match=r"image/webp; "):
        negotiate("*/*", "npy", INSPECT)


@pytest.mark.anyio
async def test_over_http(client: httpx.AsyncClient, explainer: StandInExplainer) -> None:
    response = await client.post("/explain?format=npy", content=b"x", headers={"Accept": "image/png"})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-npy")
    assert explainer.delivery == "npy"
    assert response.headers["vary"] == "Accept"
    response = await client.post("/predict", content=b"x", headers={"Accept": "image/png"})
    assert (response.status_code, response.json()["code"]) == (406, "not_acceptable")
    assert response.headers["vary"] == "Accept"
