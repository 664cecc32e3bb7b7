"""Class activation maps from one gradient at the cut: pure functions of activations and gradients.

All take activations A and gradients G = d score / d A, float ``[N, K, h, w]``, and give signed maps, float ``[N, h, w]``, in
units of the score (a logit, or a difference of two). Polarity and scaling come after.
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.engine.methods.method import Method
from service.engine.work import Tuning


def gradcam(activations: Tensor, gradients: Tensor, _: Tuning) -> Tensor:
    r"""Grad-CAM: channels weighted by their mean gradient.

    .. math:: L = \sum_k w_k A_k, \qquad w_k = \frac{1}{hw} \sum_{ij} G_{kij}

    Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, equations 1 and 2 before the ReLU, which is `polarity=positive`.
    Convention of pytorch-grad-cam 1.5's `GradCAM`.
    """
    weights = gradients.mean(dim=(2, 3))
    return torch.einsum("nk,nkhw->nhw", weights, activations)


METHODS = (
    Method(
        name="gradcam",
        family="gradient at a layer",
        cost="head",
        paper="https://arxiv.org/abs/1610.02391",
        summary="Channels of a layer weighted by the mean gradient of the class's logit.",
        cam=gradcam,
    ),
)
