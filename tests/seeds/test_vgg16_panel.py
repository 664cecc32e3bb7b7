"""Seed 2: VGG-16, its last features layer, class 243, jet at 0.5: image, heatmap and overlay side by side."""

from __future__ import annotations

import io

import httpx
import pytest
from PIL import Image

from tests.conftest import Running
from tests.photographs import CHELSEA

pytestmark = pytest.mark.slow


def test_the_bull_mastiff_of_vgg16_as_a_panel(gallery: Running) -> None:
    query = "model=vgg16&layer=features&class_id=243&color_map=jet&alpha=0.5&overlay_type=panel"
    response = httpx.post(f"{gallery.url}/explain?{query}", content=CHELSEA.data, headers={"Accept": "image/png"}, timeout=120)
    assert response.status_code == 200, response.text
    headers = {name: response.headers[f"x-explain-{name}"] for name in ("class-id", "class-name", "layer", "model")}
    assert headers == {"class-id": "243", "class-name": "bull%20mastiff", "layer": "features", "model": "vgg16"}
    panel = Image.open(io.BytesIO(response.content))
    assert panel.width > 3 * CHELSEA.width

    found = httpx.post(f"{gallery.url}/explain?{query}", content=CHELSEA.data, timeout=120).json()["results"][0]
    assert found["explanations"][0]["grid"] == [7, 7]
