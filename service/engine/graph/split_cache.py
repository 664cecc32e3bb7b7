"""One network, exported for the image sizes it meets and cut at the layers it is asked about. Thread-safe.

Exporting takes seconds and cutting milliseconds; both are kept, a bounded number of them. All of it runs in torch, in float32.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from torch import nn

from service.engine.graph.export import NetworkGraph, export
from service.engine.graph.layout import LayoutOverride
from service.engine.graph.split import Split, split
from service.errors import ConfigurationError

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

KEPT_GRAPHS = 4  # input sizes, beside the card's, that stay exported (`fit=native`)
KEPT_SPLITS = 16  # sets of layers that stay cut


class SplitCache:
    """The graphs and cuts of one network.

    Attributes:
        graph: at the card's own image size.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        channels: int,
        size: tuple[int, int],
        stated: tuple[Sequence[str], LayoutOverride] | None,
    ) -> None:
        """Exports the network.

        Args:
            name: the model's, for messages.
            module: the network.
            channels: of its images.
            size: (height, width) of the card's.
            stated: layers, and the layout that the card says they have.

        Raises:
            ConfigurationError: it cannot be exported, or a layer does not have the layout stated.
        """
        self._name = name
        self._module = module
        self._channels = channels
        self._size = size
        self._stated = stated
        self._lock = threading.Lock()
        self._splits: OrderedDict[tuple[tuple[int, int], tuple[str, ...]], Split] = OrderedDict()
        self._graphs: OrderedDict[tuple[int, int], NetworkGraph] = OrderedDict()
        self.graph = self._exported(size)

    def at(self, size: tuple[int, int]) -> NetworkGraph:
        """The network for this image size; for the card's own size without waiting while another one is exported."""
        if size == self._size:
            return self.graph
        with self._lock:
            return self._graph_for(size)

    def split(self, size: tuple[int, int], layers: tuple[str, ...]) -> Split:
        """The network cut at these layers for this image size."""
        with self._lock:
            return _kept(self._splits, KEPT_SPLITS, (size, layers), lambda: split(self._graph_for(size), layers))

    def _graph_for(self, size: tuple[int, int]) -> NetworkGraph:
        if size == self._size:
            return self.graph
        return _kept(self._graphs, KEPT_GRAPHS, size, lambda: self._exported(size))

    def _exported(self, size: tuple[int, int]) -> NetworkGraph:
        graph = export(self._name, self._module, (self._channels, *size))
        if self._stated is not None:
            try:
                graph.state(*self._stated)
            except ConfigurationError as error:
                raise ConfigurationError(f"card {self._name}: {error}") from error
        return graph


def _kept(cache: OrderedDict[K, T], limit: int, key: K, make: Callable[[], T]) -> T:
    """`cache[key]`, made when it is not there; the least recently used goes when there are more than `limit`."""
    if key not in cache:
        cache[key] = make()
        if len(cache) > limit:
            cache.popitem(last=False)
    cache.move_to_end(key)
    return cache[key]
