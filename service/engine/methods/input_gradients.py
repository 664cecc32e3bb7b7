"""Input gradients: how the score moves when the image does. Maps of the input's own size, which know no layer.

All differentiate the score (a raw logit, or a difference of two) with respect to the normalised image x, float ``[C, H, W]``,
and give one map ``[H, W]``. Where the sign means something the channels are added, so that what is attributed in all stays the
same; where the method is about sensitivity alone, the largest magnitude over the channels is taken, as Simonyan 2013 does.
In normalised units 0 is the mean colour of the training images: the baseline of every path here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from service.engine.graph.runner import NETWORK_ROWS
from service.engine.methods.method import Query, QueryMethod
from service.engine.types import MethodParameters

GRADIENT_COST = 3  # forward passes that one backward through the whole network is worth, with its own forward pass

Draw = Callable[[int], tuple[Tensor, Tensor]]


def saliency(query: Query) -> tuple[Tensor]:
    r"""Saliency: the largest magnitude of the gradient over the channels.

    .. math:: L_{ij} = \max_c \left| \frac{\partial s}{\partial x_{cij}} \right|

    Simonyan et al. 2013, https://arxiv.org/abs/1312.6034, section 3.1. Never negative. captum's `Saliency` before the maximum.
    """
    return (_strongest(query.runner.gradient(query.image, query.target.score)[0]),)


def input_x_gradient(query: Query) -> tuple[Tensor]:
    r"""Input times gradient: what each pixel adds to the score where the network is linear.

    .. math:: L_{ij} = \sum_c x_{cij} \frac{\partial s}{\partial x_{cij}}

    Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713. captum's `InputXGradient`, added over the channels.
    """
    return ((query.image * query.runner.gradient(query.image, query.target.score))[0].sum(0),)


def smoothgrad(query: Query) -> tuple[Tensor]:
    r"""SmoothGrad: saliency of the mean gradient over noisy copies of the image.

    .. math:: L_{ij} = \max_c \left| \frac{1}{n} \sum_k \nabla s(x + \epsilon_k)_{cij} \right|,
        \qquad \epsilon_k \sim N(0, (\mathrm{noise} \cdot (\max x - \min x))^2)

    Smilkov et al. 2017, https://arxiv.org/abs/1706.03825. The paper averages gradients before their magnitude is taken, as does
    captum's `NoiseTunnel` over `Saliency(abs=False)`; without noise this is saliency. n is `samples`.
    """
    samples, noise = query.parameters.samples, query.parameters.noise
    assert samples is not None
    assert noise is not None
    deviation = noise * (query.image.max() - query.image.min())
    generator = query.generator

    def draw(count: int) -> tuple[Tensor, Tensor]:
        return query.image + deviation * _normal(query, count, generator), torch.ones_like(query.image)

    return (_strongest(_weighted(query, samples, draw) / samples),)


def integrated_gradients(query: Query) -> tuple[Tensor]:
    r"""Integrated gradients along the straight path from the mean colour to the image.

    .. math:: L_{ij} = \sum_c x_{cij} \sum_k w_k \frac{\partial s(\alpha_k x)}{\partial x_{cij}}
        \approx \sum_c x_{cij} \int_0^1 \frac{\partial s(\alpha x)}{\partial x_{cij}} d\alpha

    Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365. Complete: the map adds up to s(x) - s(0), the better the more
    `steps`. The points and weights are Gauss and Legendre's, captum's default; the channels are added.
    """
    steps = query.parameters.steps
    assert steps is not None
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    alphas = torch.from_numpy((nodes + 1) / 2).to(query.image).view(-1, 1, 1, 1)
    shares = torch.from_numpy(weights / 2).to(query.image).view(-1, 1, 1, 1)
    taken = 0

    def draw(count: int) -> tuple[Tensor, Tensor]:
        nonlocal taken
        now = slice(taken, taken + count)
        taken += count
        return alphas[now] * query.image, shares[now] * query.image

    return (_weighted(query, steps, draw).sum(0),)


def gradient_shap(query: Query) -> tuple[Tensor]:
    r"""Gradient SHAP: integrated gradients in expectation over noise and baselines.

    .. math:: L_{ij} = \frac{1}{n} \sum_k \sum_c (x_k - b_k)_{cij} \nabla s(\alpha_k x_k + (1 - \alpha_k) b_k)_{cij},
        \qquad \alpha_k \sim U(0, 1)

    Lundberg and Lee 2017, https://arxiv.org/abs/1705.07874; expected gradients in Erion et al. 2019,
    https://arxiv.org/abs/1906.10670. captum's `GradientShap`, added over the channels: x_k is the image with normal noise of
    `noise` times its range. A baseline b_k is one plain colour, each channel N(0, 1): colours as common as in training, for
    that is what the normalisation made of them. The map adds up to s(x) less the mean score of the baselines, on average.
    n is `samples`.
    """
    samples, noise = query.parameters.samples, query.parameters.noise
    assert samples is not None
    assert noise is not None
    deviation = noise * (query.image.max() - query.image.min())
    generator = query.generator

    def draw(count: int) -> tuple[Tensor, Tensor]:
        colors = torch.randn(count, query.image.shape[1], 1, 1, generator=generator).to(query.image)
        alphas = torch.rand(count, 1, 1, 1, generator=generator).to(query.image)
        noisy = query.image + deviation * _normal(query, count, generator)
        return alphas * noisy + (1 - alphas) * colors, noisy - colors

    return (_weighted(query, samples, draw).sum(0) / samples,)


def _strongest(gradient: Tensor) -> Tensor:
    """``[C, H, W]`` -> ``[H, W]``."""
    return gradient.abs().amax(0)


def _normal(query: Query, count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, *query.image.shape[1:], generator=generator).to(query.image)


def _weighted(query: Query, count: int, draw: Draw) -> Tensor:
    """Sum of weighted gradients ``[C, H, W]`` at `count` points; `draw(n)` gives the next n ``[n, C, H, W]`` and their weights.

    Points are drawn, and their gradients added, a bounded number at a time.
    """
    total = torch.zeros_like(query.image[0])
    passes = -(-count // NETWORK_ROWS)
    for number in range(passes):
        query.runner.checkpoint(number, passes)
        points, weights = draw(min(NETWORK_ROWS, count - number * NETWORK_ROWS))
        total += (weights * query.runner.gradient(points, query.target.score)).sum(0)
    return total


METHODS = (
    QueryMethod(
        name="saliency",
        family="input gradient",
        cost="forward",
        paper="https://arxiv.org/abs/1312.6034",
        summary="Magnitude of the gradient at every pixel: how sensitive the class's logit is to it.",
        explain=saliency,
        layered=False,
        passes=lambda _: GRADIENT_COST,
    ),
    QueryMethod(
        name="input_x_gradient",
        family="input gradient",
        cost="forward",
        paper="https://arxiv.org/abs/1605.01713",
        summary="Gradient times the pixel's difference from the mean colour, signed.",
        explain=input_x_gradient,
        layered=False,
        passes=lambda _: GRADIENT_COST,
    ),
    QueryMethod(
        name="smoothgrad",
        family="input gradient",
        cost="many forwards",
        lane="slow",
        paper="https://arxiv.org/abs/1706.03825",
        summary="Saliency of the mean gradient over noisy copies of the image.",
        defaults=MethodParameters(samples=32, noise=0.15, seed=0),
        explain=smoothgrad,
        layered=False,
        passes=lambda parameters: GRADIENT_COST * (parameters.samples or 0),
    ),
    QueryMethod(
        name="integrated_gradients",
        family="input gradient",
        cost="many forwards",
        lane="slow",
        paper="https://arxiv.org/abs/1703.01365",
        summary="Gradients added up on the way from the mean colour to the image; they sum to the difference in the logit.",
        defaults=MethodParameters(steps=32),
        explain=integrated_gradients,
        layered=False,
        passes=lambda parameters: GRADIENT_COST * (parameters.steps or 0),
    ),
    QueryMethod(
        name="gradient_shap",
        family="input gradient",
        cost="many forwards",
        lane="slow",
        paper="https://arxiv.org/abs/1705.07874",
        summary="Integrated gradients averaged over noise and over plain baselines of many colours.",
        defaults=MethodParameters(samples=32, noise=0.1, seed=0),
        explain=gradient_shap,
        layered=False,
        passes=lambda parameters: GRADIENT_COST * (parameters.samples or 0),
    ),
)
