"""Loading: the embedded weights are the right ones, rightly mapped; whatever is wrong stops with a reason."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from service.engine.cards.card import Card
from service.engine.cards.repository import read_cards
from service.engine.sources import load
from service.errors import ConfigurationError
from service.settings import DEFAULT_MODELS_DIR
from tests.engine.cards.test_card import GOOD, card

CARDS = read_cards(DEFAULT_MODELS_DIR)
RESNET18 = GOOD.replace('source = "timm"', 'source = "torchvision"')


@pytest.mark.parametrize(
    ("name", "size"), [("efficientnet_lite0", 224), ("efficientnet_lite1", 240), ("efficientnet_lite2", 260)]
)
def test_embedded_weights_fit_strictly_and_say_their_size(name: str, size: int) -> None:
    loaded = load(CARDS[name])
    assert (loaded.preprocessing.height, loaded.preprocessing.width) == (size, size)
    assert loaded.digest == f"sha256:{CARDS[name].weights.sha256}"
    assert not any(p.requires_grad for p in loaded.module.parameters())
    assert not loaded.module.training


def test_the_sources_own_preprocessing_and_the_cards_wishes() -> None:
    own = load(CARDS["resnet50"], random_weights=True).preprocessing
    assert (own.height, own.resize, own.interpolation, own.mean) == (224, 232, "bilinear", (0.485, 0.456, 0.406))
    changed = CARDS["resnet50"].preprocess.model_copy(update={"crop": (112, 224), "mean": (0.5, 0.5, 0.5)})
    asked = load(CARDS["resnet50"].model_copy(update={"preprocess": changed}), random_weights=True).preprocessing
    assert (asked.height, asked.width, asked.resize, asked.mean, asked.std) == (112, 224, 116, (0.5, 0.5, 0.5), own.std)


def test_random_weights_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    one, again = (load(Card.read(card(tmp_path, RESNET18))) for _ in range(2))
    other = load(Card.read(card(tmp_path, RESNET18.replace("random = 0", "random = 1"))))
    assert one.digest == again.digest != other.digest


def saved(folder: Path, state: Any) -> str:
    path = folder / "weights.pth"
    torch.save(state, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def with_checkpoint(folder: Path, digest: str) -> Card:
    return Card.read(card(folder, RESNET18.replace("random = 0", f'file = "weights.pth"\nsha256 = "{digest}"')))


def test_a_checkpoint_beside_the_card(tmp_path: Path) -> None:
    torch.manual_seed(5)
    module = torchvision.models.resnet18(weights=None)
    loaded = load(with_checkpoint(tmp_path, saved(tmp_path, module.state_dict())))
    assert torch.equal(loaded.module.get_parameter("fc.weight"), module.fc.weight)


def test_a_flipped_bit_stops_before_the_file_is_parsed(tmp_path: Path) -> None:
    made = with_checkpoint(tmp_path, saved(tmp_path, {"a": torch.zeros(1)}))
    data = bytearray((tmp_path / "weights.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "weights.pth").write_bytes(data)
    with pytest.raises(ConfigurationError, match=r"mine.*weights\.sha256"):
        load(made)


class Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    with pytest.raises(ConfigurationError, match="plain PyTorch state dict"):
        load(with_checkpoint(tmp_path, saved(tmp_path, {"a": Trap(trap)})))
    assert not trap.exists()


def test_a_checkpoint_of_another_network(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"do not fit.*conv1"):
        load(with_checkpoint(tmp_path, saved(tmp_path, {"a": torch.zeros(1)})))
    with pytest.raises(ConfigurationError, match="flat mapping"):
        load(with_checkpoint(tmp_path, saved(tmp_path, [1])))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RESNET18.replace("resnet18", "resnet19"), "torchvision has no"),
        (GOOD.replace("resnet18", "resnet19"), "timm has no"),
        (RESNET18.replace("random = 0", 'name = "V9"'), "IMAGENET1K_V1"),
        (
            GOOD.replace("random = 0", f'package = "no_such_package"\nfile = "a"\nsha256 = "{"0" * 64}"'),
            "pip install no-such-package",
        ),
        (GOOD.replace("random = 0", f'package = "timm"\nfile = "a"\nsha256 = "{"0" * 64}"'), r"weights\.file"),
    ],
)
def test_what_a_card_asks_for_is_not_there(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load(Card.read(card(tmp_path, text)))


def test_hub_weights_without_a_network_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.ResNet50_Weights.IMAGENET1K_V2, "get_state_dict", no_network, raising=False)
    with pytest.raises(ConfigurationError, match="CAMSERVE_RANDOM_WEIGHTS"):
        load(CARDS["resnet50"])
