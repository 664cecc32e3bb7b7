"""Seed 0: ResNet-50, the class "brown bear, grizzly" (295), image | map | overlay; then a ViT's attention to its class token,
the mean over heads of the first block, in inferno at 0.6.
"""

from __future__ import annotations

import io

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import Running
from tests.photographs import COFFEE

pytestmark = pytest.mark.slow


def test_grad_cam_of_layer4_for_the_bear_side_by_side(gallery: Running) -> None:
    query = "class_id=295&layer=layer4&fit=squash&size=input&overlay_type=panel"
    response = httpx.post(f"{gallery.url}/models/resnet50/explain?{query}&format=png", content=COFFEE.data, timeout=120)
    assert response.status_code == 200, response.text
    assert response.headers["x-explain-class-id"] == "295"
    assert response.headers["x-explain-layer"] == "layer4"
    panel = Image.open(io.BytesIO(response.content))
    assert panel.width > 3 * 224


def test_attention_of_a_vision_transformer_over_the_image(gallery: Running) -> None:
    url = f"{gallery.url}/models/vit_b_16/explain?method=attention&block=0&toward=to_class&head_fusion=mean&fit=squash"
    response = httpx.post(f"{url}&heatmap=npy", content=COFFEE.data, timeout=120)
    assert response.status_code == 200, response.text
    found = response.json()["results"][0]["explanations"][0]
    assert (found["method"], found["grid"], found["blank"]) == ("attention", [14, 14], False)
    assert 0 < found["raw_max"] < 1  # a part of the attention
    overlay = httpx.post(f"{url}&color_map=inferno&alpha=0.6&format=png", content=COFFEE.data, timeout=120)
    assert overlay.status_code == 200, overlay.text
    image = Image.open(io.BytesIO(overlay.content))
    assert image.size == (COFFEE.width, COFFEE.height)
    plain = np.asarray(Image.open(COFFEE.path), np.float32)
    heat = (np.asarray(image, np.float32) - 0.4 * plain) / 0.6  # what was blended in
    assert heat.min() > -2
    assert heat.max() < 257
