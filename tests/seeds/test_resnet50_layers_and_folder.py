"""Seed 4: ResNet-50 on an image of 400x400 at its own size, layers 1 to 4 looked into, classes by their names, viridis at 0.6,
and the exercise: a loop over all images of a folder.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.cli import app
from tests.commands import invoke
from tests.conftest import Running
from tests.photographs import CHINA, COFFEE

pytestmark = pytest.mark.slow

LAYERS = ("layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def front() -> bytes:
    """A building, 400x400."""
    file = io.BytesIO()
    Image.open(CHINA.path).crop((20, 13, 420, 413)).save(file, "PNG")
    return file.getvalue()


def test_layers_one_to_four(gallery: Running, front: bytes) -> None:
    query = "&".join(f"layer={layer}" for layer in LAYERS)
    url = f"{gallery.url}/models/resnet50/inspect?fit=native&channels=5&{query}"
    response = httpx.post(url, content=front, timeout=300)
    assert response.status_code == 200, response.text
    views = response.json()["results"][0]["inspection"]["layers"]
    shapes = {view["layer"]: view["shape"] for view in views}
    assert shapes == {"layer1": [256, 100, 100], "layer2": [512, 50, 50], "layer3": [1024, 25, 25], "layer4": [2048, 13, 13]}
    assert all(len(view["strongest"]) == 5 for view in views)
    assert sum(views[-1]["weights"]["counts"]) == 2048
    sheet = httpx.post(f"{url}&format=png", content=front, timeout=300)
    assert Image.open(io.BytesIO(sheet.content)).height > 4 * 180


@pytest.mark.parametrize(("name", "class_id"), [("palace", 698), ("flagpole", 557), ("great white shark", 2)])
def test_classes_by_name_in_viridis(gallery: Running, front: bytes, name: str, class_id: int) -> None:
    options = {"class_name": name, "fit": "native", "color_map": "viridis", "alpha": "0.6", "format": "png"}
    url = f"{gallery.url}/models/resnet50/explain"
    response = httpx.post(url, files={"image": front}, data=options, timeout=300)
    assert response.status_code == 200, response.text
    assert response.headers["x-explain-class-id"] == str(class_id)
    image = Image.open(io.BytesIO(response.content))
    assert image.size == (400, 400)
    plain = np.asarray(Image.open(io.BytesIO(front)), np.float32)
    heat = (np.asarray(image, np.float32) - 0.4 * plain) / 0.6
    assert -2 < heat.min() <= heat.max() < 257
    answer = httpx.post(url, files={"image": front}, data=options | {"format": "json"}, timeout=300).json()
    assert answer["results"][0]["explanations"][0]["region"] == [0, 0, 400, 400]
    assert answer["results"][0]["explanations"][0]["grid"] == [13, 13]


def test_the_loop_over_a_folder(tmp_path: Path, front: bytes) -> None:
    photos = tmp_path / "data"
    photos.mkdir()
    (photos / "front.png").write_bytes(front)
    (photos / "coffee.png").write_bytes(COFFEE.data)
    out = tmp_path / "out"
    result = invoke(app, "explain", photos, "--out", out, "--color-map", "viridis", "--alpha", "0.6")
    assert result.exit_code == 0, result.output
    with (out / "explanations.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(Path(row["file"]).name, row["label"]) for row in rows] == [
        ("coffee.png", "espresso"),
        ("front.png", rows[1]["label"]),
    ]
    assert all(Path(row["overlay"]).is_file() for row in rows)
