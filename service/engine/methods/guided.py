"""Guided backpropagation: at every rectifier only positive gradients pass, on a modified copy of the graph.

The copy needs no hooks: it has a gate before every rectifier, and shares the network's parameters.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from service.engine.graph.export import NetworkGraph
from service.engine.methods.gradient import gradcam
from service.engine.methods.input_gradients import GRADIENT_COST
from service.engine.methods.method import NO_PARAMETERS, LayerSplit, Query, QueryMethod
from service.errors import MethodNotApplicable

_aten = torch.ops.aten
RECTIFIERS = {
    _aten.relu.default,
    _aten.relu6.default,
    _aten.hardtanh.default,  # ReLU6 after the export
    _aten.leaky_relu.default,
    _aten.elu.default,
    _aten.gelu.default,
    _aten.silu.default,
    _aten.hardswish.default,
    _aten.mish.default,
}


def guided_backprop(query: Query) -> tuple[Tensor]:
    r"""Guided backpropagation: the gradient, clamped at 0 from below at every rectifier, summed over the channels.

    .. math:: L_{ij} = \sum_c R_{cij}, \qquad R^l = \max(0, f'(a^l) R^{l+1}) \text{ at every rectifier } f

    Springenberg et al. 2014, https://arxiv.org/abs/1412.6806, section 3.4. For ReLU this is captum's `GuidedBackprop`, summed
    over the channels. captum applies the rule to ReLU only; here it applies to ReLU6, GELU, SiLU and similar functions too, for
    otherwise the map of a network without ReLU would be the plain gradient.

    The map largely shows the edges of the image, independently of the class and the weights: Adebayo et al. 2018,
    https://arxiv.org/abs/1810.03292, and Nie et al. 2018, https://arxiv.org/abs/1805.07039.

    Raises:
        MethodNotApplicable: the network has no rectifier.
    """
    return (_guided_gradient(query).sum(0),)


def guided_gradcam(query: Query) -> tuple[Tensor, ...]:
    r"""Guided Grad-CAM: guided backpropagation where Grad-CAM is positive.

    .. math:: L = \Big(\sum_c R_c\Big) \cdot \mathrm{up}(\max(0, L^{\mathrm{gradcam}}))

    Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, section 3.2. The result is a map ``[H, W]`` for each layer; `up` is
    bilinear with half-pixel centres, as in captum's `GuidedGradCam` with `interpolate_mode="bilinear"`. The remarks on guided
    backpropagation apply here too.

    Raises:
        MethodNotApplicable: the network has no rectifier.
    """
    guided_map = _guided_gradient(query).sum(0)
    return tuple(guided_map * _upsample_gradcam(query, layer, guided_map.shape) for layer in query.layers)


def _guided_gradient(query: Query) -> Tensor:
    """The guided gradient of the score at the image, ``[C, H, W]``."""
    return query.runner.with_network(guide(query.network.graph)).gradient(query.image, query.target.score)[0]


def _upsample_gradcam(query: Query, layer: LayerSplit, size: torch.Size) -> Tensor:
    """The positive part of Grad-CAM at a layer, upsampled to the input's size ``[H, W]``."""
    leaf = layer.activations.requires_grad_()
    with torch.enable_grad():
        score = query.target.score(layer.logits(leaf)).sum()
    (gradients,) = torch.autograd.grad(score, leaf)
    grid = gradcam(leaf.detach(), gradients, NO_PARAMETERS).relu()
    return nn.functional.interpolate(grid[None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]


class _Gate(torch.autograd.Function):
    """The identity function with a gradient clamped to be non-negative."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004 (autograd's signature)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return gradients[0].clamp(min=0)


def gated(value: Tensor) -> Tensor:
    """The gate, which a guided graph calls before every rectifier."""
    result: Tensor = _Gate.apply(value)
    return result


def rectifiers(network: NetworkGraph) -> list[fx.Node]:
    """The nodes that call one of `RECTIFIERS`.

    Raises:
        MethodNotApplicable: the network has no rectifier.
    """
    nodes = [node for node in network.module.graph.nodes if node.op == "call_function" and node.target in RECTIFIERS]
    if not nodes:
        raise MethodNotApplicable(
            "method: guided backpropagation needs a network with ReLU or a similar activation function; this one has none."
        )
    return nodes


def guide(network: NetworkGraph) -> NetworkGraph:
    """A copy of the network with a gate before every rectifier; it shares the network's parameters.

    Raises:
        MethodNotApplicable: the network has no rectifier.
    """
    originals = rectifiers(network)
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(network.module.graph, env)
    graph.output(result)
    for node in (env[original] for original in originals):
        with graph.inserting_before(node):
            value = node.all_input_nodes[0]
            node.replace_input_with(value, graph.call_function(gated, (value,)))
    return replace(network, module=fx.GraphModule(network.module, graph), image=env[network.image], logits=env[network.logits])


METHODS = (
    QueryMethod(
        name="guided_backprop",
        family="input gradient",
        cost="forward",
        paper="https://arxiv.org/abs/1412.6806",
        summary=(
            "Gradient of which every rectifier lets only the positive part pass. Known to fail the sanity check of Adebayo "
            "2018: it shows the image's edges, hardly what the network learned."
        ),
        raw_unit="logit",
        has_grid=False,
        explain=guided_backprop,
        layered=False,
        fits=lambda network: rectifiers(network.graph),
        passes=lambda _: GRADIENT_COST,
    ),
    QueryMethod(
        name="guided_gradcam",
        family="input gradient",
        cost="forward",
        paper="https://arxiv.org/abs/1610.02391",
        summary=(
            "Guided backpropagation where Grad-CAM is positive. Its detail is guided backpropagation's, which is known to fail "
            "the sanity check of Adebayo 2018."
        ),
        raw_unit="none",
        has_grid=False,
        explain=guided_gradcam,
        fits=lambda network: rectifiers(network.graph),
        passes=lambda _: GRADIENT_COST + 1,
    ),
)
