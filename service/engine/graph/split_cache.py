"""A thread-safe cache of the exports of one network, one per image size, and of its splits, one per set of layers.

An export takes seconds, a split milliseconds; the cache holds a bounded number of both. All of them run in torch, in float32.
Whoever asks for something that is being made waits for it; nobody waits while something else is being made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import structlog
from cachetools import LRUCache
from torch import nn

from service.engine.disk_cache import NO_ENTRIES, Entries
from service.engine.graph.attention import AttentionGraph, attention_graph
from service.engine.graph.export import NetworkGraph, export, network_graph
from service.engine.graph.layout import LayoutOverride
from service.engine.graph.serialization import NotSerializable, deserialize, serialize
from service.engine.graph.split import Split, split

MAX_GRAPHS: Final = 4  # exports in the cache, one per input size beside the card's (`fit=native`)
MAX_SPLITS: Final = 16  # splits in the cache

ImageSize = tuple[int, int]  # height, width


log = structlog.get_logger(__name__)

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class _OnceCache(Generic[Key, Value]):
    """A bounded cache, in which concurrent threads make each value once."""

    def __init__(self, max_size: int) -> None:
        self._values: LRUCache[Key, Value] = LRUCache(max_size)
        self._lock = threading.Lock()  # of both mappings; never held while a value is made
        self._making: dict[Key, threading.Lock] = {}

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of a key, made by `make` if it is not there; errors of `make` are not cached."""
        with self._lock:
            if key in self._values:
                return self._values[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._values:  # another thread has made it in the meantime
                    return self._values[key]
            try:
                value = make()
                with self._lock:
                    self._values[key] = value
                return value
            finally:
                with self._lock:
                    self._making.pop(key, None)


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
        entries: Entries = NO_ENTRIES,
    ) -> None:
        """Exports the network.

        Args:
            name: the model's name, for messages.
            module: the network.
            channels: number of channels of its images.
            size: size of the card's images.
            overrides: module path -> the layout that the card states for its output.
            entries: what is kept of the network on disk.

        Raises:
            ConfigurationError: the network cannot be exported, or a layer cannot have the layout that the card states.
        """
        self._name = name
        self._module = module
        self._channels = channels
        self._size = size
        self._overrides = dict(overrides or {})
        self._entries = entries
        self._splits: _OnceCache[tuple[ImageSize, tuple[str, ...]], Split] = _OnceCache(MAX_SPLITS)
        self._graphs: _OnceCache[ImageSize, NetworkGraph] = _OnceCache(MAX_GRAPHS)
        self._attention: _OnceCache[ImageSize, AttentionGraph] = _OnceCache(MAX_GRAPHS + 1)
        self.graph = self._read_or_export(size)

    def graph_at(self, size: ImageSize) -> NetworkGraph:
        """The graph for images of this size."""
        return self.graph if size == self._size else self._graphs.get(size, lambda: self._read_or_export(size))

    def split_at(self, size: ImageSize, layers: tuple[str, ...]) -> Split:
        """The network split at these layers, for images of this size."""
        return self._splits.get((size, layers), lambda: split(self.graph_at(size), layers))

    def attention_at(self, size: ImageSize) -> AttentionGraph:
        """The network with its attention matrices, for images of this size.

        Raises:
            MethodNotApplicable: the network has no attention matrices.
        """
        return self._attention.get(size, lambda: attention_graph(self.graph_at(size)))

    def _read_or_export(self, size: ImageSize) -> NetworkGraph:
        shape = (self._channels, *size)
        entries = self._entries.extended(input_shape=shape)
        content = entries.read("graph")
        if content is not None:
            try:
                return network_graph(self._name, deserialize(content, self._module), self._overrides)
            except Exception as error:  # whatever is wrong with it, it is made anew
                log.warning("graph_not_read", model=self._name, reason=f"{type(error).__name__}: {error}")
        graph = export(self._name, self._module, shape, self._overrides)
        try:
            entries.write("graph", serialize(graph.module, self._module))
        except NotSerializable as error:
            log.info("graph_not_written", model=self._name, reason=str(error))
        return graph


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
