"""Class activation maps from one gradient at a layer: pure functions of activations and gradients.

All map activations A and gradients G = d score / d A, float ``[N, K, h, w]``, to signed maps, float ``[N, h, w]``, in units of
the score (a logit, or a difference of two). Polarity and scale are applied later. With `eigen_smooth` the first principal
component of the channels replaces their sum, as in pytorch-grad-cam.
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.engine.methods.augmentation import VIEWS
from service.engine.methods.components import first_component, total
from service.engine.methods.method import BatchedMethod, Cam
from service.engine.types import MethodParameters


def gradcam(activations: Tensor, gradients: Tensor, parameters: MethodParameters) -> Tensor:
    r"""Grad-CAM: channels weighted by their mean gradient.

    .. math:: L = \sum_k w_k A_k, \qquad w_k = \frac{1}{hw} \sum_{ij} G_{kij}

    Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2 before the ReLU, which is `polarity=positive`.
    Convention of pytorch-grad-cam 1.5's `GradCAM`.
    """
    return weigh(gradients.mean(dim=(2, 3)), activations, parameters)


def hirescam(activations: Tensor, gradients: Tensor, parameters: MethodParameters) -> Tensor:
    r"""HiResCAM: every cell weighted by its own gradient.

    .. math:: L_{ij} = \sum_k G_{kij} A_{kij}

    Draelos and Carin 2020, https://arxiv.org/abs/2011.08891. Convention of pytorch-grad-cam 1.5's `HiResCAM`. On a head that is
    global average pooling and one linear layer it equals Grad-CAM and the original CAM.
    """
    return total(gradients * activations, eigen_smooth=parameters.eigen_smooth)


def gradcam_elementwise(activations: Tensor, gradients: Tensor, parameters: MethodParameters) -> Tensor:
    r"""HiResCAM without negative products: in each channel, evidence against the class is left out.

    .. math:: L_{ij} = \sum_k \max(G_{kij} A_{kij}, 0)

    pytorch-grad-cam 1.5's `GradCAMElementWise`, after the elementwise product of https://arxiv.org/abs/2011.08891.
    """
    return total((gradients * activations).relu(), eigen_smooth=parameters.eigen_smooth)


def gradcam_plusplus(activations: Tensor, gradients: Tensor, parameters: MethodParameters) -> Tensor:
    r"""Grad-CAM++: positive gradients, weighted so that small and repeated objects count as large ones do.

    .. math:: L = \sum_k w_k A_k, \qquad w_k = \sum_{ij} \frac{\max(G_{kij}, 0)}{2 + G_{kij} \sum_{ab} A_{kab}}

    Chattopadhay et al. 2018, https://arxiv.org/abs/1710.11063, equations 5 and 19, the fraction G² / (2 G² + G³ ΣA) reduced by
    G²; 0 where the gradient is 0 (and where the denominator is). The paper's score is exp(logit), which scales the whole map.

    pytorch-grad-cam 1.5 adds 1e-6 to the unreduced denominator. Gradients behind global average pooling are so small (1e-4)
    that their squares are negligible beside it, and its map is a different one: that of max(G, 0)³. With that constant set to
    0, both maps are equal.
    """
    denominators = 2 + gradients * activations.sum(dim=(2, 3), keepdim=True)
    shares = torch.where(denominators == 0, 0, gradients.relu() / denominators)
    return weigh(shares.sum(dim=(2, 3)), activations, parameters)


def xgradcam(activations: Tensor, gradients: Tensor, parameters: MethodParameters) -> Tensor:
    r"""XGrad-CAM: channels weighted by their gradient where they are active.

    .. math:: L = \sum_k w_k A_k, \qquad w_k = \frac{\sum_{ij} G_{kij} A_{kij}}{\sum_{ij} A_{kij}}

    Fu et al. 2020, https://arxiv.org/abs/2008.02312, equation 8. Convention of pytorch-grad-cam 1.5's `XGradCAM`, which adds
    1e-7 to the denominator; here the weight of a channel whose sum is 0 is 0. Where the terms of a sum almost cancel, as behind
    the layer norms of transformers, rounding errors are divided by a small number: in float32 the map has three or four correct
    digits.
    """
    sums = activations.sum(dim=(2, 3))
    weights = (gradients * activations).sum(dim=(2, 3)) / sums
    return weigh(torch.where(sums == 0, 0, weights), activations, parameters)


def layercam(activations: Tensor, gradients: Tensor, parameters: MethodParameters) -> Tensor:
    r"""LayerCAM: every cell weighted by its own gradient where that is positive; suitable for early layers too.

    .. math:: L_{ij} = \sum_k \max(G_{kij}, 0) A_{kij}

    Jiang et al. 2021, https://ieeexplore.ieee.org/document/9462463, equations 6 to 8 before the ReLU. Convention of
    pytorch-grad-cam 1.5's `LayerCAM`.
    """
    return total(gradients.relu() * activations, eigen_smooth=parameters.eigen_smooth)


def eigengradcam(activations: Tensor, gradients: Tensor, _: MethodParameters) -> Tensor:
    r"""Eigen-Grad-CAM: first principal component of the elementwise product of gradients and activations.

    .. math:: L = (X - \bar X) v_1, \qquad X_{ij,k} = G_{kij} A_{kij}

    After Muhammad and Yeasin 2020, https://arxiv.org/abs/2008.00299. pytorch-grad-cam 1.5's `EigenGradCAM`, but for the sign,
    which is arbitrary there (see `first_component`).
    """
    return first_component(gradients * activations)


def weigh(weights: Tensor, activations: Tensor, parameters: MethodParameters) -> Tensor:
    """Maps ``[N, h, w]`` of channels weighted by ``[N, K]``: their sum, or their first principal component."""
    if parameters.eigen_smooth:
        return first_component(weights[..., None, None] * activations)
    return torch.einsum("nk,nkhw->nhw", weights, activations)


def passes(parameters: MethodParameters) -> int:
    """Number of forward passes of one image: one, or one for each of its views."""
    return VIEWS if parameters.aug_smooth else 1


def _method(name: str, cam: Cam, paper: str, summary: str) -> BatchedMethod:
    has_eigen_smooth = cam is not eigengradcam  # which is the first component already
    return BatchedMethod(
        name=name,
        family="gradient at a layer",
        cost="head",
        paper=paper,
        summary=summary,
        raw_unit="logit",
        defaults=MethodParameters(eigen_smooth=False if has_eigen_smooth else None, aug_smooth=False),
        cam=cam,
        passes=passes,
    )


METHODS = (
    _method(
        "gradcam",
        gradcam,
        "https://arxiv.org/abs/1610.02391",
        "Channels of a layer weighted by the mean gradient of the class's logit.",
    ),
    _method(
        "hirescam",
        hirescam,
        "https://arxiv.org/abs/2011.08891",
        "Activations times gradients, cell by cell: no more is shown than the network used.",
    ),
    _method(
        "gradcam_elementwise",
        gradcam_elementwise,
        "https://arxiv.org/abs/2011.08891",
        "Activations times gradients, cell by cell, only what speaks for the class; at a last layer much alike for any class.",
    ),
    _method(
        "gradcam_plusplus",
        gradcam_plusplus,
        "https://arxiv.org/abs/1710.11063",
        "Positive gradients, weighted so that several objects of a class all count; at a last layer much alike for any class.",
    ),
    _method(
        "xgradcam",
        xgradcam,
        "https://arxiv.org/abs/2008.02312",
        "Channels weighted by the gradient where they are active.",
    ),
    _method(
        "layercam",
        layercam,
        "https://ieeexplore.ieee.org/document/9462463",
        "Activations times positive gradients, cell by cell: fine at early layers; at a last one much alike for any class.",
    ),
    _method(
        "eigengradcam",
        eigengradcam,
        "https://arxiv.org/abs/2008.00299",
        "First principal component of activations times gradients.",
    ),
)
