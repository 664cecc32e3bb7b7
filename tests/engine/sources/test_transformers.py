"""Classifiers of transformers: logits unwrapped, weights of a file or a repository, images prepared as the library does."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
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
        ("MobileViTImageProcessorPil", {"do_flip_channel_order": False, "size": {"shortest_edge": 288}}),
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


def family_card(folder: Path, family: str, args: str) -> Card:
    text = GOOD.replace('source = "timm"\nname = "resnet18"', f'source = "transformers"\nname = "{family}"\nargs = {{{args}}}')
    return Card.read(card(folder, text))


TRANSFORMER = "hidden_size = 32, num_hidden_layers = 2, num_attention_heads = 2, num_labels = 10"


@pytest.mark.parametrize(
    ("family", "args", "grid"),
    [
        ("dinov2_with_registers", f"{TRANSFORMER}, image_size = 64, patch_size = 16", (14, 14)),
        ("pp_lcnet", "num_labels = 10", (7, 7)),
        ("pvt_v2", "num_labels = 10", (7, 7)),
        ("timm_wrapper", 'architecture = "resnet18", num_labels = 10', (7, 7)),
    ],
)
def test_families_with_processors_of_their_own_kind(tmp_path: Path, family: str, args: str, grid: tuple[int, int]) -> None:
    loaded = load(family_card(tmp_path, family, args))
    network = Network(family, loaded, (), torch.device("cpu"))
    gradcam = METHODS["gradcam"]
    request = EngineRequest(pixels=scene(224, 224), classes=(3,), method=gradcam, parameters=gradcam.defaults)
    (result,) = network.run([request])
    assert isinstance(result, EngineResult), result
    assert result.logits.shape == (10,)
    assert result.maps[0][0].shape == grid


def test_register_tokens_are_not_places(tmp_path: Path) -> None:
    """Grad-CAM by plain hooks, over the tokens behind the class token and four registers."""
    loaded = load(family_card(tmp_path, "dinov2_with_registers", f"{TRANSFORMER}, image_size = 64, patch_size = 16"))
    network = Network("registers", loaded, (), torch.device("cpu"))
    gradcam = METHODS["gradcam"]
    pixels = scene(224, 224)
    request = EngineRequest(pixels=pixels, classes=(3,), method=gradcam, parameters=gradcam.defaults)
    (result,) = network.run([request])
    assert isinstance(result, EngineResult), result

    (layer,) = network.default_layers
    outputs: list[torch.Tensor] = []
    module = loaded.module
    handle = module.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    own = loaded.preprocessing
    normalized = (torch.tensor(pixels) / 255 - torch.tensor(own.mean)) / torch.tensor(own.std)
    logits = module(normalized.permute(2, 0, 1)[None].requires_grad_())
    handle.remove()
    (gradients,) = torch.autograd.grad(logits[0, 3], outputs[0])
    patches, weights = outputs[0][0, 5:].detach(), gradients[0, 5:].mean(0)
    expected = (patches @ weights).reshape(14, 14)  # signed, as results are
    torch.testing.assert_close(torch.tensor(result.maps[0][0]), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("family", "args"), [("mobilevit", "num_labels = 10"), ("pp_lcnet", "num_labels = 10")])
def test_networks_for_bgr_are_given_bgr(tmp_path: Path, family: str, args: str) -> None:
    loaded = load(family_card(tmp_path, family, args))
    images = torch.rand(1, 3, 256, 256)
    reversed_channels = loaded.module(images)
    loaded.module._forward_pre_hooks.clear()
    assert torch.equal(reversed_channels, loaded.module(images.flip(1)))
    assert not torch.equal(reversed_channels, loaded.module(images))


def test_weights_of_timm_in_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub serves timm's networks: a config.json of timm beside timm's own names of parameters."""
    torch.manual_seed(4)
    module = timm.create_model("resnet18", pretrained=False).eval()
    monkeypatch.chdir(tmp_path)
    timm.models.save_for_hf(module, "our/net", safe_serialization=True)
    text = GOOD.replace('source = "timm"\nname = "resnet18"', 'source = "transformers"\nname = "timm_wrapper"')
    loaded = load(Card.read(card(tmp_path, text.replace("random = 0", f'hub = "our/net"\nrevision = "{"a" * 40}"'))))
    images = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(loaded.module(images), module(images).detach())
    assert loaded.preprocessing == load(Card.read(card(tmp_path, GOOD))).preprocessing


@pytest.mark.parametrize(
    ("family", "args", "message"),
    [
        ("hgnet_v2", "num_labels = 10", r"no image processor of the family hgnet_v2; put .* preprocessor_config\.json"),
        ("siglip2", "num_labels = 10", "takes a list of patches"),
        ("timm_wrapper", 'architecture = "resnet"', "'resnet' is not supported"),
        ("vit", "hidden_size = 0", "cannot build 'vit'"),
    ],
)
def test_what_cannot_be_loaded_is_a_configuration_error(tmp_path: Path, family: str, args: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load(family_card(tmp_path, family, args))
