"""One loaded network: takes a batch of mixed work, gives logits and raw maps. Thread-safe, for it keeps no state per call.

The whole batch shares one trunk pass per input size; classes share it too, each as a row of the head. Colours, scales and
sizes are none of its business.
"""

from __future__ import annotations

import difflib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.attribution import explain_pictures
from service.engine.card import Card
from service.engine.graph import NetworkGraph, export
from service.engine.methods import METHODS
from service.engine.sources import Loaded, load
from service.engine.split import Split, split
from service.engine.work import LayerInfo, Outcome, Work
from service.errors import ConfigurationError, LayerNotFound, MethodNotApplicable

T = TypeVar("T")

KEPT_GRAPHS = 4  # input sizes, beside the card's, that stay exported (`fit=native`)
KEPT_SPLITS = 16  # sets of layers, beside the card's, that stay cut


class Network:
    """A network on its device, cut at its card's layers, ready to run.

    Attributes:
        precision, engine, device, digest: what every answer says of how it was computed.
        preprocessing: how a picture becomes its input.
        layers: where it can be explained, by module path, at the card's input size.
        classes: number of logits.
    """

    precision = "fp32"
    engine = "torch"

    def __init__(self, name: str, loaded: Loaded, layers: Sequence[str], device: torch.device) -> None:
        """Exports and cuts the network.

        Raises:
            ConfigurationError: it cannot be exported, or the card's layer does not exist or has no grid.
        """
        self.name = name
        self.device = str(device)
        self.digest = loaded.digest
        self.preprocessing = loaded.preprocessing
        self._device = device
        self._module = loaded.module.to(device)
        self._mean = torch.tensor(loaded.preprocessing.mean, device=device).view(1, -1, 1, 1) * 255
        self._std = torch.tensor(loaded.preprocessing.std, device=device).view(1, -1, 1, 1) * 255
        self._size = (loaded.preprocessing.height, loaded.preprocessing.width)
        self._lock = threading.Lock()
        self._splits: OrderedDict[tuple[tuple[int, int], tuple[str, ...]], Split] = OrderedDict()
        self._graphs: OrderedDict[tuple[int, int], NetworkGraph] = OrderedDict()
        self._graph = export(name, self._module, (3, *self._size))
        self.classes = int(self._graph.logits.meta["val"].shape[1])
        self.layers: dict[str, LayerInfo] = self._graph.layers()
        self.default_layers = tuple(layers)
        try:
            self.check_layers(self.default_layers)
        except LayerNotFound as error:
            raise ConfigurationError(f"card {name}: explain.layer: {error.detail}") from error
        self._default = split(self._graph, self.default_layers)

    @classmethod
    def load(cls, card: Card, device: torch.device, *, random_weights: bool = False) -> Network:
        """Builds, fills, exports and cuts the network that a card describes.

        Raises:
            ConfigurationError: the card cannot be fulfilled; the message names card, field and what would be right.
        """
        return cls(card.name, load(card, random_weights=random_weights), card.explain.layer, device)

    def check_layers(self, layers: Sequence[str]) -> None:
        """Checks that the network can be explained at each of these module paths.

        Raises:
            LayerNotFound: one of them does not exist or has no grid; the message lists layers that fit.
        """
        for layer in layers:
            if layer not in self.layers:
                near = difflib.get_close_matches(layer, self.layers, n=3, cutoff=0.5)
                fit = list(dict.fromkeys([*near, *list(self.layers)[::-1]]))[:24]
                raise LayerNotFound(
                    f"layer: no layer of this model with a grid to explain. Layers that fit, among others: {', '.join(fit)}; "
                    f"GET /models/{self.name} lists all {len(self.layers)}."
                )

    def check_method(self, method: str) -> None:
        """Checks that a method exists and fits this network.

        Raises:
            MethodNotApplicable: it does not; the message lists those that do.
        """
        if method not in METHODS:
            raise MethodNotApplicable(f"method: no such method. Methods that fit this model: {', '.join(METHODS)}.")

    def run(self, works: Sequence[Work]) -> list[Outcome | Exception]:
        """Runs a batch: as many answers as works, in order; an item whose numbers are not finite answers with its error."""
        answers: dict[int, Outcome | Exception] = {}
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, work in enumerate(works):
            by_size.setdefault((work.pixels.shape[0], work.pixels.shape[1]), []).append(index)
        for size, indices in by_size.items():
            answers.update(zip(indices, self._run_one_size(size, [works[i] for i in indices]), strict=True))
        return [answers[index] for index in range(len(works))]

    def warm(self, batch_sizes: Sequence[int]) -> None:
        """Runs the whole way once per batch size, so that the first request meets nothing cold."""
        blank = np.zeros((*self._size, 3), np.uint8)
        for size in batch_sizes:
            self.run([Work(blank, best=1)] * size)

    def _run_one_size(self, size: tuple[int, int], works: Sequence[Work]) -> list[Outcome | Exception]:
        asked = [work.layers or self.default_layers for work in works]
        parts = self._split(size, tuple(dict.fromkeys(layer for layers in asked for layer in layers)))
        with torch.no_grad():
            crossing = parts.trunk(self._normalised(np.stack([work.pixels for work in works])))

        return explain_pictures(parts, crossing, [replace(w, layers=layers) for w, layers in zip(works, asked, strict=True)])

    def _normalised(self, pixels: NDArray[np.uint8]) -> Tensor:
        """uint8 ``[N, h, w, 3]`` -> float32 ``[N, 3, h, w]`` with the card's mean and standard deviation, on the device."""
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2)
        return images.to(torch.float32, memory_format=torch.contiguous_format).sub_(self._mean).div_(self._std)

    def _split(self, size: tuple[int, int], layers: tuple[str, ...]) -> Split:
        """The network cut at these layers for this picture size; kept, a bounded number of them."""
        if size == self._size and layers == self.default_layers:
            return self._default
        with self._lock:
            return _kept(self._splits, KEPT_SPLITS, (size, layers), lambda: split(self._graph_for(size), layers))

    def _graph_for(self, size: tuple[int, int]) -> NetworkGraph:
        if size == self._size:
            return self._graph
        return _kept(self._graphs, KEPT_GRAPHS, size, lambda: export(self.name, self._module, (3, *size)))


K = TypeVar("K", bound=Hashable)


def _kept(cache: OrderedDict[K, T], limit: int, key: K, make: Callable[[], T]) -> T:
    """`cache[key]`, made when it is not there; the least recently used goes when there are more than `limit`."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > limit:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]
