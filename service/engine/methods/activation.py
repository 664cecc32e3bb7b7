"""Class activation maps from activations alone, without gradients, so that they are the same for every class.

Activations A are float ``[N, K, h, w]``, maps signed float ``[N, h, w]``, in units of the activations. All methods but the
random baseline are deterministic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from service.engine.methods.components import first_component, first_kernel_component
from service.engine.methods.gradient import passes, weigh
from service.engine.methods.method import BatchedMethod, Query, QueryMethod
from service.engine.types import MethodParameters
from service.errors import MethodNotApplicable

SIGMAS = 2  # FEM counts a cell as active from so many deviations above its channel's mean
MAX_CELLS = 1600  # of a layer for kernel PCA, which takes about a second then


def eigencam(activations: Tensor, _: Tensor, __: MethodParameters) -> Tensor:
    r"""Eigen-CAM: first principal component of the activations.

    .. math:: L = (X - \bar X) v_1, \qquad X_{ij,k} = A_{kij}

    Muhammad and Yeasin 2020, https://arxiv.org/abs/2008.00299. The activations are centred as in pytorch-grad-cam 1.5's
    `EigenCAM` (the paper does not centre them); the sign, arbitrary there, is that of the sum over channels (see
    `first_component`).
    """
    return first_component(activations)


def kpca_cam(query: Query) -> tuple[Tensor, ...]:
    r"""KPCA-CAM: first principal component of the activations in the feature space of a sigmoid kernel.

    .. math:: L = \sqrt{\lambda_1} u_1, \qquad \text{centred } \tanh(X X^T / K + 1) = U \Lambda U^T

    Karmani et al. 2024, https://arxiv.org/abs/2410.00267. Convention of pytorch-grad-cam 1.5's `KPCA_CAM`, sign included.

    Raises:
        MethodNotApplicable: the layer has more than `MAX_CELLS` cells.
    """
    maps = []
    for layer in query.layers:
        activations = layer.activations
        if activations.shape[2] * activations.shape[3] > MAX_CELLS:
            raise MethodNotApplicable(
                f"method: kpca_cam compares every cell of a layer with every other, and takes layers of at most {MAX_CELLS} "
                "cells. Name a deeper layer, or use eigencam."
            )
        maps.append(first_kernel_component(activations)[0])
    return tuple(maps)


def fem(activations: Tensor, _: Tensor, __: MethodParameters) -> Tensor:
    r"""FEM, the feature explanation method: channels weighted by the fraction of cells with a high activation.

    .. math:: L = \sum_k w_k A_k, \qquad w_k = \frac{1}{hw} \sum_{ij} [A_{kij} > \mu_k + 2 \sigma_k]

    Fuad et al. 2020, https://hal.science/hal-02963298. Convention of pytorch-grad-cam 1.5's `FEM`: mean and (biased) deviation
    of each channel over its grid.
    """
    deviations, means = torch.std_mean(activations, dim=(2, 3), correction=0, keepdim=True)
    shares = (activations > means + SIGMAS * deviations).to(activations.dtype).mean(dim=(2, 3))
    return torch.einsum("nk,nkhw->nhw", shares, activations)


def random_cam(activations: Tensor, _: Tensor, parameters: MethodParameters) -> Tensor:
    r"""Random-CAM: channels weighted at random, a baseline for other methods.

    .. math:: L = \sum_k w_k A_k, \qquad w_k \sim U(-1, 1)

    This is pytorch-grad-cam 1.5's `RandomCAM`. The weights depend on `seed` and K alone.
    """
    generator = torch.Generator().manual_seed(parameters.seed or 0)
    weights = torch.rand(1, activations.shape[1], generator=generator).mul_(2).sub_(1)
    return weigh(weights.to(activations).expand(len(activations), -1), activations, parameters)


METHODS = (
    BatchedMethod(
        name="eigencam",
        family="activations of a layer",
        cost="head",
        paper="https://arxiv.org/abs/2008.00299",
        summary="First principal component of a layer's activations; the same for every class.",
        raw_unit="activation",
        defaults=MethodParameters(aug_smooth=False),
        cam=eigencam,
        uses_gradients=False,
        passes=passes,
    ),
    QueryMethod(
        name="kpca_cam",
        family="activations of a layer",
        cost="head",
        paper="https://arxiv.org/abs/2410.00267",
        summary="First kernel principal component of a layer's activations; the same for every class.",
        raw_unit="none",
        explain=kpca_cam,
    ),
    BatchedMethod(
        name="fem",
        family="activations of a layer",
        cost="head",
        paper="https://hal.science/hal-02963298",
        summary="Channels weighted by how much of the grid they stand out in; the same for every class.",
        raw_unit="activation",
        defaults=MethodParameters(aug_smooth=False),
        cam=fem,
        uses_gradients=False,
        passes=passes,
    ),
    BatchedMethod(
        name="random_cam",
        family="activations of a layer",
        cost="head",
        paper="https://github.com/jacobgil/pytorch-grad-cam",
        summary="Channels weighted at random: a baseline, the same for every class.",
        raw_unit="activation",
        defaults=MethodParameters(eigen_smooth=False, aug_smooth=False, seed=0),
        cam=random_cam,
        uses_gradients=False,
        passes=passes,
    ),
)
