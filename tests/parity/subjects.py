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

from service.engine.network import Network
from service.engine.sources import LoadedNetwork
from service.engine.types import EngineResult
from service.imaging.heatmap import scale_maps
from service.vocabulary import Polarity, Preprocessing
from tests.engine.methods.queries import normalised, random_image, request_for
from tests.networks import VIT_SIDE, known
from tests.parity.oracle import Maps, channels_last, tokens


@dataclass(frozen=True)
class Subject:
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
        height, width = self.size
        preprocessing = Preprocessing(
            height=height, width=width, resize=min(self.size), interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
        )
        loaded = LoadedNetwork(module=self.module, preprocessing=preprocessing, digest="sha256:test")
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
        requests = [
            request_for(self.network, method, pixels, *classes, best=best, layers=layers, **parameters)
            for pixels in self.random_images(*seeds)
        ]
        results = []
        for result in self.network.run(requests):
            assert isinstance(result, EngineResult), result
            results.append(result)
        return results

    def raw(self, method: str, **asked: Any) -> Tensor:
        """The one signed map of one image, as the method gives it."""
        (result,) = self.explained(method, **asked)
        return torch.from_numpy(result.maps[0][0])

    def rendered(self, results: list[EngineResult], polarity: Polarity = "positive") -> Maps:
        """The maps a client gets of one class each: ``[n, h, w]``, 0..1."""
        maps = []
        for result in results:
            (heat,) = scale_maps(result.maps, polarity=polarity, scale="minmax", input_size=self.size)
            maps.append(heat.values)
        return np.stack(maps)


PATCHES = VIT_SIDE // 16  # of ViT-B/16, on a side

# Not square, but for the ViT's.
WIDE = {
    subject.name: subject
    for subject in (
        Subject("resnet18", "layer4", (96, 128)),
        Subject("resnet50", "layer4", (96, 128)),
        Subject("vgg16", "features", (96, 128), class_id=1),
        Subject("timm:tf_efficientnet_lite0", "bn2", (96, 128)),
        Subject("densenet121", "features", (96, 128)),
        Subject("mobilenet_v3_large", "features", (96, 128)),
        Subject("convnext_tiny", "features", (96, 128)),
        Subject("swin_t", "features.7.1.norm1", (96, 128), channels_last),
        Subject("vit_b_16", "encoder.layers.encoder_layer_11.ln_1", (VIT_SIDE, VIT_SIDE), tokens(1, PATCHES, PATCHES)),
    )
}
# For methods that ask a network often. What is compared is arithmetic, which does not know how large an image is.
SMALL = {
    name: replace(subject, size=subject.size if name == "vit_b_16" else (64, 64), class_id=281)
    for name, subject in WIDE.items()
}
SMALL["vgg16"] = replace(SMALL["vgg16"], layer="features.21")
