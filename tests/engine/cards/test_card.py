"""Cards: what may be left out, and that a bad one names its file and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.engine.cards.card import Card
from service.engine.cards.repository import read_cards
from service.errors import ConfigurationError
from service.settings import DEFAULT_MODELS_DIR

GOOD = """
[architecture]
source = "timm"
name = "resnet18"
[weights]
random = 0
[labels]
dataset = "imagenet-1k"
[explain]
layer = "layer4"
"""


def card(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_repositorys_own_cards_are_good() -> None:
    cards = read_cards(DEFAULT_MODELS_DIR)
    assert {"efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "resnet50", "vgg16"} <= set(cards)
    assert cards["efficientnet_lite0"].explain.layer == ("bn2",)


def test_a_card_is_named_after_its_file_and_most_may_be_left_out(tmp_path: Path) -> None:
    read = Card.read(card(tmp_path, GOOD))
    assert (read.name, read.version, read.folder) == ("mine", "1", tmp_path)
    assert read.preprocess.resize is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (("layer =", "layre ="), "explain.layre"),
        (('source = "timm"', 'source = "pickle"'), "architecture.source"),
        (("random = 0", 'random = 0\nname = "x"'), "weights"),
        (("random = 0", ""), "weights"),
        (("random = 0", 'file = "a.pth"'), "weights"),
        (("random = 0", 'package = "a"\nrandom = 1'), "weights"),
        (("random = 0", f'file = "a.pth"\nsha256 = "{"z" * 64}"'), "weights.sha256"),
        (('dataset = "imagenet-1k"', 'dataset = "imagenet-1k"\nnames = ["cat"]'), "labels"),
        (('layer = "layer4"', "layer = []"), "explain.layer"),
        (('layer = "layer4"', 'layout = "tokens"'), "explain"),
        (('layer = "layer4"', 'layer = "layer4"\nprefix_tokens = 1'), "explain"),
        (("[architecture]", 'name = "other"\n[architecture]'), "name"),
        (("[architecture]", "[architecture"), "TOML"),
    ],
)
def test_a_bad_card_names_file_and_field(tmp_path: Path, change: tuple[str, str], field: str) -> None:
    path = card(tmp_path, GOOD.replace(*change, 1))
    with pytest.raises(ConfigurationError) as raised:
        Card.read(path)
    assert str(path) in str(raised.value)
    assert field in str(raised.value)


def test_a_card_with_a_name_that_no_url_can_carry(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="file name"):
        Card.read(card(tmp_path, GOOD, "My Model"))


def test_a_folder_without_cards_says_which_setting_to_change(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="CAMSERVE_MODELS_DIR"):
        read_cards(tmp_path)


@pytest.mark.parametrize(
    ("weights", "words"),
    [("random = 3", "random 3"), ('name = "V1"', "hub V1"), (f'package = "p"\nfile = "f"\nsha256 = "{"0" * 64}"', "package p")],
)
def test_weights_say_where_they_come_from(tmp_path: Path, weights: str, words: str) -> None:
    assert str(Card.read(card(tmp_path, GOOD.replace("random = 0", weights))).weights) == words
