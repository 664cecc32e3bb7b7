"""The closed form of a head that is global average pooling and one linear layer: logits and gradients without autograd.

In such a head the gradient of a logit is the same in every cell of a channel: the channel's weight over the number of cells
(Zhou et al. 2016, https://arxiv.org/abs/1512.04150). The gradients of any other head are computed by autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
# Operations that change a tensor's shape at most, never its values or their order.
VALUE_PRESERVING = {
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.squeeze.dims,
    aten.squeeze.dim,
    aten.clone.default,
}


@dataclass(frozen=True)
class PooledHead:
    """A linear layer over the means of the channels.

    Attributes:
        weight: ``[classes, K]``.
        bias: ``[classes]``, or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    def logits(self, activations: Tensor) -> Tensor:
        """``[R, classes]`` of activations ``[R, K, h, w]``."""
        return torch.nn.functional.linear(activations.mean(dim=(2, 3)), self.weight, self.bias)

    def gradients(self, activations: Tensor, classes: Sequence[int], versus: Sequence[tuple[int, int]]) -> Tensor:
        """The gradient of each row's score at the activations, ``[R, K, h, w]``: one value per channel, expanded.

        Args:
            activations: ``[R, K, h, w]``; only their sizes are used.
            classes: the class of each row.
            versus: pairs (row, class); the logit of the class is subtracted from the row's score.
        """
        weights = self.weight[torch.tensor(classes, device=self.weight.device)]
        if versus:
            versus_rows, versus_classes = torch.tensor(versus, device=self.weight.device).unbind(1)
            weights.index_add_(0, versus_rows, self.weight[versus_classes], alpha=-1)
        height, width = activations.shape[2:]
        return (weights / (height * width))[:, :, None, None].expand_as(activations)


def pooled_head(head: fx.GraphModule) -> PooledHead | None:
    """The closed form of the head behind one layer; None for a head without one."""
    inputs = [node for node in head.graph.nodes if node.op == "placeholder"]
    logits, *activations = next(iter(reversed(head.graph.nodes))).args[0]
    if len(inputs) != 1 or activations != inputs or inputs[0].meta["val"].dim() != 4 or logits.target != aten.linear.default:
        return None
    node, *parameters = logits.args
    if any(parameter.op != "get_attr" for parameter in parameters if parameter is not None):
        return None
    channels = inputs[0].meta["val"].shape[1]
    while _preserves_values(node, channels):
        node = node.args[0]
    if node.op != "call_function" or node.args[0] is not inputs[0] or not _is_global_average_pooling(node):
        return None
    weight, *bias = (head.get_parameter(parameter.target) for parameter in parameters if parameter is not None)
    return PooledHead(weight, *bias)


def _preserves_values(node: fx.Node, channels: int) -> bool:
    """Whether a node returns its input's values in order: one value for each channel of each image."""
    shape: Any = node.meta["val"].shape if node.op == "call_function" else ()
    if len(shape) < 2 or shape[1] != channels or any(size != 1 for size in shape[2:]):
        return False
    return node.target in VALUE_PRESERVING


def _is_global_average_pooling(node: fx.Node) -> bool:
    """Whether a node is the mean over the last two of four dimensions."""
    argument: Any = node.args[1]
    if node.target is aten.adaptive_avg_pool2d.default:
        return list(argument) == [1, 1]
    return node.target is aten.mean.dim and {dim % 4 for dim in argument} == {2, 3} and not node.kwargs
