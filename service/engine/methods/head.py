"""Class activation maps that run the head again: without channels or cells, for a second derivative, or for another score.

The trunk runs once. A are the layer's activations ``[K, h, w]``, s is the score (a logit, or a difference of two), maps are
signed ``[h, w]``.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from service.engine.graph.runner import HEAD_ROWS
from service.engine.methods.gradient import gradcam, weigh
from service.engine.methods.method import LayerSplit, Query, QueryMethod
from service.engine.types import MethodParameters

# The attention kernel is a process-wide setting; one thread at a time changes and restores it.
_kernel_lock = threading.Lock()


def ablationcam(query: Query) -> tuple[Tensor, ...]:
    r"""Ablation-CAM: each channel weighted by the score that is lost without it; channels are ablated a chunk at a time.

    .. math:: L = \sum_k w_k A_k, \qquad w_k = s(A) - s(A \text{ with } A_k = 0)

    Desai and Ramaswamy 2020, https://doi.org/10.1109/WACV45572.2020.9093360. The paper, and pytorch-grad-cam 1.5's
    `AblationCAM`, divide the weights by s(A). That scales a class's whole map, inverts its sign where s(A) is negative, and has
    no meaning for a logit, to which any constant may be added; so here the division is left out. Where s(A) > 0 the normalised
    maps are equal; where it is negative, theirs has the opposite polarity.

    As in the paper a channel is set to 0. pytorch-grad-cam does so only where the layer's lowest value is 0 (after a ReLU);
    elsewhere it sets the channel to the lowest value less 1e7, far outside the range of training. Of tokens only those of the
    grid lose the channel; pytorch-grad-cam's `AblationLayerVit` ablates it in the class token too, which is not on the map.
    """
    return tuple(_ablationcam(query, layer) for layer in query.layers)


def _ablationcam(query: Query, layer: LayerSplit) -> Tensor:
    activations = layer.activations

    def score_without(channels: Tensor) -> Tensor:
        rows = activations.repeat(len(channels), 1, 1, 1)
        rows[torch.arange(len(channels)), channels] = 0
        return query.target.score(layer.logits(rows))

    score = query.target.score(query.head(layer, activations))
    weights = score - query.runner.chunked(score_without, torch.arange(activations.shape[1]), HEAD_ROWS)
    return weigh(weights[None], activations, query.parameters)[0]


def reciprocam(query: Query) -> tuple[Tensor, ...]:
    r"""Recipro-CAM: the score of each cell of the grid alone.

    .. math:: L_{ij} = s(A \odot g_{ij}) - s(0)

    g_ij is a 3x3 Gaussian ((1, 2, 1) x (1, 2, 1) / 16) around the cell, 0 elsewhere, truncated at the border. Byun and Lee
    2022, https://arxiv.org/abs/2209.14074, section 3.2. The paper's implementation takes the class's probability; here the
    score is a logit, as everywhere in this service. s(0) is subtracted so that the map is signed: cells above 0 raise the
    score. A map scaled from minimum to maximum without a ReLU, as in the paper, is the same with and without s(0).
    """
    return tuple(_reciprocam(query, layer) for layer in query.layers)


def _reciprocam(query: Query, layer: LayerSplit) -> Tensor:
    activations = layer.activations
    size = (activations.shape[2], activations.shape[3])
    cells = size[0] * size[1]
    profile = torch.tensor([1.0, 2.0, 1.0]).to(activations)
    kernel = torch.outer(profile, profile)[None, None] / 16

    def score_alone(indices: Tensor) -> Tensor:
        impulses = nn.functional.one_hot(indices, cells).to(activations).view(-1, 1, *size)
        return query.target.score(layer.logits(activations * nn.functional.conv2d(impulses, kernel, padding=1)))

    scores = query.runner.chunked(score_alone, torch.arange(cells), HEAD_ROWS)
    return scores.view(size) - query.target.score(query.head(layer, torch.zeros_like(activations)))


def shapleycam(query: Query) -> tuple[Tensor, ...]:
    r"""ShapleyCAM: Grad-CAM with the gradient that a second-order Shapley value has.

    .. math:: L = \sum_k w_k A_k, \qquad w_k = \frac{1}{hw} \sum_{ij} \Big(G - \frac{1}{2} H A\Big)_{kij}

    G is ds/dA, H A the product of the score's Hessian with A, the derivative of <G, A> with A constant; it is 0 where the head
    is linear around A, and the map is then that of Grad-CAM. Cai 2025, https://arxiv.org/abs/2501.06261. Convention of
    pytorch-grad-cam 1.5's `ShapleyCAM`.
    """
    return tuple(_shapleycam(query, layer) for layer in query.layers)


def _shapleycam(query: Query, layer: LayerSplit) -> Tensor:
    activations = layer.activations.requires_grad_()
    # Only the math kernel of attention can be differentiated twice.
    with _kernel_lock, sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        (gradient,) = torch.autograd.grad(query.target.score(layer.logits(activations)).sum(), activations, create_graph=True)
        hessian_product = None
        if gradient.requires_grad:
            (hessian_product,) = torch.autograd.grad(gradient, activations, activations.detach(), allow_unused=True)
    second_order = gradient.detach() if hessian_product is None else gradient.detach() - hessian_product / 2
    return gradcam(activations.detach(), second_order, query.parameters)[0]


def finercam(query: Query) -> tuple[Tensor, ...]:
    r"""Finer-CAM: Grad-CAM of the difference between the class's logit and those of the most similar classes.

    .. math:: s = \frac{\sum_r p_r (l_c - l_r)}{\sum_r p_r}

    r runs over the `rivals` classes whose logits l_r are nearest to the class's l_c, or is `versus` alone unless that is None;
    p is the softmax of the logits, differentiated too. Zhang et al. 2025, https://arxiv.org/abs/2501.11309, with alpha = 1.
    Convention of pytorch-grad-cam 1.5's `FinerCAM` and `FinerWeightedTarget` without its eps (1e-9), which dominates the
    denominator where all rivals are improbable.
    """
    rivals = _rivals(query)
    return tuple(
        _gradcam(query, layer, lambda logits: finer_score(logits, query.target.class_id, rivals)) for layer in query.layers
    )


def finer_score(logits: Tensor, class_id: int, rivals: Tensor, alpha: float = 1.0) -> Tensor:
    """Finer-CAM's score ``[n]`` of logits ``[n, classes]``; with alpha 0, or without a rival, the class's logit.

    Args:
        logits: float ``[n, classes]``.
        class_id: the class to explain.
        rivals: class ids to compare with, int64 ``[R]``.
        alpha: weight of the rivals.
    """
    logit = logits[:, class_id]
    if not len(rivals):
        return logit
    rival_logits = logits[:, rivals]
    return logit - alpha * (rival_logits.softmax(1) * rival_logits).sum(1)


def _rivals(query: Query) -> Tensor:
    """The ids of the classes to compare with, int64 ``[R]``."""
    if query.target.versus is not None:
        return torch.tensor([query.target.versus], device=query.logits.device)
    distance = (query.logits - query.logits[query.target.class_id]).abs()
    distance[query.target.class_id] = -1
    return distance.argsort(stable=True)[1 : 1 + (query.parameters.rivals or 0)]


def _gradcam(query: Query, layer: LayerSplit, score: Callable[[Tensor], Tensor]) -> Tensor:
    activations = layer.activations.requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(score(layer.logits(activations)).sum(), activations)
    return gradcam(activations.detach(), gradient, query.parameters)[0]


_head_method = functools.partial(QueryMethod, family="head of the network", defaults=MethodParameters(eigen_smooth=False))

METHODS = (
    _head_method(
        name="ablationcam",
        cost="head",
        lane="slow",  # a pass of the head for every channel
        paper="https://doi.org/10.1109/WACV45572.2020.9093360",
        summary="Channels of a layer weighted by the logit that is lost without each; only the head is run again.",
        raw_unit="none",
        explain=ablationcam,
    ),
    _head_method(
        name="reciprocam",
        cost="head",
        lane="slow",  # a pass of the head for every cell
        paper="https://arxiv.org/abs/2209.14074",
        summary="The logit that each cell of a layer brings about by itself; only the head is run again.",
        raw_unit="logit",
        defaults=MethodParameters(),
        explain=reciprocam,
    ),
    _head_method(
        name="shapleycam",
        cost="head",
        paper="https://arxiv.org/abs/2501.06261",
        summary="Grad-CAM with the curvature of the class's logit taken into account.",
        raw_unit="logit",
        explain=shapleycam,
    ),
    _head_method(
        name="finercam",
        family="fine-grained",
        cost="head",
        paper="https://arxiv.org/abs/2501.11309",
        summary="Grad-CAM for what sets the class apart from the `rivals` classes most like it.",
        raw_unit="logit",
        defaults=MethodParameters(eigen_smooth=False, rivals=3),
        explain=finercam,
    ),
)
