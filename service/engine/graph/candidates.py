"""The layers at which a network can be explained where nobody names one, in the order in which they are tried.

The deepest grid is usually the best one, but not always: in CoaT and CvT the class token leaves the grid before the last norm,
and what the classifier reads no longer depends on the cells. Whether a layer carries evidence can only be measured
(`service.engine.layer_choice`); this module says what to measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from torch import fx

from service.engine.graph.dimensions import operation, shape
from service.engine.graph.export import NetworkGraph

PROJECTIONS: Final = {"linear", "conv2d", "batch_norm"}  # compute queries, keys, values, or a part of a block
MAX_CANDIDATES: Final = 32


def candidates(network: NetworkGraph) -> tuple[str, ...]:
    """Module paths to explain at, the best first; () for a network without a grid.

    First is `NetworkGraph.default_layer`, then the inputs of the attentions from the last to the first, then the other grids
    from the deepest on, those that are only a projection last. A layer on which no logit depends is left out.
    """
    first = network.default_layer()
    if first is None:
        return ()
    grids = network.named_grids()
    used = _inputs_of(network.logits)
    deepest = [node for node in sorted(grids, reverse=True) if node in used]
    complete = [node for node in deepest if operation(node) not in PROJECTIONS]
    paths = [first, *(grids[node] for node in (*_attention_inputs(network, complete), *complete, *deepest))]
    return tuple(dict.fromkeys(paths))[:MAX_CANDIDATES]


def _attention_inputs(network: NetworkGraph, grids: list[fx.Node]) -> Iterator[fx.Node]:
    """For each attention, the last first, the nearest of `grids` through which queries, keys and values all pass."""
    dominators = _immediate_dominators(network)
    for node in reversed(list(dominators)):
        if operation(node) in {"softmax", "_softmax", "scaled_dot_product_attention"}:
            source: fx.Node | None = node
            while source is not None and source not in grids:
                source = dominators.get(source)
            if source is not None:
                yield source


def _immediate_dominators(network: NetworkGraph) -> dict[fx.Node, fx.Node]:
    """For each tensor computed from the image, the last node before it through which every path from the image passes.

    Cooper, Harvey and Kennedy 2001, "A Simple, Fast Dominance Algorithm"; a graph without cycles needs one sweep.
    """
    dominators: dict[fx.Node, fx.Node] = {}
    tensors = {network.image}
    for node in network.module.graph.nodes:
        parents = [parent for parent in node.all_input_nodes if parent in tensors]
        # A size is computed from the image too, but it tells nothing of the image's content.
        if not parents or (shape(node) is None and operation(node) not in {"unbind", "split", "split_with_sizes", "chunk"}):
            continue
        tensors.add(node)
        common = set(parents)
        while len(common) > 1:
            latest = max(common)
            common = (common - {latest}) | {dominators[latest]}
        (dominators[node],) = common
    return dominators


def _inputs_of(node: fx.Node) -> set[fx.Node]:
    """A node and every node from which it is computed."""
    found = {node}
    stack = [node]
    while stack:
        for parent in stack.pop().all_input_nodes:
            if parent not in found:
                found.add(parent)
                stack.append(parent)
    return found
