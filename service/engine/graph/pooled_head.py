"""The head in closed form, where it is the mean of each channel and one linear layer: logits and gradients without autograd.

There the gradient of a logit is the same in every cell of a channel, its weight over the number of cells (Zhou et al. 2016,
https://arxiv.org/abs/1512.04150). Anything else between the cut and the logits is left to autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
SAME = {
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.squeeze.dims,
    aten.squeeze.dim,
    aten.clone.default,
}


@dataclass(frozen=True)
class PooledHead:
    """Logits of channel means.

    Attributes:
        weight: ``[classes, K]``.
        bias: ``[classes]``, or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    def logits(self, activations: Tensor) -> Tensor:
        """``[R, classes]`` of activations ``[R, K, h, w]``."""
        return torch.nn.functional.linear(activations.mean(dim=(2, 3)), self.weight, self.bias)

    def gradients(self, activations: Tensor, classes: Sequence[int], against: Sequence[tuple[int, int]]) -> Tensor:
        """Of each row's score at the activations, ``[R, K, h, w]``: one value a channel, expanded.

        Args:
            activations: ``[R, K, h, w]``; their sizes are asked only.
            classes: of each row.
            against: (row, class) whose logit is subtracted from the row's.
        """
        rows = self.weight[torch.tensor(classes, device=self.weight.device)]
        if against:
            at_row, at_class = torch.tensor(against, device=self.weight.device).unbind(1)
            rows.index_add_(0, at_row, self.weight[at_class], alpha=-1)
        height, width = activations.shape[2:]
        return (rows / (height * width))[:, :, None, None].expand_as(activations)


def pooled_head(head: fx.GraphModule) -> PooledHead | None:
    """The closed form of a head that was cut at one layer; None where it has none."""
    inputs = [node for node in head.graph.nodes if node.op == "placeholder"]
    logits, *activations = next(iter(reversed(head.graph.nodes))).args[0]
    if len(inputs) != 1 or activations != inputs or inputs[0].meta["val"].dim() != 4 or logits.target != aten.linear.default:
        return None
    node, *parameters = logits.args
    if any(parameter.op != "get_attr" for parameter in parameters if parameter is not None):
        return None
    channels = inputs[0].meta["val"].shape[1]
    while _keeps(node, channels):
        node = node.args[0]
    if node.op != "call_function" or node.args[0] is not inputs[0] or not _pools(node):
        return None
    weight, *bias = (head.get_parameter(parameter.target) for parameter in parameters if parameter is not None)
    return PooledHead(weight, *bias)


def _keeps(node: fx.Node, channels: int) -> bool:
    """Whether a node gives the values that it takes, in order: one for each channel of each image."""
    shape: Any = node.meta["val"].shape if node.op == "call_function" else ()
    if len(shape) < 2 or shape[1] != channels or any(size != 1 for size in shape[2:]):
        return False
    return node.target in SAME


def _pools(node: fx.Node) -> bool:
    """Whether a node is the mean over the last two of four dimensions."""
    over: Any = node.args[1]
    if node.target is aten.adaptive_avg_pool2d.default:
        return list(over) == [1, 1]
    return node.target is aten.mean.dim and {dim % 4 for dim in over} == {2, 3} and not node.kwargs
