"""Seed 1: one image, its predicted class and then the classes 245, 281, 799, 918 and 537."""

from __future__ import annotations

import httpx
import pytest

from tests.conftest import Running
from tests.photographs import CHELSEA

pytestmark = pytest.mark.slow

CLASSES = (245, 281, 799, 918, 537)


@pytest.mark.parametrize("model", ["efficientnet_lite0", "resnet50"])
def test_the_predicted_class_and_others_of_one_image(gallery: Running, model: str) -> None:
    best = httpx.post(f"{gallery.url}/models/{model}/explain", content=CHELSEA.data, timeout=120).json()["results"][0]
    assert best["explanations"][0]["class_id"] == best["predictions"][0]["class_id"]

    fields = {"class_id": [str(one) for one in CLASSES], "overlay": "true", "scale": "shared"}
    response = httpx.post(f"{gallery.url}/models/{model}/explain", files={"image": CHELSEA.data}, data=fields, timeout=120)
    found = response.json()["results"][0]["explanations"]
    assert [one["class_id"] for one in found] == list(CLASSES)
    assert all(one["overlay"]["b64"] for one in found)
    if model == "efficientnet_lite0":
        # The cat is the only one of them that is there; the others are dark beside it.
        assert max(found, key=lambda one: one["raw_max"])["class_id"] == 281
