"""The layers at which a network can be explained where nobody names one, in the order in which they are tried.

The deepest grid is usually the best one, but not always: in CoaT and CvT the class token leaves the grid before the last norm,
and what the classifier reads no longer depends on the cells. Whether a layer carries evidence can only be measured
(`service.engine.layer_choice`); this module says what to measure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from torch import fx

from service.engine.graph.dimensions import operation, shape
from service.engine.graph.export import NetworkGraph, inputs_of

PROJECTIONS: Final = {"linear", "conv2d", "batch_norm"}  # compute queries, keys, values, or a part of a block
ATTENTIONS: Final = {"softmax", "_softmax", "scaled_dot_product_attention"}
MAX_CANDIDATES: Final = 32


def candidates(network: NetworkGraph) -> tuple[str, ...]:
    """Module paths to explain at, the best first; () for a network without a grid.

    First is `NetworkGraph.default_layer`, unless it is a projection inside the last attention, which has only a part of the
    evidence, or lies before other attentions too, as where the tokens between are no grid. Then come the inputs of the
    attentions from the last to the first, then the other grids from the deepest on, those that are only a projection last.
    """
    first = network.default_layer()
    if first is None:
        return ()
    grids = network.named_grids()
    deepest = sorted(grids, reverse=True)
    complete = [node for node in deepest if operation(node) not in PROJECTIONS]
    dominators = _immediate_dominators(network)
    attentions = [node for node in reversed(dominators) if operation(node) in ATTENTIONS]
    inputs = list(_attention_inputs(attentions, complete, dominators))
    first_node = network.layer_nodes()[first]
    is_inside = bool(inputs) and inputs[0] < first_node < attentions[0]
    is_early = bool(attentions) and _is_before_another(first_node, attentions[0], attentions)
    others = (*complete, *deepest) if is_early else (*inputs, *complete, *deepest)
    paths = [grids[node] for node in others]
    return tuple(dict.fromkeys(paths if is_inside or is_early else [first, *paths]))[:MAX_CANDIDATES]


def _attention_inputs(
    attentions: Sequence[fx.Node], grids: Sequence[fx.Node], dominators: Mapping[fx.Node, fx.Node]
) -> Iterator[fx.Node]:
    """For each attention, the nearest of `grids` through which its queries, keys and values all pass, if it has one."""
    for attention in attentions:
        source: fx.Node | None = attention
        while source is not None and source not in grids:
            source = dominators.get(source)
        if source is not None and not _is_before_another(source, attention, attentions):
            yield source


def _is_before_another(source: fx.Node, attention: fx.Node, attentions: Sequence[fx.Node]) -> bool:
    """Whether another attention lies between a node and an attention that is computed from it."""
    between = [other for other in attentions if source < other < attention]
    return bool(between) and not inputs_of(attention).isdisjoint(between)


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
