"""Queries of whole networks and of functions that are no network, and requests, for the tests of methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.engine.batch import EngineRequest
from service.engine.graph.export import NetworkGraph
from service.engine.graph.runner import ChunkedRunner
from service.engine.graph.split_cache import SizedNetwork, SplitCache
from service.engine.methods import METHODS
from service.engine.methods.method import Query, QueryMethod, Target
from service.engine.network import Network
from service.engine.types import EngineResult, MethodParameters


class RecordingRunner(ChunkedRunner):
    """A runner that keeps the points at which gradients were asked."""

    def __init__(self, network: NetworkGraph) -> None:
        super().__init__(network)
        self._points: list[Tensor] = []

    def gradient(self, images: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
        self._points.append(images.detach())
        return super().gradient(images, score)

    @property
    def points(self) -> Tensor:
        """All of them, ``[n, C, H, W]``."""
        return torch.cat(self._points)


def query_of(module: nn.Module, image: Tensor, method: str, class_id: int = 0, **parameters: Any) -> Query:
    """What a method of no layer is asked about a module, for an image ``[1, C, H, W]``; parameters not given are its own."""
    _, channels, height, width = image.shape
    cache = SplitCache("queried", module, channels, (height, width))
    return sized_query(SizedNetwork(cache, (height, width)), image, method, class_id, **parameters)


def sized_query(network: SizedNetwork, image: Tensor, method: str, class_id: int = 0, **parameters: Any) -> Query:
    """As `query_of`, for a network that is exported already."""
    runner = RecordingRunner(network.graph)
    return Query(
        network=network,
        runner=runner,
        image=image,
        target=Target(class_id),
        logits=runner.forward(image)[0],
        layers=(),
        parameters=METHODS[method].with_defaults(MethodParameters(**parameters)),
    )


def points_of(query: Query) -> Tensor:
    """The points ``[n, C, H, W]`` at which a query of this module asked for gradients."""
    assert isinstance(query.runner, RecordingRunner)
    return query.runner.points


def explain(method: str, query: Query) -> Tensor:
    """The one map of a method that knows no layer."""
    queried = METHODS[method]
    assert isinstance(queried, QueryMethod)
    (found,) = queried.explain(query)
    return found


def explain_module(module: nn.Module, image: Tensor, method: str, class_id: int = 0, **parameters: Any) -> Tensor:
    """The one map of a method that knows no layer, as `query_of` asks for it."""
    return explain(method, query_of(module, image, method, class_id, **parameters))


def request_for(
    network: Network,
    method: str,
    pixels: NDArray[np.uint8],
    *classes: int,
    best: int = 0,
    versus: int | None = None,
    layers: tuple[str, ...] = (),
    **parameters: Any,
) -> EngineRequest:
    """A request as the service makes it; parameters not given are the method's own."""
    resolved, complete = network.resolve_method(method, MethodParameters(**parameters))
    return EngineRequest(
        pixels=pixels, classes=classes, best=best, versus=versus, method=resolved, parameters=complete, layers=layers
    )


def run_one(network: Network, request: EngineRequest) -> EngineResult:
    """What the network says of one request."""
    (result,) = network.run([request])
    assert isinstance(result, EngineResult), result
    return result


def random_image(size: int = 224, seed: int = 7) -> NDArray[np.uint8]:
    """Smooth blobs and noise, uint8 ``[size, size, 3]``."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.uniform(0, 255, (1, 3, 7, 7)))
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")[0].permute(1, 2, 0).numpy()
    return np.clip(smooth + random.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)


def normalised(pixels: NDArray[np.uint8]) -> Tensor:
    """As `tests.networks.network` normalises: ``[1, 3, h, w]``."""
    return (torch.from_numpy(pixels).permute(2, 0, 1)[None].float().contiguous() - 127.5) / 127.5
