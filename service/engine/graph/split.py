"""Cuts an exported network in two at one or more layers: the trunk before, the head after.

The trunk (image -> activations, with whatever else crosses the cut) runs without autograd, however is fastest. The head
(activations -> logits) runs under autograd on fresh leaves, so that an explanation costs hardly more than a prediction, and
several classes of one image share its trunk. Every node that does not depend on a cut layer belongs to the trunk; of these
the head needs the tensors that cross (a residual stream, say), sizes, which it works out again from its own rows, and
constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from service.engine.graph.export import NetworkGraph, depends_on, is_batch_size, is_size
from service.engine.graph.layout import Layout
from service.engine.graph.pooled_head import PooledHead, pooled_head
from service.engine.runtimes.torch import TorchTrunk, Trunk
from service.errors import ConfigurationError


@dataclass(frozen=True)
class Crossing:
    """How one value crosses the cut: `dim` is the dimension that counts images, None for what all images share."""

    dim: int | None
    per_image: int = 1

    def select(self, value: Tensor, rows: Tensor) -> Tensor:
        """The value for the head's rows: `rows` int64 ``[R]`` names the image of each row."""
        if self.dim is None:
            return value
        if self.per_image == 1:
            return value.index_select(self.dim, rows)
        shape = list(value.shape)
        parts = value.reshape(*shape[: self.dim], -1, self.per_image, *shape[self.dim + 1 :])
        return parts.index_select(self.dim, rows).flatten(self.dim, self.dim + 1)


@dataclass(frozen=True, kw_only=True)
class Split:
    """A network cut at `layers`.

    Attributes:
        layers: the module paths, in the order given.
        trunk: float ``[N, C, h, w]`` -> the crossing values; torch in float32, until another runtime takes its place.
        head: the crossing values -> (logits ``[R, classes]``, activations of each layer in order).
        crossings: how each crossing value is repeated for the head's rows.
        leaves: which crossing values are activations of cut layers, to be made leaves of autograd.
        layouts: of each layer's activations.
        pooled: the head in closed form, where it has one.
    """

    layers: tuple[str, ...]
    trunk: Trunk
    head: fx.GraphModule
    crossings: tuple[Crossing, ...]
    leaves: tuple[int, ...]
    layouts: tuple[Layout, ...]
    pooled: PooledHead | None

    def enter(self, crossing: Sequence[Tensor], rows: Tensor | None) -> list[Tensor]:
        """What the head takes: crossing values for `rows` (None: each image once), activations as fresh leaves."""
        values = list(crossing)
        if rows is not None:
            values = [how.select(value, rows) for how, value in zip(self.crossings, values, strict=True)]
        for leaf in self.leaves:
            values[leaf] = values[leaf].detach().requires_grad_()
        return values


def split(network: NetworkGraph, layers: Sequence[str]) -> Split:
    """Cuts the network at the outputs of the named modules.

    Args:
        network: the exported network.
        layers: module paths, each one of ``network.layers()``.

    Raises:
        ConfigurationError: what crosses the cut cannot be repeated per image.
    """
    nodes = network.layer_nodes()
    cut = {path: nodes[path] for path in layers}
    below = depends_on(set(cut.values()))
    # A layer behind another cut layer is computed inside the head; the others are what the head starts from.
    first = {node for node in cut.values() if not any(parent in below for parent in node.all_input_nodes)}
    head_nodes = below - first
    rebuilt, crossing = _needs(network, head_nodes, first)
    trunk = _extract(network, [network.image], crossing, outputs=crossing, keep=None)
    head = _extract(
        network, crossing, [network.logits, *cut.values()], outputs=[network.logits, *cut.values()], keep=head_nodes | rebuilt
    )
    return Split(
        layers=tuple(layers),
        trunk=TorchTrunk(trunk),
        head=head,
        crossings=tuple(_crossing(network, n) for n in crossing),
        leaves=tuple(crossing.index(n) for n in sorted(first)),
        layouts=tuple(network.layout(layer) for layer in layers),
        pooled=pooled_head(head),
    )


def _needs(network: NetworkGraph, head: set[fx.Node], first: set[fx.Node]) -> tuple[set[fx.Node], list[fx.Node]]:
    """What the head needs from outside: nodes it computes again (sizes, constants), and values that cross, layers first."""
    data = depends_on({network.image})
    rebuilt: set[fx.Node] = set()
    crossing = sorted(first)
    stack = [parent for node in head for parent in node.all_input_nodes if parent not in head]
    while stack:
        node = stack.pop()
        if node in rebuilt or node in crossing:
            continue
        again = node not in data or is_batch_size(node, network.image) or is_size(node)
        if not again:
            crossing.append(node)
            continue
        rebuilt.add(node)
        if not is_batch_size(node, network.image):
            stack.extend(node.all_input_nodes)
    return rebuilt, crossing


def _extract(
    network: NetworkGraph, inputs: list[fx.Node], targets: list[fx.Node], *, outputs: list[fx.Node], keep: set[fx.Node] | None
) -> fx.GraphModule:
    """The part of the graph that computes `outputs` from `inputs`; parameters are shared, not copied."""
    needed: set[fx.Node] = set()
    stack = list(targets)
    while stack:
        node = stack.pop()
        if node not in needed and node not in inputs:
            needed.add(node)
            if not (keep is not None and is_batch_size(node, network.image)):
                stack.extend(node.all_input_nodes)
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        env[node] = graph.placeholder(node.name)
        env[node].meta = node.meta
    for node in network.module.graph.nodes:
        if node not in needed:
            continue
        if keep is not None and is_batch_size(node, network.image):
            env[node] = graph.call_function(torch.ops.aten.sym_size.int, (env[inputs[0]], 0))
        else:
            env[node] = graph.node_copy(node, env.__getitem__)
    graph.output(tuple(env[node] for node in outputs))
    graph.lint()
    return fx.GraphModule(network.module, graph)


def _crossing(network: NetworkGraph, node: fx.Node) -> Crossing:
    """Finds the dimension of a crossing tensor that counts images, or that counts a fixed number of parts of each."""
    value: Any = node.meta.get("val")
    if not isinstance(value, Tensor):
        raise ConfigurationError(f"layer: the network cannot be cut here: {node.name} is not a tensor")
    for dim, size in enumerate(value.shape):
        per_image = network.per_image(size)
        if per_image:
            return Crossing(dim, per_image)
    return Crossing(None)
