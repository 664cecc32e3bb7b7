"""One network, exported for the image sizes that it meets and split at the layers that it is asked about. Thread-safe.

Exporting takes seconds, splitting milliseconds; of both a bounded number is kept. All of it runs in torch, in float32.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cachetools import LRUCache
from torch import nn

from service.engine.graph.attention import AttentionGraph, attention_graph
from service.engine.graph.export import NetworkGraph, export
from service.engine.graph.layout import LayoutOverride
from service.engine.graph.split import Split, split

KEPT_GRAPHS: Final = 4  # input sizes, beside the card's, that stay exported (`fit=native`)
KEPT_SPLITS: Final = 16  # sets of layers that stay split

ImageSize = tuple[int, int]  # height, width


class SplitCache:
    """The graphs and splits of one network.

    Attributes:
        graph: for images of the card's own size.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        channels: int,
        size: ImageSize,
        overrides: Mapping[str, LayoutOverride] | None = None,
    ) -> None:
        """Exports the network.

        Args:
            name: the model's, for messages.
            module: the network.
            channels: of its images.
            size: of the card's images.
            overrides: module path -> the layout that the card gives it.

        Raises:
            ConfigurationError: it cannot be exported, or a layer cannot have the layout that the card gives it.
        """
        self._name = name
        self._module = module
        self._channels = channels
        self._size = size
        self._overrides = dict(overrides or {})
        self._lock = threading.RLock()
        self._splits: LRUCache[tuple[ImageSize, tuple[str, ...]], Split] = LRUCache(KEPT_SPLITS)
        self._graphs: LRUCache[ImageSize, NetworkGraph] = LRUCache(KEPT_GRAPHS)
        self._attention: LRUCache[ImageSize, AttentionGraph] = LRUCache(KEPT_GRAPHS + 1)
        self.graph = self._export(size)

    def graph_at(self, size: ImageSize) -> NetworkGraph:
        """The graph for images of this size; of the card's own size without waiting while another one is exported."""
        if size == self._size:
            return self.graph
        with self._lock:
            if size not in self._graphs:
                self._graphs[size] = self._export(size)
            return self._graphs[size]

    def split_at(self, size: ImageSize, layers: tuple[str, ...]) -> Split:
        """The network split at these layers, for images of this size."""
        with self._lock:
            if (size, layers) not in self._splits:
                self._splits[size, layers] = split(self.graph_at(size), layers)
            return self._splits[size, layers]

    def attention_at(self, size: ImageSize) -> AttentionGraph:
        """The network with its attention matrices, for images of this size.

        Raises:
            MethodNotApplicable: it has none that can be read.
        """
        with self._lock:
            if size not in self._attention:
                self._attention[size] = attention_graph(self.graph_at(size))
            return self._attention[size]

    def _export(self, size: ImageSize) -> NetworkGraph:
        return export(self._name, self._module, (self._channels, *size), self._overrides)


@dataclass(frozen=True, slots=True)
class SizedNetwork:
    """One network for images of one size (height, width): what methods look at."""

    cache: SplitCache
    size: ImageSize

    @property
    def graph(self) -> NetworkGraph:
        """The whole network."""
        return self.cache.graph_at(self.size)

    @property
    def attention(self) -> AttentionGraph:
        """The whole network with its attention matrices.

        Raises:
            MethodNotApplicable: it has none that can be read.
        """
        return self.cache.attention_at(self.size)

    def split(self, layers: tuple[str, ...]) -> Split:
        """The network split at these layers."""
        return self.cache.split_at(self.size, layers)
