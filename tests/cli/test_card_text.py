"""`camserve card`: what it writes is a card of the same model, complete."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from service.cli import app
from service.cli.card_text import write_card
from service.engine.cards.card import Card
from service.engine.cards.labels import read_labels
from service.engine.cards.reference import card_of_reference
from service.engine.network import Network
from service.settings import Settings
from tests.commands import invoke

transformers: Any = pytest.importorskip("transformers")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier as its owner saved it, of classes with names that TOML must quote."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("saved") / "pets"
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16,
        id2label={0: 'the "cat"', 1: "chien é", 2: "eel"},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def test_a_card_written_of_a_folder_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "pets.toml"
    target.write_text(write_card(str(folder), Settings(), target), encoding="utf-8")
    card = Card.read(target)
    assert card.labels.names == ('the "cat"', "chien é", "eel")
    assert not Path(str(card.weights.file)).is_absolute()
    kept, referred = Network.load(card, CPU), Network.load(card_of_reference(str(folder)), CPU)
    assert (kept.digest, kept.preprocessing, kept.default_layers) == (
        referred.digest, referred.preprocessing, referred.default_layers,
    )  # fmt: skip


def test_a_card_on_standard_output_is_a_card(folder: Path) -> None:
    ended = invoke(app, "card", folder)
    table = tomllib.loads(ended.stdout)
    assert table["explain"]["layer"] == "vit.layers.1.layernorm_before"
    assert table["preprocess"]["crop"] == [64, 64]
    assert "32 channels on a grid of 4 x 4" in ended.stdout
    assert Path(table["weights"]["file"]) == folder / "model.safetensors"


def test_a_shipped_card_is_completed(tmp_path: Path) -> None:
    target = tmp_path / "lite.toml"
    target.write_text(write_card("efficientnet_lite0", Settings(), target), encoding="utf-8")
    card = Card.read(target)
    labels = read_labels(card)
    assert labels is not None
    assert len(labels) == 1000
    assert (card.preprocess.resize, card.preprocess.crop, card.preprocess.mean) == (256, (224, 224), (0.5, 0.5, 0.5))
    assert card.explain.layer == ("bn2",)


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    ended = invoke(app, "card", tmp_path)
    assert ended.exit_code == 3
    assert "the folder holds no model" in ended.stderr
    assert ended.stdout == ""
