"""Probes of whole networks and of functions that are no network, for the tests of methods."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from service.engine.graph.export import NetworkGraph, export
from service.engine.methods import METHODS
from service.engine.methods.probe import Probe
from service.engine.network import Network
from service.engine.types import EngineRequest, EngineResult, MethodParameters


class Recording(Probe):
    """A probe that keeps the points at which gradients were asked."""

    def gradient(self, images: Tensor) -> Tensor:
        points: list[Tensor] = self.__dict__.setdefault("points", [])
        points.append(images.detach())
        return super().gradient(images)

    @property
    def asked(self) -> Tensor:
        return torch.cat(self.__dict__["points"])


def probe(module: nn.Module, image: Tensor, method: str, class_id: int = 0, **parameters: Any) -> Recording:
    """A probe of a network for an image ``[1, C, H, W]``; parameters not given are the method's own."""
    return probe_of(
        export("probed", module, (image.shape[1], image.shape[2], image.shape[3])), image, method, class_id, **parameters
    )


def probe_of(graph: NetworkGraph, image: Tensor, method: str, class_id: int = 0, **parameters: Any) -> Recording:
    """As `probe`, for a network that is exported already."""
    tuned = METHODS[method].resolve_parameters(MethodParameters(**parameters))
    built = Recording(graph, image, class_id, None, torch.empty(0), (), tuned, method)
    return replace(built, logits=built.forward(image)[0])


def explore(probing: Probe) -> Tensor:
    """The one map of a method that knows no layer."""
    method = METHODS[probing.method].explore
    assert method is not None
    (found,) = method(probing)
    return found


def explained(net: Network, work: EngineRequest) -> EngineResult:
    """What the network says of one work, with the method's own parameters where none are given."""
    (found,) = net.run([replace(work, parameters=METHODS[work.method].resolve_parameters(work.parameters))])
    assert isinstance(found, EngineResult), found
    return found


def random_image(size: int = 224, seed: int = 7) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth blobs and noise, uint8 ``[size, size, 3]``."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.uniform(0, 255, (1, 3, 7, 7)))
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")[0].permute(1, 2, 0).numpy()
    return np.clip(smooth + random.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)


def normalised(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    """As `tests.networks.network` normalises: ``[1, 3, h, w]``."""
    return (torch.from_numpy(pixels).permute(2, 0, 1)[None].float().contiguous() - 127.5) / 127.5
