"""Keras networks: the same answers as Keras', before the softmax, with every layer at its own name."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from service.engine.cards.card import Card
from service.engine.graph.export import export
from service.engine.sources import load
from service.engine.sources.keras import keras
from service.errors import ConfigurationError
from tests.engine.cards.test_card import GOOD, card

# Keras' own way of writing torch's weights to a file.
writes = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

MOBILENET = GOOD.replace('source = "timm"\nname = "resnet18"', 'source = "keras"\nname = "MobileNetV2"') + (
    "[preprocess]\ncrop = 32\n"
)
SCALED = "mean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n"


@pytest.fixture(scope="module")
def nested() -> Any:
    """A classifier around another model, with an addition that is no layer, and its softmax in a layer of its own."""
    layers = keras.layers
    with keras.device("cpu"):
        inner = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(8, 3, padding="same", name="conv")], name="inner")
        image = keras.Input((16, 16, 3))
        features = inner(image)
        doubled = layers.ReLU(name="act")(features + features)
        scores = layers.Dense(4, name="scores")(layers.GlobalAveragePooling2D()(doubled))
        return keras.Model(image, layers.Activation("softmax", name="softmax")(scores))


def with_file(folder: Path, file: str, text: str) -> Card:
    digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    return Card.read(card(folder, text.replace("random = 0", f'file = "{file}"\nsha256 = "{digest}"')))


@writes
def test_a_saved_model_gives_its_logits(nested: Any, tmp_path: Path) -> None:
    nested.save(tmp_path / "net.keras")
    loaded = load(with_file(tmp_path, "net.keras", MOBILENET.replace("crop = 32", SCALED)))
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad(), keras.device("cpu"):
        expected = nested(images.permute(0, 2, 3, 1), training=False)
        logits = loaded.module(images)
    torch.testing.assert_close(logits.softmax(dim=1), expected)
    assert not torch.allclose(logits.sum(dim=1), torch.ones(2))
    assert loaded.preprocessing.height == 16
    assert loaded.preprocessing.fit == "squash"
    nodes = export("keras", loaded.module, (3, 16, 16)).layer_nodes()
    assert {"inner.conv", "act", "scores"} <= set(nodes)
    assert tuple(nodes["act"].meta["val"].shape[1:]) == (16, 16, 8)


@writes
def test_the_weights_of_an_application(tmp_path: Path) -> None:
    text = MOBILENET.replace('name = "MobileNetV2"', 'name = "MobileNetV2"\nargs = { alpha = 0.35, classes = 4 }')
    first = load(Card.read(card(tmp_path, text)))
    with keras.device("cpu"):
        model = keras.applications.MobileNetV2(weights=None, alpha=0.35, classes=4, input_shape=(32, 32, 3))
    model.save_weights(tmp_path / "net.weights.h5")
    loaded = load(with_file(tmp_path, "net.weights.h5", text))
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad(), keras.device("cpu"):
        expected = model(images.permute(0, 2, 3, 1), training=False)
        torch.testing.assert_close(loaded.module(images).softmax(dim=1), expected)
    assert loaded.preprocessing.mean == loaded.preprocessing.std == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigurationError, match="does not hold weights"):
        load(with_file(tmp_path, "net.weights.h5", text.replace("classes = 4", "classes = 5")))
    state = random.getstate()
    assert load(Card.read(card(tmp_path, text))).digest == first.digest  # the seed decides, though Keras draws from Python
    assert random.getstate() == state


def test_an_application_that_wants_bgr(tmp_path: Path) -> None:
    loaded = load(Card.read(card(tmp_path, MOBILENET.replace("MobileNetV2", "VGG16"))))
    mean = loaded.preprocessing.mean
    assert [round(255 * value, 2) for value in mean] == [123.68, 116.78, 103.94]
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        seen = loaded.module.get_submodule("block1_conv1")(images.flip(1).permute(0, 2, 3, 1))
        graph = export("bgr", loaded.module, (3, 32, 32))
        node = graph.layer_nodes()["block1_conv1"]
        (found,) = torch.fx.Interpreter(_until(graph.module, node)).run(images)
    torch.testing.assert_close(found, seen)


def _until(module: torch.fx.GraphModule, node: torch.fx.Node) -> torch.fx.GraphModule:
    graph = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    for one in module.graph.nodes:
        copies[one] = graph.node_copy(one, copies.__getitem__)
        if one is node:
            break
    graph.output((copies[node],))
    return torch.fx.GraphModule(module, graph)


def test_what_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for change, words in (
        (("MobileNetV2", "NoNet"), "MobileNetV2"),
        (("random = 0", f'hub = "a/b"\nrevision = "{"0" * 40}"'), "imagenet"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            load(Card.read(card(tmp_path, MOBILENET.replace(*change))))
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ConfigurationError, match="KERAS_BACKEND=torch"):
        load(Card.read(card(tmp_path, MOBILENET)))


def test_importing_it_leaves_the_environment_alone() -> None:
    assert "KERAS_BACKEND" not in os.environ
