"""Classifiers of transformers: logits unwrapped, weights of a file or a repository, images prepared as the library does."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from service.engine.batch import EngineRequest
from service.engine.cards.card import Card
from service.engine.methods import METHODS
from service.engine.network import Network
from service.engine.sources import load
from service.engine.sources.transformers import preprocessing_of
from service.engine.types import EngineResult
from service.errors import ConfigurationError
from service.imaging.geometry import place, resample
from tests.engine.cards.test_card import GOOD, card
from tests.image_files import scene

transformers: Any = pytest.importorskip("transformers")

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 64,
    "patch_size": 16, "num_labels": 10,
}  # fmt: skip
ARGS = "args = {" + ", ".join(f"{name} = {value}" for name, value in SIZES.items()) + "}"
VIT = GOOD.replace('source = "timm"\nname = "resnet18"', f'source = "transformers"\nname = "vit"\n{ARGS}')


def tiny() -> Any:
    torch.manual_seed(4)
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)).eval()


def with_weights(folder: Path, state: dict[str, torch.Tensor], text: str = VIT) -> Card:
    save_file(state, folder / "net.safetensors")
    digest = hashlib.sha256((folder / "net.safetensors").read_bytes()).hexdigest()
    return Card.read(card(folder, text.replace("random = 0", f'file = "net.safetensors"\nsha256 = "{digest}"')))


def test_a_checkpoint_gives_the_librarys_logits(tmp_path: Path) -> None:
    module = tiny()
    loaded = load(with_weights(tmp_path, module.state_dict()))
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(loaded.module(images), module(images).logits.detach())
    assert loaded.preprocessing.fit == "squash"
    assert (loaded.preprocessing.height, loaded.preprocessing.width) == (64, 64)


def test_its_attention_is_explained(tmp_path: Path) -> None:
    network = Network("tiny", load(with_weights(tmp_path, tiny().state_dict())), (), torch.device("cpu"))
    assert network.default_layers == ("vit.layers.1.layernorm_before",)
    methods = [METHODS[name] for name in ("gradcam", "attention_rollout")]
    requests = [
        EngineRequest(pixels=scene(64, 64), classes=(3,), method=method, parameters=method.defaults) for method in methods
    ]
    for result in network.run(requests):
        assert isinstance(result, EngineResult), result
        assert result.maps[0][0].shape == (4, 4)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = tiny().state_dict()
    del state["classifier.bias"]
    with pytest.raises(ConfigurationError, match=r"missing_keys: classifier\.bias"):
        load(with_weights(tmp_path, state))
    state = tiny().state_dict() | {"classifier.weight": torch.zeros(7, 32)}
    with pytest.raises(ConfigurationError, match=r"size: classifier\.weight"):
        load(with_weights(tmp_path, state))


def test_a_configuration_beside_the_file_is_the_files_own(tmp_path: Path) -> None:
    module = tiny()
    module.config.save_pretrained(tmp_path)
    plain = VIT.replace(ARGS, "")
    assert load(with_weights(tmp_path, module.state_dict(), plain)).preprocessing.height == 64
    with pytest.raises(ConfigurationError, match="family 'vit'"):
        load(with_weights(tmp_path, module.state_dict(), plain.replace('"vit"', '"swin"')))


def test_a_repository_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own loader, which takes a folder of that name for the repository."""
    module = tiny()
    monkeypatch.chdir(tmp_path)
    module.save_pretrained("our/net")
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained("our/net")
    text = VIT.replace(ARGS, "").replace("random = 0", f'hub = "our/net"\nrevision = "{"a" * 40}"')
    loaded = load(Card.read(card(tmp_path, text)))
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded.module(images), module(images).logits.detach())


def test_a_family_without_a_classifier(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no image classifier"):
        load(Card.read(card(tmp_path, VIT.replace('"vit"', '"bert"').replace(ARGS, ""))))


@pytest.mark.parametrize(
    ("family", "args"),
    [
        ("ViTImageProcessorPil", {}),
        ("ViTImageProcessorPil", {"do_normalize": False}),
        ("ConvNextImageProcessorPil", {}),
        ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 224}}),
        ("BitImageProcessorPil", {}),
    ],
)
def test_images_are_prepared_as_the_library_prepares_them(family: str, args: dict[str, Any]) -> None:
    processor = getattr(transformers, family)(**args)
    theirs = processor(Image.fromarray(scene(500, 375)), return_tensors="np")["pixel_values"][0]
    own = preprocessing_of(processor)
    pixels = resample(scene(500, 375), place(500, 375, own, own.fit), own.interpolation, (0, 0, 0))
    ours = (pixels / 255 - np.array(own.mean)) / np.array(own.std)
    # One level of 255, divided by the standard deviation, where the two crop or round differently.
    assert np.abs(ours.transpose(2, 0, 1) - theirs).max() < 2.1 / 255 / min(own.std)
