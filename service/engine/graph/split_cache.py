"""A thread-safe cache of the exports of one network, one per image size, and of its splits, one per set of layers.

An export takes seconds, a split milliseconds; the cache holds a bounded number of both. All of them run in torch, in float32.
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

MAX_GRAPHS: Final = 4  # exports in the cache, one per input size beside the card's (`fit=native`)
MAX_SPLITS: Final = 16  # splits in the cache

ImageSize = tuple[int, int]  # height, width


class SplitCache:
    """The graphs and splits of one network.

    Attributes:
        graph: the graph for images of the card's size.
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
            name: the model's name, for messages.
            module: the network.
            channels: number of channels of its images.
            size: size of the card's images.
            overrides: module path -> the layout that the card states for its output.

        Raises:
            ConfigurationError: the network cannot be exported, or a layer cannot have the layout that the card states.
        """
        self._name = name
        self._module = module
        self._channels = channels
        self._size = size
        self._overrides = dict(overrides or {})
        self._lock = threading.RLock()
        self._splits: LRUCache[tuple[ImageSize, tuple[str, ...]], Split] = LRUCache(MAX_SPLITS)
        self._graphs: LRUCache[ImageSize, NetworkGraph] = LRUCache(MAX_GRAPHS)
        self._attention: LRUCache[ImageSize, AttentionGraph] = LRUCache(MAX_GRAPHS + 1)
        self.graph = self._export(size)

    def graph_at(self, size: ImageSize) -> NetworkGraph:
        """The graph for images of this size; that of the card's size is available while another one is exported."""
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
            MethodNotApplicable: the network has no attention matrices.
        """
        with self._lock:
            if size not in self._attention:
                self._attention[size] = attention_graph(self.graph_at(size))
            return self._attention[size]

    def _export(self, size: ImageSize) -> NetworkGraph:
        return export(self._name, self._module, (self._channels, *size), self._overrides)


@dataclass(frozen=True, slots=True)
class SizedNetwork:
    """One network for images of one size (height, width)."""

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
            MethodNotApplicable: the network has no attention matrices.
        """
        return self.cache.attention_at(self.size)

    def split(self, layers: tuple[str, ...]) -> Split:
        """The network split at these layers."""
        return self.cache.split_at(self.size, layers)
