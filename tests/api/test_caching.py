"""Cache-Control in, X-Cache out: over the stand-in for the wire, over the whole app with a small network for the truth."""

from __future__ import annotations

import httpx
import pytest

from service.vocabulary import CacheStatus
from tests import image_files as make
from tests.api.stand_ins import StandInExplainer

pytestmark = pytest.mark.anyio

IMAGE = make.save(make.scene(96, 48), "PNG")


@pytest.mark.parametrize("path", ["/explain", "/predict", "/models/efficientnet_lite0/explain"])
@pytest.mark.parametrize(
    ("directives", "policy"),
    [
        (None, "use"), ("", "use"), ("max-age=60", "use"), ("no-cache", "renew"), ("No-Cache", "renew"), ("no-store", "off"),
        ("max-age=0, no-cache", "renew"), ("no-cache,no-store", "off"), ("no-cached", "use"), (";;=,", "use"),
    ],
)  # fmt: skip
async def test_what_a_request_allows(
    client: httpx.AsyncClient, explainer: StandInExplainer, path: str, directives: str | None, policy: str
) -> None:
    headers = {} if directives is None else {"Cache-Control": directives}
    assert (await client.post(path, content=b"x", headers=headers)).status_code == 200
    assert [call.policy for call in explainer.calls] == [policy]


@pytest.mark.parametrize("status", ["hit", "miss", "coalesced"])
@pytest.mark.parametrize("accept", ["application/json", "image/png"])
async def test_where_the_answer_came_from(
    client: httpx.AsyncClient, explainer: StandInExplainer, status: CacheStatus, accept: str, capsys: pytest.CaptureFixture[str]
) -> None:
    explainer.cache = status
    response = await client.post("/explain", content=b"x", headers={"Accept": accept})
    assert response.headers["x-cache"] == status
    assert f'"cache":"{status}"' in capsys.readouterr().err


async def test_no_word_where_nothing_is_cached(client: httpx.AsyncClient) -> None:
    for path in ("/explain", "/inspect"):
        assert "x-cache" not in (await client.post(path, content=b"x")).headers


async def test_the_same_bytes_and_another_colour(whole: httpx.AsyncClient) -> None:
    async def ask(query: str, **headers: str) -> httpx.Response:
        # Images say which request asked for them, so that only the same id gives the same bytes.
        response = await whole.post(f"/explain?{query}", content=IMAGE, headers={"X-Request-ID": "one", **headers})
        assert response.status_code == 200, response.text
        return response

    async def passes() -> float:
        lines = (await whole.get("/metrics")).text.splitlines()
        fast, slow = (line for line in lines if line.startswith("camserve_batch_size_count"))
        return sum(float(line.rpartition(" ")[2]) for line in (fast, slow))

    first = await ask("format=png")
    before = await passes()
    again, hot = await ask("format=png"), await ask("format=png&color_map=hot&alpha=0.8")
    one, other = await ask("format=npy"), await ask("format=npy&color_map=hot")
    assert await passes() == before
    assert first.headers["x-cache"] == "miss"
    assert {response.headers["x-cache"] for response in (again, hot, one, other)} == {"hit"}
    assert first.content == again.content != hot.content
    assert one.content == other.content
    assert again.headers["x-batch-size"] == "0"
    assert "queue;dur=0.00, infer;dur=0.00" in again.headers["server-timing"]
    for name in (name for name in first.headers if name.startswith("x-explain")):
        assert first.headers[name] == again.headers[name]

    anew = await ask("format=png", **{"Cache-Control": "no-cache"})
    assert (anew.headers["x-cache"], anew.content) == ("miss", first.content)
    assert await passes() == before + 1
    assert (await ask("format=png", **{"Cache-Control": "no-store"})).headers["x-cache"] == "miss"
    assert await passes() == before + 2
    assert (await ask("format=png")).headers["x-cache"] == "hit"


async def test_of_several_images_the_costliest_tells(whole: httpx.AsyncClient) -> None:
    other = make.save(make.scene(48, 96), "PNG")
    await whole.post("/explain", content=IMAGE)
    mixed = await whole.post("/explain", files=[("image", IMAGE), ("image", other)])
    assert mixed.headers["x-cache"] == "miss"
    both = await whole.post("/explain", files=[("image", other), ("image", IMAGE)])
    assert both.headers["x-cache"] == "hit"
    assert [one["image"]["width"] for one in both.json()["results"]] == [48, 96]
    assert both.json()["results"] == mixed.json()["results"][::-1]
    assert both.json()["batch_size"] == 0


async def test_a_problem_says_nothing_of_the_cache(whole: httpx.AsyncClient) -> None:
    for _ in range(2):
        response = await whole.post("/explain", content=IMAGE[:100])
        assert response.status_code == 422
        assert "x-cache" not in response.headers
