"""The default against pytorch-grad-cam 1.5: the same seeded weights, four images, four classes, one batch.

The maps are those a client gets: min-max scaled at the network's input size. The contract is 1e-4 and the same hottest cell.
A rectifier whose input is zero but for rounding may let the gradient through on one side alone, and the maps of layers before
it then differ by a hundredth; these images have none.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from service.engine.batch import EngineRequest
from service.engine.network import Network
from service.engine.types import EngineResult
from service.imaging.heatmap import scale_maps
from tests.networks import known, network
from tests.parity.oracle import library

CLASSES = (281, 0, 999, 537)
TOLERANCE = 1e-4
NETWORKS = {
    "resnet18": "layer4",
    "resnet50": "layer4",
    "vgg16": "features",
    "timm:tf_efficientnet_lite0": "bn2",
    "densenet121": "features",
    "mobilenet_v3_large": "features",
    "convnext_tiny": "features",
}
SIZE = 192
FUSED = {"resnet18": ("layer2", "layer3", "layer4"), "densenet121": ("features.denseblock4", "features.norm5")}


@functools.cache
def random_images(size: int = SIZE) -> NDArray[np.uint8]:
    """Smooth blobs and noise: images on which random networks still disagree from place to place."""
    random = np.random.default_rng(7)
    coarse = torch.from_numpy(random.uniform(0, 255, (4, 3, 7, 7)))
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").permute(0, 2, 3, 1).numpy()
    return np.clip(smooth + random.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)


@functools.cache
def ours(name: str) -> Network:
    return network(known(name), NETWORKS[name], size=SIZE, name=name.rpartition(":")[2])


def theirs(name: str, layers: tuple[str, ...]) -> NDArray[np.float32]:
    # The same arithmetic as the engine's: deep random networks make much of the last bit of their input.
    batch: Tensor = (torch.from_numpy(random_images()).permute(0, 3, 1, 2).float() - 127.5) / 127.5
    return library(GradCAM, known(name), layers, batch, targets=[ClassifierOutputTarget(c) for c in CLASSES])


def rendered(name: str, layers: tuple[str, ...]) -> NDArray[np.float32]:
    requests = [
        EngineRequest(pixels=image, classes=(c,), layers=layers) for image, c in zip(random_images(), CLASSES, strict=True)
    ]
    maps = []
    for result in ours(name).run(requests):
        assert isinstance(result, EngineResult)
        (heatmap,) = scale_maps(result.maps, polarity="positive", scale="minmax", input_size=(SIZE, SIZE))
        maps.append(heatmap.values)
    return np.stack(maps)


@pytest.mark.parametrize(("name", "layers"), [*((n, (layer,)) for n, layer in NETWORKS.items()), *FUSED.items()])
def test_equals_pytorch_grad_cam(name: str, layers: tuple[str, ...]) -> None:
    expected, found = theirs(name, layers), rendered(name, layers)
    assert found.std() > 0.01, "blank maps would agree with anything"
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    flat = (found.reshape(4, -1).argmax(axis=1), expected.reshape(4, -1).argmax(axis=1))
    np.testing.assert_array_equal(*flat)
