"""Splits an exported network at one or more layers into the trunk before them and the head behind them.

The trunk (image -> activations, and all other values that cross the split) runs without autograd, in the fastest runtime. The
head (activations -> logits) runs under autograd on fresh leaves, so that an explanation costs hardly more than a prediction,
and several classes of one image share its trunk. Every node that does not depend on a layer of the split belongs to the trunk.
Of the trunk's values the head needs tensors, which cross the split (a residual stream, say), and sizes and constants, which the
head computes again from its own rows.
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
    """One value that crosses the split.

    Attributes:
        dim: the batch dimension, None for a value that all images share.
        per_image: how many entries of that dimension belong to one image.
    """

    dim: int | None
    per_image: int = 1

    def select(self, value: Tensor, rows: Tensor) -> Tensor:
        """The value for the head's rows; `rows` int64 ``[R]`` is the index of each row's image."""
        if self.dim is None:
            return value
        if self.per_image == 1:
            return value.index_select(self.dim, rows)
        shape = list(value.shape)
        by_image = value.reshape(*shape[: self.dim], -1, self.per_image, *shape[self.dim + 1 :])
        return by_image.index_select(self.dim, rows).flatten(self.dim, self.dim + 1)


@dataclass(frozen=True, kw_only=True)
class Split:
    """A network split at `layers`.

    Attributes:
        layers: the module paths, in the order of the arguments of `split`.
        trunk: float ``[N, C, h, w]`` -> the crossing values; by torch in float32, unless another runtime replaces it.
        head: the crossing values -> (logits ``[R, classes]``, activations of each layer in order).
        crossings: for each crossing value, how it is repeated for the head's rows.
        leaves: the indices of the crossing values that are activations of the layers, which become autograd's leaves.
        layouts: the layout of each layer's activations.
        pooled: the head in closed form; None for a head without one.
    """

    layers: tuple[str, ...]
    trunk: Trunk
    head: fx.GraphModule
    crossings: tuple[Crossing, ...]
    leaves: tuple[int, ...]
    layouts: tuple[Layout, ...]
    pooled: PooledHead | None

    def enter(self, crossing_values: Sequence[Tensor], rows: Tensor | None) -> list[Tensor]:
        """The head's inputs: the crossing values for `rows` (None: each image once), the activations as fresh leaves."""
        values = list(crossing_values)
        if rows is not None:
            values = [crossing.select(value, rows) for crossing, value in zip(self.crossings, values, strict=True)]
        for leaf in self.leaves:
            values[leaf] = values[leaf].detach().requires_grad_()
        return values


def split(network: NetworkGraph, layers: Sequence[str]) -> Split:
    """Splits the network at the outputs of the named modules.

    Args:
        network: the exported network.
        layers: module paths, each one of ``network.layers()``.

    Raises:
        ConfigurationError: a value that crosses the split cannot be repeated per image.
    """
    nodes = network.layer_nodes()
    layer_nodes = {path: nodes[path] for path in layers}
    dependents = depends_on(set(layer_nodes.values()))
    # A layer behind another layer of the split is computed inside the head; the others are the head's leaves.
    leaf_nodes = {node for node in layer_nodes.values() if not any(parent in dependents for parent in node.all_input_nodes)}
    head_nodes = dependents - leaf_nodes
    recomputable, crossing = _head_inputs(network, head_nodes, leaf_nodes)
    outputs = [network.logits, *layer_nodes.values()]
    trunk = _extract_subgraph(network, [network.image], crossing, outputs=crossing, keep=None)
    head = _extract_subgraph(network, crossing, outputs, outputs=outputs, keep=head_nodes | recomputable)
    return Split(
        layers=tuple(layers),
        trunk=TorchTrunk(trunk),
        head=head,
        crossings=tuple(_crossing_of(network, node) for node in crossing),
        leaves=tuple(crossing.index(node) for node in sorted(leaf_nodes)),
        layouts=tuple(network.layout(layer) for layer in layers),
        pooled=pooled_head(head),
    )


def _head_inputs(network: NetworkGraph, head: set[fx.Node], leaf_nodes: set[fx.Node]) -> tuple[set[fx.Node], list[fx.Node]]:
    """The trunk's nodes that the head reads: those it computes again (sizes, constants), and those that cross, leaves first.

    The order is the same in every process, for a trunk that is compiled in one may serve in another.
    """
    image_dependents = depends_on({network.image})
    recomputable: set[fx.Node] = set()
    crossing: set[fx.Node] = set()
    stack = [parent for node in head for parent in node.all_input_nodes if parent not in head]
    while stack:
        node = stack.pop()
        if node in recomputable or node in crossing or node in leaf_nodes:
            continue
        is_recomputable = node not in image_dependents or is_batch_size(node, network.image) or is_size(node)
        if not is_recomputable:
            crossing.add(node)
            continue
        recomputable.add(node)
        if not is_batch_size(node, network.image):
            stack.extend(node.all_input_nodes)
    return recomputable, [*sorted(leaf_nodes), *sorted(crossing)]


def _extract_subgraph(
    network: NetworkGraph, inputs: list[fx.Node], targets: list[fx.Node], *, outputs: list[fx.Node], keep: set[fx.Node] | None
) -> fx.GraphModule:
    """The subgraph that computes `outputs` from `inputs`; parameters are shared, not copied."""
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


def _crossing_of(network: NetworkGraph, node: fx.Node) -> Crossing:
    """Finds the batch dimension of a crossing tensor, and how many of its entries belong to one image."""
    value: Any = node.meta.get("val")
    if not isinstance(value, Tensor):
        raise ConfigurationError(f"layer: the network cannot be split here: {node.name} is not a tensor")
    for dim, size in enumerate(value.shape):
        per_image = network.per_image(size)
        if per_image:
            return Crossing(dim, per_image)
    return Crossing(None)
