"""Models in one word, served: a network of timm, a folder of transformers, a saved program, a saved Keras model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import timm
import torch

from service.engine.sources.keras import keras
from service.settings import Settings
from tests.conftest import running
from tests.photographs import CHELSEA

transformers: Any = pytest.importorskip("transformers")


def save_transformers(folder: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16,
        id2label={0: "cat", 1: "dog", 2: "eel"},
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def save_program(path: Path) -> None:
    torch.manual_seed(0)
    module = timm.create_model("test_resnet", num_classes=4).eval()
    program = torch.export.export(
        module, (torch.zeros(2, 3, 96, 96),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=256)},)
    )
    torch.export.save(program, path)
    (path.parent / "labels.txt").write_text("ant\nbee\ncow\ndog\n", encoding="utf-8")


def save_keras(path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((48, 48, 3)), layers.Rescaling(1 / 127.5, offset=-1), layers.Conv2D(8, 3, activation="relu"),
            layers.GlobalAveragePooling2D(), layers.Dense(2, activation="softmax"),
        ]
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
        model.save(path)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    models = tmp_path_factory.mktemp("models")
    save_transformers(models / "Pets")
    files = tmp_path_factory.mktemp("files")
    (files / "program").mkdir()
    save_program(files / "program" / "net.pt2")
    save_keras(files / "small.keras")
    program, saved_model = files / "program" / "net.pt2", files / "small.keras"
    references = ("timm/regnety_002?random=0", f"farm={program}?crop=96", str(saved_model), "pets")
    settings = Settings(models_dir=models, models=references, max_batch_size=1)
    with running(settings) as service, httpx.Client(base_url=service.url, timeout=60) as client:
        yield client


@pytest.mark.parametrize(
    ("name", "reference", "labels", "side"),
    [
        ("regnety_002", "timm/regnety_002?random=0", None, 224),
        ("farm", "net.pt2", {"ant", "bee", "cow", "dog"}, 96),
        ("small", "small.keras", {"class 0", "class 1"}, 48),
        ("pets", "Pets", {"cat", "dog", "eel"}, 64),
    ],
)
def test_it_explains(client: httpx.Client, name: str, reference: str, labels: set[str] | None, side: int) -> None:
    info = client.get(f"/models/{name}").json()
    assert (info["state"], info["reference"], info["input_size"]) == ("ready", reference, [side, side])
    response = client.post(f"/models/{name}/explain", content=CHELSEA.data, params={"heatmap": "list", "polarity": "both"})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["model"]["name"] == name
    result = answer["results"][0]
    assert np.abs(np.array(result["explanations"][0]["heatmap"])).max() > 0
    if labels is not None:
        assert {one["label"] for one in result["predictions"]} == labels


def test_the_first_reference_is_the_default_model(client: httpx.Client) -> None:
    answer = client.post("/predict", content=CHELSEA.data).json()
    assert answer["model"]["name"] == "regnety_002"
    assert answer["results"][0]["predictions"][0]["wordnet_id"].startswith("n0")


def test_a_path_is_not_told(client: httpx.Client) -> None:
    assert str(Path("/tmp")) not in client.get("/models").text


def test_a_client_cannot_name_a_reference(client: httpx.Client) -> None:
    response = client.post("/explain", params={"model": "timm/resnet18?random=0"}, content=CHELSEA.data)
    assert (response.status_code, response.json()["code"]) == (404, "model_not_found")
