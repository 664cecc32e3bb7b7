"""Class activation maps that ask the head again: with channels or cells left out, for a second derivative, for another score.

The trunk runs once. A is the cut's ``[K, h, w]``, s the score (a logit, or a difference of two), maps are signed ``[h, w]``.
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

# Which attention kernel runs is a setting of the whole process, and must be put back by who changed it first.
_kernel = threading.Lock()


def ablationcam(query: Query) -> tuple[Tensor, ...]:
    r"""Ablation-CAM: channels weighted by the score that is lost without them. All channels, a batch of them at a time.

    .. math:: L = \sum_k w_k A_k, \qquad w_k = s(A) - s(A \text{ with } A_k = 0)

    Desai and Ramaswamy 2020, https://doi.org/10.1109/WACV45572.2020.9093360. The paper, and pytorch-grad-cam 1.5's
    `AblationCAM`, divide the weights by s(A). That scales a class's whole map, turns it over where s(A) is negative, and has no
    meaning for a logit, to which any constant may be added; so it is left out. Where s(A) > 0 the normalised maps are equal;
    where it is negative, theirs is the other polarity.

    As in the paper a channel is set to 0. pytorch-grad-cam does so only where the layer's lowest value is 0 (after a ReLU);
    elsewhere it sets 1e7 less than the lowest value, which no network was trained to see. Of tokens only those of the grid lose
    the channel; its `AblationLayerVit` takes it from the class token too, which has no place on the map.
    """
    return tuple(_ablationcam(query, layer) for layer in query.layers)


def _ablationcam(query: Query, layer: LayerSplit) -> Tensor:
    own = layer.activations

    def without(channels: Tensor) -> Tensor:
        rows = own.repeat(len(channels), 1, 1, 1)
        rows[torch.arange(len(channels)), channels] = 0
        return query.target.score(layer.logits(rows))

    weights = query.target.score(query.head(layer, own)) - query.runner.chunked(without, torch.arange(own.shape[1]), HEAD_ROWS)
    return weigh(weights[None], own, query.parameters)[0]


def reciprocam(query: Query) -> tuple[Tensor, ...]:
    r"""Recipro-CAM: the score that each cell of the grid brings about by itself.

    .. math:: L_{ij} = s(A \odot g_{ij}) - s(0)

    g_ij is a 3x3 Gaussian ((1, 2, 1) x (1, 2, 1) / 16) around the cell, 0 elsewhere, cut off at the border. Byun and Lee 2022,
    https://arxiv.org/abs/2209.14074, section 3.2. The paper's implementation takes the class's probability; here the score is
    a logit, as everywhere in this service. s(0) is subtracted so that the map is signed: above 0 is what raises the score.
    Scaled from minimum to maximum without a ReLU, as in the paper, it makes no difference.
    """
    return tuple(_reciprocam(query, layer) for layer in query.layers)


def _reciprocam(query: Query, layer: LayerSplit) -> Tensor:
    own = layer.activations
    size = (own.shape[2], own.shape[3])
    cells = size[0] * size[1]
    side = torch.tensor([1.0, 2.0, 1.0]).to(own)
    kernel = torch.outer(side, side)[None, None] / 16

    def alone(numbers: Tensor) -> Tensor:
        spots = nn.functional.one_hot(numbers, cells).to(own).view(-1, 1, *size)
        return query.target.score(layer.logits(own * nn.functional.conv2d(spots, kernel, padding=1)))

    scores = query.runner.chunked(alone, torch.arange(cells), HEAD_ROWS)
    return scores.view(size) - query.target.score(query.head(layer, torch.zeros_like(own)))


def shapleycam(query: Query) -> tuple[Tensor, ...]:
    r"""ShapleyCAM: Grad-CAM with the gradient that a second-order Shapley value has.

    .. math:: L = \sum_k w_k A_k, \qquad w_k = \frac{1}{hw} \sum_{ij} \Big(G - \frac{1}{2} H A\Big)_{kij}

    G is ds/dA, H A the product of the score's Hessian with A, by differentiating <G, A> once more; it is 0 where the head is
    linear around A, and the map is then Grad-CAM's. Cai 2025, https://arxiv.org/abs/2501.06261. Convention of pytorch-grad-cam
    1.5's `ShapleyCAM`.
    """
    return tuple(_shapleycam(query, layer) for layer in query.layers)


def _shapleycam(query: Query, layer: LayerSplit) -> Tensor:
    own = layer.activations.requires_grad_()
    # Only the plain attention kernel can be differentiated twice.
    with _kernel, sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        (gradient,) = torch.autograd.grad(query.target.score(layer.logits(own)).sum(), own, create_graph=True)
        curvature = None
        if gradient.requires_grad:
            (curvature,) = torch.autograd.grad(gradient, own, own.detach(), allow_unused=True)
    shared = gradient.detach() if curvature is None else gradient.detach() - curvature / 2
    return gradcam(own.detach(), shared, query.parameters)[0]


def finercam(query: Query) -> tuple[Tensor, ...]:
    r"""Finer-CAM: Grad-CAM for what sets the class apart from those most like it.

    .. math:: s = \frac{\sum_r p_r (l_c - l_r)}{\sum_r p_r}

    r runs over the `rivals` classes whose logits l_r are nearest to the class's l_c, or is `versus` alone where that is given;
    p is the softmax of the logits, differentiated too. Zhang et al. 2025, https://arxiv.org/abs/2501.11309, with alpha = 1.
    Convention of pytorch-grad-cam 1.5's `FinerCAM` and `FinerWeightedTarget` without its eps (1e-9), which takes over where all
    rivals are improbable.
    """
    rivals = _rivals(query)
    return tuple(
        _gradcam(query, layer, lambda logits: finer_score(logits, query.target.class_id, rivals)) for layer in query.layers
    )


def finer_score(logits: Tensor, class_id: int, rivals: Tensor, alpha: float = 1.0) -> Tensor:
    """Of logits ``[n, classes]``: ``[n]``; `rivals` int64 ``[R]``. With alpha 0, or without a rival, the class's logit."""
    own = logits[:, class_id]
    if not len(rivals):
        return own
    others = logits[:, rivals]
    return own - alpha * (others.softmax(1) * others).sum(1)


def _rivals(query: Query) -> Tensor:
    if query.target.versus is not None:
        return torch.tensor([query.target.versus], device=query.logits.device)
    distance = (query.logits - query.logits[query.target.class_id]).abs()
    distance[query.target.class_id] = -1
    return distance.argsort(stable=True)[1 : 1 + (query.parameters.rivals or 0)]


def _gradcam(query: Query, layer: LayerSplit, score: Callable[[Tensor], Tensor]) -> Tensor:
    own = layer.activations.requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(score(layer.logits(own)).sum(), own)
    return gradcam(own.detach(), gradient, query.parameters)[0]


_head_method = functools.partial(QueryMethod, family="head of the network", defaults=MethodParameters(eigen_smooth=False))

METHODS = (
    _head_method(
        name="ablationcam",
        cost="head",
        lane="slow",  # a pass of the head for every channel
        paper="https://doi.org/10.1109/WACV45572.2020.9093360",
        summary="Channels of a layer weighted by the logit that is lost without each; only the head is run again.",
        explain=ablationcam,
    ),
    _head_method(
        name="reciprocam",
        cost="head",
        lane="slow",  # a pass of the head for every cell
        paper="https://arxiv.org/abs/2209.14074",
        summary="The logit that each cell of a layer brings about by itself; only the head is run again.",
        defaults=MethodParameters(),
        explain=reciprocam,
    ),
    _head_method(
        name="shapleycam",
        cost="head",
        paper="https://arxiv.org/abs/2501.06261",
        summary="Grad-CAM with the curvature of the class's logit taken into account.",
        explain=shapleycam,
    ),
    _head_method(
        name="finercam",
        family="fine-grained",
        cost="head",
        paper="https://arxiv.org/abs/2501.11309",
        summary="Grad-CAM for what sets the class apart from the `rivals` classes most like it.",
        defaults=MethodParameters(eigen_smooth=False, rivals=3),
        explain=finercam,
    ),
)
