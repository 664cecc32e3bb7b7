"""Writes a trunk in the operations that OpenVINO's reader of fx graphs knows.

`torch.export` can do it too, by tracing the trunk anew and decomposing every operation, but takes seconds where this takes
milliseconds. An operation that is missing here is left as it is, and the reader refuses the graph if it does not know it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

# Gives the target and arguments of an operation that equals the one at hand; None where there is none.
Rule = Callable[..., "tuple[Any, tuple[Any, ...]] | None"]


def lowered(trunk: fx.GraphModule) -> fx.GraphModule:
    """The same trunk, to be read and not to be run; parameters are shared, not copied."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in trunk.graph.nodes:
        rule = RULES.get(node.target) if node.op == "call_function" and not node.kwargs else None
        found = rule(*fx.map_arg(node.args, env.__getitem__)) if rule is not None else None
        if found is None:
            env[node] = graph.node_copy(node, env.__getitem__)
            continue
        target, arguments = found
        new = graph.call_function(target, arguments)
        # These give a tuple, of which the operation that they stand for is the first.
        if target in {aten.max_pool2d_with_indices.default, aten.native_layer_norm.default}:
            new = graph.call_function(operator.getitem, (new, 0))
        new.meta = node.meta
        env[node] = new
    return fx.GraphModule(trunk, graph)


def _convolution(
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> tuple[Any, tuple[Any, ...]]:
    sizes = (_pair(stride), _pair(padding), _pair(dilation))
    return aten.convolution.default, (x, weight, bias, *sizes, False, [0, 0], groups)


def _pad(x: fx.Node, sizes: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    return (aten.constant_pad_nd.default, (x, list(sizes), value or 0.0)) if mode == "constant" else None


def _pool(x: fx.Node, size: Sequence[int]) -> Any:
    return (aten.mean.dim, (x, [-2, -1], True)) if list(size) == [1, 1] else None


def _layer_norm(
    x: fx.Node, shape: Sequence[int], weight: fx.Node | None = None, bias: fx.Node | None = None, eps: float = 1e-5, *_: bool
) -> tuple[Any, tuple[Any, ...]]:
    return aten.native_layer_norm.default, (x, list(shape), weight, bias, eps)


def _pair(value: Sequence[int]) -> list[int]:
    """A list of one stands for both sides."""
    return [*value, *value] if len(value) == 1 else list(value)


RULES: dict[Any, Rule] = {
    aten.conv2d.default: _convolution,
    aten.pad.default: _pad,
    aten.adaptive_avg_pool2d.default: _pool,
    aten.layer_norm.default: _layer_norm,
    aten.max_pool2d.default: lambda *arguments: (aten.max_pool2d_with_indices.default, arguments),
    # OpenVINO's product takes any rank, as `matmul` does.
    aten.matmul.default: lambda a, b: (aten.bmm.default, (a, b)),
    aten.softmax.int: lambda x, dim: (aten._softmax.default, (x, dim, False)),
}
