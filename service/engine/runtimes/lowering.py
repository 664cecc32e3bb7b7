"""Lowers a trunk to the operations that OpenVINO's frontend for fx graphs knows.

`torch.export` can do it too, by tracing the trunk again and decomposing every operation. This module exists because it converts
EfficientNet-Lite0 in 0.13 s in place of 2.8 s and ResNet-50 in 0.13 s in place of 2.7 s (see `tests/bench/NOTES.md`).

An operation without a rule is left unchanged. If a new version of OpenVINO or torch breaks these rules,
`tests/engine/runtimes/test_lowering.py`, which converts small networks both ways, fails. A service then either exports again
and logs `openvino_export`, because the frontend rejects the graph, or does not use OpenVINO, because the calibration check at
load finds a disagreement with torch.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from service.engine.runtimes.lstm import WEIGHTS

aten = torch.ops.aten

# Arguments of an operation -> target and arguments of an equal operation that the frontend knows, and arguments by name if it
# has any; None where there is none.
Rule = Callable[..., "tuple[Any, ...] | None"]


def lowered(trunk: fx.GraphModule) -> fx.GraphModule:
    """A copy of the trunk for the frontend to convert, which torch cannot run; parameters are shared, not copied.

    Nodes that depend on no image are evaluated now, such as position embeddings that a transformer resizes to its input.
    """
    constants = _constants(trunk)
    graph = fx.Graph()
    attributes: dict[str, Any] = {}
    env: dict[fx.Node, Any] = {}

    def operand(node: fx.Node) -> Any:
        if node not in env:
            value = constants[node]
            if isinstance(value, Tensor):
                attributes[node.name] = value
                env[node] = graph.get_attr(node.name)
                env[node].meta["val"] = value
            else:
                env[node] = value
        return env[node]

    for node in trunk.graph.nodes:
        if node in constants:
            continue
        rule = RULES.get(node.target) if node.op == "call_function" else None
        arguments, options = fx.map_arg((node.args, node.kwargs), operand)
        replacement = rule(*arguments, **options) if rule is not None else None
        if replacement is None:
            env[node] = graph.node_copy(node, operand)
            continue
        target, arguments, *by_name = replacement
        new = graph.call_function(target, arguments, *by_name)
        if target in FIRST_OF_SEVERAL:
            new = graph.call_function(operator.getitem, (new, 0))
        new.meta = node.meta
        env[node] = new
    graph.eliminate_dead_code()
    return fx.GraphModule(attributes, graph)


def _constants(trunk: fx.GraphModule) -> dict[fx.Node, Any]:
    """The value of every node that is computed from parameters alone."""
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in trunk.graph.nodes:
            if node.op == "get_attr":
                values[node] = functools.reduce(getattr, node.target.split("."), trunk)
            elif node.op == "call_function" and all(parent in values for parent in node.all_input_nodes):
                arguments, options = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*arguments, **options)
    return values


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


def _same_convolution(
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Sequence[int] = (1, 1),
    padding: str = "valid",
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Any:
    """A convolution whose padding is a word; None for "same" with an even kernel, which pads one side more."""
    spans = [d * (size - 1) for d, size in zip(_pair(dilation), _sizes(weight)[2:], strict=True)]
    if padding == "same" and any(span % 2 for span in spans):
        return None
    sizes = [span // 2 for span in spans] if padding == "same" else [0, 0]
    return _convolution(x, weight, bias, stride, sizes, dilation, groups)


def _pad(x: fx.Node, sizes: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    return (aten.constant_pad_nd.default, (x, list(sizes), value or 0.0)) if mode == "constant" else None


def _pool(x: fx.Node, size: Sequence[int]) -> Any:
    return (aten.mean.dim, (x, [-2, -1], True)) if list(size) == [1, 1] else None


def _layer_norm(
    x: fx.Node, shape: Sequence[int], weight: fx.Node | None = None, bias: fx.Node | None = None, eps: float = 1e-5, *_: bool
) -> tuple[Any, tuple[Any, ...]]:
    return aten.native_layer_norm.default, (x, list(shape), weight, bias, eps)


def _batch_norm(
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node,
    mean: fx.Node,
    variance: fx.Node,
    _: bool,
    momentum: float,
    eps: float,
    *__: bool,
) -> tuple[Any, tuple[Any, ...]]:
    return aten._native_batch_norm_legit_no_training.default, (x, weight, bias, mean, variance, momentum, eps)


def _flatten(x: fx.Node, start: int = 0, end: int = -1) -> Any:
    sizes = _sizes(x)
    first, last = start % len(sizes), end % len(sizes)
    group = sizes[first : last + 1]
    return _view(x, [*sizes[:first], -1 if -1 in group else math.prod(group), *sizes[last + 1 :]])


def _unflatten(x: fx.Node, dim: int, new_sizes: Sequence[Any]) -> Any:
    sizes = _sizes(x)
    dim %= len(sizes)
    return _view(x, [*sizes[:dim], *new_sizes, *sizes[dim + 1 :]])


def _view(x: fx.Node, sizes: list[Any]) -> Any:
    """A view with at most one size of -1, that of the batch; None for more, which a view cannot infer."""
    return (aten.view.default, (x, sizes)) if sizes.count(-1) <= 1 else None


def _expand_as(x: fx.Node, other: fx.Node) -> Any:
    sizes, new_sizes = _sizes(x), _sizes(other)
    batch_sizes = [size for size, new_size in zip(reversed(sizes), reversed(new_sizes), strict=False) if new_size == -1]
    return (aten.expand.default, (x, new_sizes)) if all(size == -1 for size in batch_sizes) else None


def _chunk(x: fx.Node, count: int, dim: int = 0) -> Any:
    size = _sizes(x)[dim]
    return _split(x, -(-size // count), dim) if size != -1 else None


def _split(x: fx.Node, length: int, dim: int = 0) -> Any:
    """A split into parts of one length; the frontend would make the parts equal where the last one is shorter."""
    size = _sizes(x)[dim]
    if size == -1 or size % length == 0:
        return aten.split.Tensor, (x, length, dim)
    return aten.split_with_sizes.default, (x, [length] * (size // length) + [size % length], dim)


def _lstm(
    x: fx.Node,
    states: Sequence[fx.Node],
    weights: Sequence[fx.Node],
    has_biases: bool,
    layers: int,
    _dropout: float,
    _train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Any:
    """One layer with biases, as `service.engine.runtimes.lstm` translates it."""
    is_known = has_biases and batch_first and layers == 1 and len(weights) == WEIGHTS * (1 + bidirectional)
    return (aten.lstm.input, (x, *states, *weights)) if is_known else None


def _bitwise_not(x: fx.Node) -> Any:
    return (aten.logical_not.default, (x,)) if x.meta["val"].dtype == torch.bool else None


def _clone(x: fx.Node, *_: Any, **__: Any) -> tuple[Any, tuple[Any, ...]]:
    return aten.clone.default, (x,)


def _sizes(x: fx.Node) -> list[int]:
    """The sizes of a node's tensor; -1 for those that depend on the batch size."""
    return [size if isinstance(size, int) else -1 for size in x.meta["val"].shape]


def _getitem(x: fx.Node, index: int) -> Any:
    """An item of an unbound tensor by `select`, the first result of an LSTM, its only one here; None for any other item."""
    if isinstance(x, fx.Node) and x.target is aten.lstm.input and index == 0 and len(x.args) > WEIGHTS:
        return _clone(x)
    if not isinstance(x, fx.Node) or x.target is not aten.unbind.int:
        return None
    tensor, dim = (*x.args, 0)[:2]
    return aten.select.int, (tensor, dim, index)


def _pair(value: Sequence[int]) -> list[int]:
    """(height, width) of an argument; a list of one value is for both."""
    return [*value, *value] if len(value) == 1 else list(value)


RULES: dict[Any, Rule] = {
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _same_convolution,
    aten.lstm.input: _lstm,
    aten.split.Tensor: _split,
    aten.to.device: lambda x, _, dtype, *__: (aten._to_copy.default, (x,), {"dtype": dtype}),
    aten.to.dtype: lambda x, dtype, *_: (aten._to_copy.default, (x,), {"dtype": dtype}),
    aten.bitwise_not.default: _bitwise_not,
    aten.pad.default: _pad,
    aten.adaptive_avg_pool2d.default: _pool,
    aten.layer_norm.default: _layer_norm,
    aten.batch_norm.default: _batch_norm,
    aten.max_pool2d.default: lambda *arguments: (aten.max_pool2d_with_indices.default, arguments),
    aten.reshape.default: lambda *arguments: (aten.view.default, arguments),
    aten.flatten.using_ints: _flatten,
    aten.unflatten.int: _unflatten,
    aten.expand_as.default: _expand_as,
    aten.chunk.default: _chunk,
    aten.contiguous.default: _clone,
    aten.subtract.Tensor: lambda a, b: (aten.sub.Tensor, (a, b)),
    # OpenVINO's bmm takes any rank, as `matmul` does.
    aten.matmul.default: lambda a, b: (aten.bmm.default, (a, b)),
    operator.getitem: _getitem,
    aten.softmax.int: lambda x, dim: (aten._softmax.default, (x, dim, False)),
}
# These return several tensors, of which the first is the result of the replaced operation.
FIRST_OF_SEVERAL = {
    aten.max_pool2d_with_indices.default,
    aten.native_layer_norm.default,
    aten._native_batch_norm_legit_no_training.default,
}
