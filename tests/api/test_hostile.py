"""The catalogue of hostile and odd files over HTTP: each gets its listed answer, which gives nothing away, and harms nobody."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from service.api.schemas import Problem
from service.explain.results import ExplainResponse
from tests import image_files as make
from tests.conftest import Running
from tests.hostile_files import CATALOGUE, Case
from tests.photographs import ALL

# What would tell a stranger how the service is built; and the file name, which is input and must not come back.
CANARY = "canary-7f3a.jpg"
LEAK = re.compile(r"Traceback|/app/|site-packages|\.py\b|PIL|[Pp]illow|torch|cv2|numpy|pydantic|0x[0-9a-f]{6,}|canary|<script>")
MAX_BYTES = 10 * 1024 * 1024
MAX_IMAGES = 16


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def good(http: httpx.Client) -> tuple[bytes, float]:
    """A good image and the logit of its best class."""
    data = make.jpeg()
    return data, best_logit(http.post("/predict", content=data))


def best_logit(response: httpx.Response) -> float:
    assert response.status_code == 200, response.text
    return float(response.json()["results"][0]["predictions"][0]["logit"])


def assert_problem(response: httpx.Response, status: int, code: str | None) -> None:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json"), response.text
    problem = Problem.model_validate_json(response.content, strict=True)
    assert (problem.status, problem.code) == (status, code)
    assert not LEAK.search(response.text), response.text
    assert not LEAK.search(repr(response.headers)), response.headers


@pytest.mark.parametrize("case", CATALOGUE, ids=str)
def test_every_file_gets_its_answer(http: httpx.Client, good: tuple[bytes, float], case: Case) -> None:
    response = http.post("/explain?size=input", files={"image": (CANARY, case.data(), "image/jpeg")})
    if case.status == 200:
        assert response.status_code == 200, response.text
        (result,) = TypeAdapter(ExplainResponse).validate_json(response.content, strict=True).results
        assert len(result.explanations) == 1
        assert "<script>" not in response.text
    else:
        assert_problem(response, case.status, case.code)
        data, logit = good
        assert best_logit(http.post("/predict", content=data)) == pytest.approx(logit, abs=1e-4)


def test_neighbours_of_hostile_files_are_unharmed(http: httpx.Client) -> None:
    """T29: half the requests are hostile; the good ones get the answers that they get alone."""
    hostile = [case for case in CATALOGUE if case.status != 200 and len(case.data()) < 100_000]
    photos = [photo.data for photo in ALL]
    alone = [best_logit(http.post("/predict", content=data)) for data in photos]
    shuffled = random.Random(29)
    requests: list[Case | int] = [*shuffled.sample(hostile, 60), *(number % len(photos) for number in range(60))]
    shuffled.shuffle(requests)

    def send(request: Case | int) -> httpx.Response:
        data = photos[request] if isinstance(request, int) else request.data()
        return http.post("/predict", files={"image": ("cat.jpg", data)})

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(send, requests))
    for request, response in zip(requests, answers, strict=True):
        if isinstance(request, int):
            assert best_logit(response) == pytest.approx(alone[request], abs=1e-4)
        else:
            assert_problem(response, request.status, request.code)


def test_one_hostile_image_among_several_is_named(http: httpx.Client) -> None:
    files = [("image", make.jpeg()), ("image", make.png_flat(20_000, 20_000, 1, 0)), ("image", make.jpeg())]
    response = http.post("/explain", files=files)
    assert_problem(response, 422, "image_too_many_pixels")
    assert "Image 2 of 3" in response.json()["detail"]


def test_bytes_win_over_names_and_types(http: httpx.Client) -> None:
    """H05, H06."""
    png, jpeg = make.save(make.scene(), "PNG"), make.jpeg()
    answers = {
        "png as jpg": http.post("/predict", files={"image": ("cat.jpg", png, "image/jpeg")}),
        "png as image/jpeg": http.post("/predict", content=png, headers={"Content-Type": "image/jpeg"}),
        "jpeg as octets": http.post("/predict", content=jpeg, headers={"Content-Type": "application/octet-stream"}),
        "jpeg as curl's --data-binary": http.post(
            "/predict", content=jpeg, headers={"Content-Type": "application/x-www-form-urlencoded"}
        ),
        "jpeg as nothing": http.post("/predict", content=jpeg),
    }
    assert {name: read_format(response) for name, response in answers.items()} == {
        "png as jpg": "png", "png as image/jpeg": "png", "jpeg as octets": "jpeg", "jpeg as curl's --data-binary": "jpeg",
        "jpeg as nothing": "jpeg",
    }  # fmt: skip


def read_format(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["results"][0]["image"]["format"]


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_in_the_pixels_is_never_a_fault_of_ours(http: httpx.Client, seed: int) -> None:
    """H09: no decoder can tell every flip from another image."""
    data, dice = bytearray(make.jpeg()), random.Random(seed)
    start = data.index(b"\xff\xda") + 14
    data[dice.randrange(start, len(data) - 2)] ^= 1 << dice.randrange(8)
    response = http.post("/predict", content=bytes(data))
    if response.status_code != 200:
        assert_problem(response, 422, response.json()["code"])
        assert response.json()["code"].startswith("image_")


def test_a_body_of_the_largest_size_and_one_byte_more(http: httpx.Client) -> None:
    """H79: the padding lies behind the image's end."""
    data = make.save(make.scene(), "PNG").ljust(MAX_BYTES, b"\0")
    assert http.post("/predict", content=data).status_code == 200
    assert_problem(http.post("/predict", content=data + b"\0"), 413, "payload_too_large")


def test_as_many_images_as_allowed_and_one_more(http: httpx.Client) -> None:
    """H80."""
    b64 = base64.b64encode(make.jpeg()).decode()
    full = http.post("/explain?heatmap=none", files=[("image", make.jpeg())] * MAX_IMAGES)
    assert len(TypeAdapter(ExplainResponse).validate_json(full.content, strict=True).results) == MAX_IMAGES
    as_json = http.post("/predict", json={"images": [{"b64": b64}] * MAX_IMAGES})
    assert len(as_json.json()["results"]) == MAX_IMAGES
    assert_problem(http.post("/explain", files=[("image", make.jpeg())] * (MAX_IMAGES + 1)), 422, "too_many_images")
    assert_problem(http.post("/predict", json={"images": [{"b64": b64}] * (MAX_IMAGES + 1)}), 422, "too_many_images")


def test_the_largest_image_is_explained_at_its_own_size_in_time(http: httpx.Client) -> None:
    """H63 with the heatmap and the overlay of fifty megapixels."""
    response = http.post("/explain?format=png", content=make.png_flat(10_000, 5000, 1, 0))
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png"), response.text
    assert int.from_bytes(response.content[16:20], "big") == 10_000
