"""Small networks and whole ones with seeded weights, shared by the tests. Nothing here touches the network or the disk."""

from __future__ import annotations

import functools
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from service.engine.network import Network
from service.engine.runtimes import TORCH_FP32, RuntimeOptions
from service.engine.sources import LoadedNetwork
from service.vocabulary import Preprocessing

VIT_SIDE = 96


class OneConv(nn.Module):
    """captum's `BasicModel_ConvNet_One_Conv`: a 3x3 convolution, a ReLU, a linear layer whose weights are all one."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 3, 1)
        self.relu1 = nn.ReLU(inplace=in_place)
        self.fc1 = nn.Linear(8, 4)
        self.conv1.weight = nn.Parameter(torch.ones(2, 1, 3, 3))
        self.conv1.bias = nn.Parameter(torch.tensor([-50.0, -75.0]))
        self.fc1.weight = nn.Parameter(torch.cat([torch.ones(4, 5), -1 * torch.ones(4, 3)], dim=1))
        self.fc1.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 1, 4, 4]`` -> ``[N, 4]``."""
        logits: Tensor = self.fc1(self.relu1(self.conv1(x)).flatten(1))
        return logits


class Pooled(nn.Module):
    """Convolutions, global average pooling, a linear layer: where Grad-CAM, HiResCAM and CAM agree."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.block = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Float ``[N, 3, h, w]`` -> ``[N, classes]``."""
        logits: Tensor = self.head(self.block(self.stem(x)).mean(dim=(2, 3)))
        return logits


def seeded(build: Any, *args: Any, seed: int = 0, **kwargs: Any) -> nn.Module:
    """A network in eval mode with frozen random weights.

    Its batch norms have seen one batch: with the statistics they are born with, activations fade from layer to layer, until
    rounding is all that two implementations could disagree about.
    """
    torch.manual_seed(seed)
    module: nn.Module = build(*args, **kwargs)
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.momentum = None  # the mean of all batches, of which there is one
        with torch.no_grad():
            module.train()(torch.randn(8, 3, 64, 64))
    return module.eval().requires_grad_(requires_grad=False)


@functools.cache
def known(name: str) -> nn.Module:
    """A torchvision network, or a timm one as "timm:name", with seeded weights; the ViT takes images of `VIT_SIDE`."""
    source, _, rest = name.rpartition(":")
    if source == "timm":
        return seeded(timm.create_model, rest, pretrained=False)
    if rest == "vit_b_16":
        vit = seeded(torchvision.models.vit_b_16, image_size=VIT_SIDE)
        nn.init.trunc_normal_(vit.get_parameter("heads.head.weight"), std=0.02)  # born as zeros: no class, no gradient
        return vit
    module = seeded(torchvision.models.get_model, rest, weights=None)
    for path, parameter in module.named_parameters():
        if path.endswith("layer_scale"):
            nn.init.ones_(parameter)  # born as 1e-6: ConvNeXt's blocks, and the GELU in them, would do nothing
    return module


def network(
    module: nn.Module,
    *layers: str,
    size: int = 32,
    name: str = "test",
    options: RuntimeOptions = TORCH_FP32,
    device: str = "cpu",
) -> Network:
    """The engine's network around a module; images are scaled to -1..1."""
    preprocessing = Preprocessing(
        height=size, width=size, resize=size, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    loaded = LoadedNetwork(module=module, preprocessing=preprocessing, digest="sha256:test")
    return Network(name, loaded, layers, torch.device(device), options=options)
