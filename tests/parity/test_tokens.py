"""Grad-CAM where the grid is not channels first: tokens and channels last, against pytorch-grad-cam with a reshape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from service.engine.batch import EngineRequest
from service.engine.network import Network
from service.engine.sources import LoadedNetwork
from service.engine.types import EngineResult
from service.imaging.heatmap import scale_maps
from service.vocabulary import Preprocessing
from tests.networks import seeded
from tests.parity.oracle import channels_last, library, tokens

pytestmark = pytest.mark.slow

CLASSES = (3, 0, 9)


def timm_vit(**arguments: Any) -> nn.Module:
    module: nn.Module = timm.create_model(num_classes=10, depth=2, **arguments)
    return module


def whole(name: str, **arguments: Any) -> nn.Module:
    module: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=10, **arguments)
    if name.startswith("vit"):
        nn.init.normal_(module.get_parameter("heads.head.weight"))  # born zero: every map would be blank
    return module


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], str, Callable[[Tensor], Tensor]]] = {
    "vit_b_16": (
        lambda: whole("vit_b_16", image_size=96), (96, 96), "encoder.layers.encoder_layer_11.ln_1", tokens(1, 6, 6),
    ),
    "swin_t": (lambda: whole("swin_t"), (128, 160), "features.7.1.norm1", channels_last),
    "class token": (
        lambda: timm_vit(model_name="vit_tiny_patch16_224", img_size=64), (64, 64), "blocks.1.norm1", tokens(1, 4, 4),
    ),
    "class and distillation tokens": (
        lambda: timm_vit(model_name="deit_tiny_distilled_patch16_224", img_size=64), (64, 64), "blocks.1.norm1",
        tokens(2, 4, 4),
    ),
    "registers, not square": (
        lambda: timm_vit(model_name="vit_small_patch14_reg4_dinov2", img_size=(56, 84)), (56, 84), "blocks.1.norm1",
        tokens(5, 4, 6),
    ),
    "as many tokens as channels": (
        lambda: timm_vit(model_name="vit_wee_patch16_reg1_gap_256"), (256, 256), "blocks.1.norm1", tokens(1, 16, 16),
    ),
    "swin v2, norms after": (
        lambda: timm.create_model(
            "swinv2_tiny_window8_256", img_size=64, window_size=4, depths=(2, 2), embed_dim=24, num_heads=(1, 2), num_classes=10
        ),
        (64, 64), "layers.1.blocks.0", channels_last,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_pytorch_grad_cam_with_a_reshape(name: str) -> None:
    build, size, layer, reshape = NETWORKS[name]
    module = seeded(build)
    images = np.random.default_rng(3).integers(0, 256, (len(CLASSES), *size, 3), np.uint8)
    preprocessing = Preprocessing(
        height=size[0], width=size[1], resize=min(size), interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    loaded = LoadedNetwork(module=module, preprocessing=preprocessing, digest="sha256:test")
    ours = Network("test", loaded, (), torch.device("cpu"))
    assert ours.default_layers == (layer,)
    found = []
    for result in ours.run([EngineRequest(pixels=image, classes=(c,)) for image, c in zip(images, CLASSES, strict=True)]):
        assert isinstance(result, EngineResult)
        (heatmap,) = scale_maps(result.maps, polarity="positive", scale="minmax", input_size=size)
        found.append(heatmap.values)
    batch = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127.5) / 127.5
    expected = library(GradCAM, module, [layer], batch, reshape, targets=[ClassifierOutputTarget(c) for c in CLASSES])
    assert np.std(found) > 0.01, "blank maps would agree with anything"
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-4, rtol=0)
