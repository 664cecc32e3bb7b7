"""Makes a graph functional: no operation writes into a tensor any more, each result is a tensor of its own.

torch.export can do it (`run_decompositions({})`), by tracing the whole network again. Our own code is kept, because it saves
3.8 s of the start with the default model (EfficientNet-Lite0; see `tests/bench/NOTES.md`). Nearly every network writes in place
only where it is easily undone: an activation function or a sum, over the fresh output of a convolution, a norm or a sum. Those
are rewritten here; of anything else this says that it is not sure.
"""

from __future__ import annotations

import operator
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from service.engine.graph.dimensions import operation

# Whose result is never the memory of an argument, whatever the arguments: views are not among them, nor what may be one
# (`reshape`, `contiguous`, `to`).
FRESH: Final = {
    "adaptive_avg_pool2d", "add", "addmm", "avg_pool2d", "batch_norm", "bmm", "cat", "conv1d", "conv2d",
    "conv_transpose2d", "div", "elu", "gelu", "group_norm", "hardsigmoid", "hardswish", "hardtanh", "layer_norm",
    "leaky_relu", "linear", "matmul", "max_pool2d", "mean", "mish", "mul", "relu", "relu6", "rsub",
    "scaled_dot_product_attention", "selu", "sigmoid", "silu", "softmax", "softplus", "sub", "tanh",
}  # fmt: skip

# Outside of training what they give is what they were given, the very same tensor.
DROPOUTS: Final = {torch.ops.aten.dropout.default, torch.ops.aten.dropout_.default}


def functionalize(graph: fx.Graph) -> bool:
    """Replaces every operation that writes in place by one that does not.

    Args:
        graph: of an exported network in evaluation mode; changed, and left half done where the answer is False.

    Returns:
        Whether the graph is functional now and computes what it did.
    """
    for node in graph.nodes:
        if node.target in DROPOUTS and node.args[2] is False:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in graph.nodes:
        if node.op != "call_function" or getattr(node.target, "__module__", None) in {operator.__name__, "_operator", "math"}:
            continue
        if not isinstance(node.target, OpOverload):
            return False  # a graph within the graph, or a function of Python's: who knows what it does
        if node.target._schema.is_mutable and not _undone(node):
            return False
    graph.lint()
    return True


def _undone(node: fx.Node) -> bool:
    """Rewrites one operation, if nobody else can see the memory that it writes to."""
    pure = _counterpart(node.target)
    written = node.args[0] if node.args else None
    if pure is None or not isinstance(written, fx.Node) or not _same_dtype(node):
        return False
    if not all(operation(one) in FRESH for one in (written, *(user for user in written.users if user < node))):
        return False
    for user in [user for user in written.users if node < user]:
        user.replace_input_with(written, node)
    node.target = pure
    return True


def _counterpart(target: Any) -> OpOverload | None:
    """The operation without the underscore, where that takes the same arguments and the first is all that is written to."""
    schema, name = target._schema, target._schema.name.rpartition("::")[2]  # aten::relu_
    first, *others = schema.arguments
    if first.alias_info is None or any(argument.alias_info is not None for argument in others) or not name.endswith("_"):
        return None
    packet = getattr(torch.ops.aten, name.rstrip("_"), None)
    pure = getattr(packet, target._overloadname, None)
    if not isinstance(pure, OpOverload) or pure._schema.is_mutable:
        return None
    return pure if [a.name for a in pure._schema.arguments[1:]] == [a.name for a in others] else None


def _same_dtype(node: fx.Node) -> bool:
    """In place the result keeps its type, whatever is added to it; elsewhere the wider type wins."""
    values = [one.meta.get("val") for one in (node, *node.all_input_nodes)]
    return len({value.dtype for value in values if isinstance(value, Tensor)}) == 1
