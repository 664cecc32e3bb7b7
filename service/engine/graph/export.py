"""Exports a network as one functional graph, which can be split at any layer without hooks or state on the module.

In a functional graph no operation writes into the output of another: an in-place ReLU behind a layer (DenseNet has them) cannot
change the activations of that layer, and autograd can compute the gradient at any node.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from service.engine.device import BUILD_LOCK
from service.engine.graph.dimensions import Dimensions, DimensionTracker, operation, per_image, shape
from service.engine.graph.functionalize import functionalize, replace_copies
from service.engine.graph.layout import Layout, LayoutOverride, layout_of
from service.engine.types import LayerInfo
from service.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class NetworkGraph:
    """The exported network.

    Attributes:
        module: the functional graph; one placeholder ``[N, C, height, width]``, one output ``[N, classes]``.
        image: the placeholder.
        logits: the node that the graph returns.
        batch: the symbol of N in the shapes that nodes carry in ``meta["val"]``, a ``torch.SymInt``.
        dimensions: for each node whose dimensions are known, the meaning of each dimension of its tensor.
    """

    module: fx.GraphModule
    image: fx.Node
    logits: fx.Node
    batch: Any
    dimensions: Mapping[fx.Node, Dimensions]

    def layer_nodes(self) -> dict[str, fx.Node]:
        """Module path -> the last node that the module computed, for every module that computed a node for the logits."""
        last: dict[str, fx.Node] = {}
        used = inputs_of(self.logits)
        for node in self.module.graph.nodes:
            if node.op == "call_function" and node in used:
                for path, _kind in (node.meta.get("nn_module_stack") or {}).values():
                    last[path] = node
        last.pop("", None)
        return last

    def grid_of(self, node: fx.Node) -> tuple[Layout, int, tuple[int, int]] | None:
        """Layout, channels and (rows, columns) of a node that is a floating-point grid of more than one cell; else None."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not value.is_floating_point() or self.per_image(value.shape[0]) != 1:
            return None
        grid = layout_of(self.dimensions.get(node, ()), (0, *map(int, value.shape[1:])))
        return grid if grid is not None and grid[2][0] * grid[2][1] > 1 else None

    def layers(self) -> dict[str, LayerInfo]:
        """Every module whose output is a grid of channels with more than one cell, in the order of their computation."""
        layers: dict[str, LayerInfo] = {}
        for path, node in self.layer_nodes().items():
            grid = self.grid_of(node)
            if grid is not None:
                layout, channels, size = grid
                layers[path] = LayerInfo(name=path, channels=channels, grid=size, layout=layout.kind)
        return layers

    def layout(self, layer: str) -> Layout:
        """The layout of one of `layers()`."""
        grid = self.grid_of(self.layer_nodes()[layer])
        assert grid is not None
        return grid[0]

    def named_grids(self) -> dict[fx.Node, str]:
        """The grids at the ends of modules, pooled ones excepted, by node, each with the path of its module."""
        names: dict[fx.Node, str] = {}
        for path, node in self.layer_nodes().items():
            # Where several modules end on the same node, the node goes by the shortest path: `features`, not `features.18.2`.
            if self.grid_of(node) is not None and not operation(node).startswith("adaptive"):
                names[node] = min(names.get(node, path), path, key=lambda candidate: candidate.count("."))
        return names

    def default_layer(self) -> str | None:
        """The layer to explain at where neither card nor request names one; None for a network without a grid.

        For a convolutional network it is the last grid before pooling. For a transformer it is the input of the last attention
        (the first norm of the last block, or the sum before it where the norm comes after the attention): behind that attention
        the classifier reads the class token alone, and the gradient at every patch is zero.
        """
        names = self.named_grids()
        if not names:
            return None
        attention = [node for node in self.module.graph.nodes if is_attention(node)]
        convolutions = [node for node in names if operation(node) in {"conv2d", "batch_norm"}]
        if attention and all(node < attention[-1] for node in convolutions):
            source = _nearest_input(attention[-1], names, queries=True) or _nearest_input(attention[-1], names, queries=False)
            if source is not None:
                return names[source]
        return names[max(names)]

    def per_image(self, size: Any) -> int:
        """How many entries of a dimension of this size belong to one image; 0 where it is no multiple of the batch size."""
        return per_image(size, self.batch)


def export(
    name: str, module: nn.Module, input_shape: tuple[int, int, int], overrides: Mapping[str, LayoutOverride] | None = None
) -> NetworkGraph:
    """Exports an eval-mode network for any batch of one image size.

    Args:
        name: the model's name, for messages.
        module: maps float32 ``[N, C, height, width]`` to logits ``[N, classes]``.
        input_shape: (C, height, width).
        overrides: module path -> the layout that a card states for its output, in place of the layout that the graph tells.

    Raises:
        ConfigurationError: the network cannot be exported, does not map one batch of images to one batch of logits, or an
            override does not fit.
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    example = torch.zeros(2, *input_shape, device=device)
    try:
        with BUILD_LOCK, torch.no_grad():
            program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
            exported = program.module(check_guards=False)
            if not functionalize(exported.graph):
                # With an empty table run_decompositions only functionalizes the graph, which takes seconds.
                exported = program.run_decompositions({}).module(check_guards=False)
                replace_copies(exported.graph)
            for node in exported.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
                # The network was exported with one attention kernel. Another, such as the twice differentiable one or explicit
                # matrix products, may return a result with strides of which no view exists.
                node.target = torch.ops.aten.reshape.default
            exported.recompile()
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigurationError(
            f"card {name}: the network cannot be exported by torch.export with a free batch size: {reason[:400]}. Its forward "
            "must be free of data-dependent Python control flow"
        ) from error
    assert isinstance(exported, fx.GraphModule)
    return network_graph(name, exported, overrides or {})


def network_graph(name: str, exported: fx.GraphModule, overrides: Mapping[str, LayoutOverride]) -> NetworkGraph:
    """The network of an exported graph; arguments and errors as in `export`."""
    nodes = list(exported.graph.nodes)
    images = [node for node in nodes if node.op == "placeholder"]
    results = nodes[-1].args[0]
    if isinstance(results, (tuple, list)) and len(results) == 1:
        results = results[0]
    value = results.meta.get("val") if isinstance(results, fx.Node) else None
    if len(images) != 1 or not isinstance(results, fx.Node) or not isinstance(value, Tensor) or value.dim() != 2:
        raise ConfigurationError(f"card {name}: a classifier takes one image tensor and gives one tensor [N, classes]")
    batch = images[0].meta["val"].shape[0]
    if not isinstance(batch, torch.SymInt):
        raise ConfigurationError(f"card {name}: the network fixes its batch size to {batch}; it must take any batch")
    dimensions = DimensionTracker(images[0], lambda size: per_image(size, batch)).follow(nodes)
    graph = NetworkGraph(module=exported, image=images[0], logits=results, batch=batch, dimensions=MappingProxyType(dimensions))
    if not overrides:
        return graph
    return replace(graph, dimensions=MappingProxyType({**dimensions, **_dimension_overrides(name, graph, overrides)}))


def _dimension_overrides(name: str, graph: NetworkGraph, overrides: Mapping[str, LayoutOverride]) -> dict[fx.Node, Dimensions]:
    """The dimensions of the layers whose layout the card states."""
    nodes = graph.layer_nodes()
    height, width = map(int, graph.image.meta["val"].shape[2:])
    by_node: dict[fx.Node, Dimensions] = {}
    for layer, override in overrides.items():
        sizes = (shape(nodes[layer]) or ()) if layer in nodes else ()
        dimensions = override.dimensions((0, *map(int, sizes[1:])), (height, width))
        if dimensions is None:
            raise ConfigurationError(
                f"card {name}: explain.layout: {layer} cannot be {override.kind} with {override.prefix} prefix tokens: its "
                f"sizes are {('N', *map(int, sizes[1:])) if sizes else 'unknown'}"
            )
        by_node[nodes[layer]] = dimensions
    return by_node


def depends_on(start: set[fx.Node]) -> set[fx.Node]:
    """`start`, and every node that is computed from one of its nodes."""
    return _reachable(start, lambda node: node.users)


def inputs_of(node: fx.Node) -> set[fx.Node]:
    """A node and every node from which it is computed."""
    return _reachable({node}, lambda other: other.all_input_nodes)


def _reachable(start: set[fx.Node], neighbours: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    """`start`, and every node that is reached from it from neighbour to neighbour."""
    reached = set(start)
    stack = list(start)
    while stack:
        for node in neighbours(stack.pop()):
            if node not in reached:
                reached.add(node)
                stack.append(node)
    return reached


def is_attention(node: fx.Node) -> bool:
    """Whether a node is attention: a scaled dot product, or a softmax whose result is a factor of a matrix product."""
    if operation(node) == "softmax":
        return any(operation(user) in {"matmul", "bmm"} for user in node.users)
    return operation(node) == "scaled_dot_product_attention"


def _nearest_input(attention: fx.Node, names: Container[fx.Node], *, queries: bool) -> fx.Node | None:
    """The node of `names` from which attention is computed with the fewest nodes between; projections do not count.

    Args:
        attention: the node of the attention.
        names: the candidates.
        queries: whether to follow the queries alone, for keys may lie on a coarser grid.
    """
    queue = [attention]
    for node in queue:
        if node in names and operation(node) not in {"linear", "conv2d"}:
            return node
        parents = node.all_input_nodes
        product = operation(node) in {"scaled_dot_product_attention", "matmul", "bmm"}
        queue += [parent for parent in (parents[:1] if product and queries else parents) if parent not in queue]
    return None


def is_size(node: fx.Node) -> bool:
    """Whether a node computes a size rather than a tensor."""
    return isinstance(node.meta.get("val"), (int, torch.SymInt)) and node.op == "call_function"


def is_batch_size(node: fx.Node, image: fx.Node) -> bool:
    """Whether a node is the batch size, the first size of the image tensor."""
    return node.target in {torch.ops.aten.sym_size.int, operator.getitem} and node.args == (image, 0)
