"""Networks that see grey, and heads that are no softmax, over HTTP: a saved program of each in a folder of cards."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from service.settings import Settings
from tests.conftest import running
from tests.image_files import save, scene
from tests.networks import Pooled, seeded

CARD = """
[architecture]
source = "local"
[weights]
file = "{name}.pt2"
sha256 = "{digest}"
[labels]
file = "{name}.txt"
activation = "sigmoid"
[preprocess]
mean = {mean}
std = {mean}
[explain]
layer = "block"
"""


class Grey(Pooled):
    """Takes one channel."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.stem[0] = torch.nn.Conv2d(1, 8, 3, stride=2, padding=1)


def save_model(folder: Path, name: str, module: torch.nn.Module, channels: int, labels: list[str]) -> None:
    shape = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(module, (torch.zeros(2, channels, 32, 32),), dynamic_shapes=shape)
    torch.export.save(program, folder / f"{name}.pt2")
    (folder / f"{name}.txt").write_text("\n".join(labels))
    digest = hashlib.sha256((folder / f"{name}.pt2").read_bytes()).hexdigest()
    (folder / f"{name}.toml").write_text(CARD.format(name=name, digest=digest, mean=[0.5] * channels))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    torch.manual_seed(0)
    grey = Grey(1).eval().requires_grad_(requires_grad=False)
    save_model(tmp_path, "binary", grey, 1, ["healthy", "ill"])
    save_model(tmp_path, "many", seeded(Pooled, 3), 3, ["cat", "dog", "sofa"])
    with (
        running(Settings(models_dir=tmp_path, models=("binary", "many"), max_batch_size=1)) as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
    ):
        yield client


def explained(client: httpx.Client, model: str, image: bytes, **options: Any) -> dict[str, Any]:
    answer = client.post(f"/models/{model}/explain", content=image, params={"heatmap": "list"} | options)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()["results"][0]
    return result


def test_grey_and_binary(client: httpx.Client) -> None:
    pixels = scene(32, 32)
    found = explained(client, "binary", save(pixels, "PNG"), class_id="1,0", scale="none", polarity="both")
    ill, healthy = found["explanations"]
    assert (ill["label"], healthy["label"]) == ("ill", "healthy")
    assert ill["logit"] == -healthy["logit"]
    assert ill["probability"] == pytest.approx(1 / (1 + math.exp(-ill["logit"])))
    assert ill["probability"] + healthy["probability"] == pytest.approx(1)
    np.testing.assert_allclose(
        ill["heatmap"], -np.array(healthy["heatmap"]), atol=1e-6
    )  # what speaks for one, against the other
    # Another image of the same luminance is the same to this network.
    grey = np.repeat((pixels @ np.array([0.299, 0.587, 0.114]))[..., None].round().astype(np.uint8), 3, axis=2)
    same = explained(client, "binary", save(grey, "PNG"))
    best, listed = same["predictions"][0], {p["class_id"]: p["logit"] for p in found["predictions"]}
    assert best["logit"] == pytest.approx(listed[best["class_id"]], abs=0.02)


def test_multi_label(client: httpx.Client) -> None:
    found = explained(client, "many", save(scene(40, 32), "PNG"), top_k=3)
    predictions = found["predictions"]
    for one in predictions:
        assert one["probability"] == pytest.approx(1 / (1 + math.exp(-one["logit"])))
    assert sum(one["probability"] for one in predictions) != pytest.approx(1, abs=1e-3)
    assert [one["logit"] for one in predictions] == sorted((one["logit"] for one in predictions), reverse=True)
    assert len(found["explanations"]) == 3
