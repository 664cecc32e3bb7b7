"""Seed 3: Xception at 299x299, the ten best classes with WordNet ids, then the classes 99, 211, 281, 285, 515 and 0, with the
image at 0.6 and the heat at 0.4.
"""

from __future__ import annotations

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import Running
from tests.photographs import CHELSEA

pytestmark = pytest.mark.slow

CLASSES = (99, 211, 281, 285, 515, 0)


def test_ten_best_classes_with_their_wordnet_ids(gallery: Running) -> None:
    url = f"{gallery.url}/models/xception/predict?top_k=10&fit=squash"
    predictions = httpx.post(url, content=CHELSEA.data, timeout=120).json()["results"][0]["predictions"]
    assert len(predictions) == 10
    assert all(one["wordnet_id"].startswith("n0") or one["wordnet_id"].startswith("n1") for one in predictions)
    probabilities = [one["probability"] for one in predictions]
    assert probabilities == sorted(probabilities, reverse=True)


def test_six_classes_over_the_image(gallery: Running) -> None:
    fields = {"class_id": ",".join(map(str, CLASSES)), "alpha": "0.4", "overlay": "true", "fit": "squash", "heatmap": "none"}
    response = httpx.post(f"{gallery.url}/models/xception/explain", files={"image": CHELSEA.data}, data=fields, timeout=120)
    assert response.status_code == 200, response.text
    found = response.json()["results"][0]["explanations"]
    assert [one["class_id"] for one in found] == list(CLASSES)
    assert found[1]["wordnet_id"] == "n02100583"  # vizsla, the seed's best
    assert all(one["grid"] == [10, 10] for one in found)
    plain = np.asarray(Image.open(CHELSEA.path), np.float32)
    for one in found:
        overlay = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["overlay"]["b64"]))), np.float32)
        heat = (overlay - 0.6 * plain) / 0.4
        assert -3 < heat.min() <= heat.max() < 258
