"""The nine networks of the oracle matrix: the same seeded weights and images for the service and for the other libraries."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.engine.methods import METHODS
from service.engine.network import Network
from service.engine.sources import LoadedNetwork
from service.engine.types import EngineRequest, EngineResult, MethodParameters
from service.imaging.heatmap import Polarity, scale_maps
from service.vocabulary import Preprocessing
from tests.engine.methods.probing import normalised, random_image
from tests.networks import VIT_SIDE, known
from tests.parity.oracle import Maps, channels_last, tokens


@dataclass(frozen=True)
class ImageInput:
    """Where a network is explained, for which class, and of what images.

    Attributes:
        size: (height, width) of its input.
        reshape: brings its activations to channels first.
    """

    name: str
    layer: str
    size: tuple[int, int]
    reshape: Callable[[Tensor], Tensor] | None = None
    class_id: int = 281

    @property
    def module(self) -> nn.Module:
        return known(self.name)

    @functools.cached_property
    def network(self) -> Network:
        preprocessing = Preprocessing(*self.size, min(self.size), "bilinear", (0.5,) * 3, (0.5,) * 3)
        loaded = LoadedNetwork(self.module, preprocessing, "sha256:test")
        return Network(self.name.rpartition(":")[2], loaded, (self.layer,), torch.device("cpu"))

    def random_images(self, *seeds: int) -> list[NDArray[np.uint8]]:
        height, width = self.size
        return [np.ascontiguousarray(random_image(max(self.size), seed)[:height, :width]) for seed in seeds or (7,)]

    def images(self, *seeds: int) -> Tensor:
        """What the network sees of `images`: ``[n, 3, h, w]``."""
        return torch.cat([normalised(pixels) for pixels in self.random_images(*seeds)])

    def explained(
        self, method: str, *seeds: int, best: int = 0, layers: tuple[str, ...] = (), **parameters: Any
    ) -> list[EngineResult]:
        """What the service says of each image: of the subject's class, or of so many of the best."""
        classes = () if best else (self.class_id,)
        tuned = METHODS[method].resolve_parameters(MethodParameters(**parameters))
        works = [
            EngineRequest(pixels=p, classes=classes, best=best, method=method, layers=layers, parameters=tuned)
            for p in self.random_images(*seeds)
        ]
        found = []
        for outcome in self.network.run(works):
            assert isinstance(outcome, EngineResult), outcome
            found.append(outcome)
        return found

    def raw(self, method: str, **asked: Any) -> Tensor:
        """The one signed map of one image, as the method gives it."""
        (outcome,) = self.explained(method, **asked)
        return torch.from_numpy(outcome.maps[0][0])

    def rendered(self, outcomes: list[EngineResult], polarity: Polarity = "positive") -> Maps:
        """The maps a client gets of one class each: ``[n, h, w]``, 0..1."""
        maps = []
        for outcome in outcomes:
            (heat,) = scale_maps(outcome.maps, polarity=polarity, scale="minmax", input_size=self.size)
            maps.append(heat.values)
        return np.stack(maps)


PATCHES = VIT_SIDE // 16  # of ViT-B/16, on a side

# Not square, but for the ViT's.
WIDE = {
    subject.name: subject
    for subject in (
        ImageInput("resnet18", "layer4", (96, 128)),
        ImageInput("resnet50", "layer4", (96, 128)),
        ImageInput("vgg16", "features", (96, 128), class_id=1),
        ImageInput("timm:tf_efficientnet_lite0", "bn2", (96, 128)),
        ImageInput("densenet121", "features", (96, 128)),
        ImageInput("mobilenet_v3_large", "features", (96, 128)),
        ImageInput("convnext_tiny", "features", (96, 128)),
        ImageInput("swin_t", "features.7.1.norm1", (96, 128), channels_last),
        ImageInput("vit_b_16", "encoder.layers.encoder_layer_11.ln_1", (VIT_SIDE, VIT_SIDE), tokens(1, PATCHES, PATCHES)),
    )
}
# For methods that ask a network often. What is compared is arithmetic, which does not know how large an image is.
SMALL = {
    name: replace(subject, size=subject.size if name == "vit_b_16" else (64, 64), class_id=281)
    for name, subject in WIDE.items()
}
SMALL["vgg16"] = replace(SMALL["vgg16"], layer="features.21")
