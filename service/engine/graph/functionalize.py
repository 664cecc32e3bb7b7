"""Functionalization of a graph: afterwards no operation writes in place, and each result is a tensor of its own.

torch.export can do it (`run_decompositions({})`) by tracing the whole network again. This module exists because it saves 3.8 s
of the start with the default model (EfficientNet-Lite0; see `tests/bench/NOTES.md`). Nearly every network has in-place
operations only where they are easy to replace: an activation function or a sum, over the fresh output of a convolution, a norm
or a sum. This module replaces those; for any other graph it returns False, and the caller lets torch.export do it.
"""

from __future__ import annotations

import operator
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from service.engine.graph.dimensions import operation

# Operations whose result never shares memory with an argument. Views are not among them, nor operations that may return a view
# (`reshape`, `contiguous`, `to`).
FRESH: Final = {
    "adaptive_avg_pool2d", "add", "addmm", "avg_pool2d", "batch_norm", "bmm", "cat", "conv1d", "conv2d",
    "conv_transpose2d", "div", "elu", "gelu", "group_norm", "hardsigmoid", "hardswish", "hardtanh", "layer_norm",
    "leaky_relu", "linear", "matmul", "max_pool2d", "mean", "mish", "mul", "relu", "relu6", "rsub",
    "scaled_dot_product_attention", "selu", "sigmoid", "silu", "softmax", "softplus", "sub", "tanh",
}  # fmt: skip

# In evaluation mode a dropout returns its argument itself, not a copy.
DROPOUTS: Final = {torch.ops.aten.dropout.default, torch.ops.aten.dropout_.default}


def functionalize(graph: fx.Graph) -> bool:
    """Replaces every in-place operation by its out-of-place counterpart.

    Args:
        graph: the graph of an exported network in evaluation mode. It is changed in place; where the result is False, some of
            its in-place operations may have been replaced already.

    Returns:
        Whether the graph is functional now and computes the same as before.
    """
    for node in graph.nodes:
        if node.target in DROPOUTS and node.args[2] is False:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in graph.nodes:
        if node.op != "call_function" or getattr(node.target, "__module__", None) in {operator.__name__, "_operator", "math"}:
            continue
        if not isinstance(node.target, OpOverload):
            return False  # a subgraph or a Python function, whose effects on memory are unknown
        if node.target._schema.is_mutable and not _replace_inplace(node):
            return False
    graph.lint()
    return True


def replace_copies(graph: fx.Graph) -> None:
    """Replaces ``aten.copy(x, y)``, which has no derivative, by y with the sizes and the dtype of x.

    torch.export makes it of an assignment to a part of a tensor (MViTv2's relative positions).
    """
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.copy.default):
        template, source = node.args[:2]
        with graph.inserting_before(node):
            result = graph.call_function(torch.ops.aten.expand_as.default, (source, template))
            result.meta = {**node.meta, "val": node.meta["val"].to(source.meta["val"].dtype)}
            if source.meta["val"].dtype != node.meta["val"].dtype:
                result = graph.call_function(torch.ops.aten.to.dtype, (result, node.meta["val"].dtype))
                result.meta = node.meta
        node.replace_all_uses_with(result)
        graph.erase_node(node)


def _replace_inplace(node: fx.Node) -> bool:
    """Replaces one in-place operation, unless another tensor may share the memory that it writes to."""
    out_of_place = _out_of_place(node.target)
    argument = node.args[0] if node.args else None
    if out_of_place is None or not isinstance(argument, fx.Node) or not _has_one_dtype(node):
        return False
    if not all(operation(other) in FRESH for other in (argument, *(user for user in argument.users if user < node))):
        return False
    for user in [user for user in argument.users if node < user]:
        user.replace_input_with(argument, node)
    node.target = out_of_place
    return True


def _out_of_place(target: Any) -> OpOverload | None:
    """The operation without the underscore, if it takes the same arguments and `target` writes to its first argument only."""
    schema, name = target._schema, target._schema.name.rpartition("::")[2]  # aten::relu_
    first, *others = schema.arguments
    if first.alias_info is None or any(argument.alias_info is not None for argument in others) or not name.endswith("_"):
        return None
    packet = getattr(torch.ops.aten, name.rstrip("_"), None)
    overload = getattr(packet, target._overloadname, None)
    if not isinstance(overload, OpOverload) or overload._schema.is_mutable:
        return None
    return overload if [a.name for a in overload._schema.arguments[1:]] == [a.name for a in others] else None


def _has_one_dtype(node: fx.Node) -> bool:
    """Whether result and inputs have one dtype: in place the result keeps its dtype, out of place dtypes are promoted."""
    values = [other.meta.get("val") for other in (node, *node.all_input_nodes)]
    return len({value.dtype for value in values if isinstance(value, Tensor)}) == 1
