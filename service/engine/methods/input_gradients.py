"""Input gradients: the derivative of the score by the image. Maps have the input's size and belong to no layer.

All methods differentiate the score (a raw logit, or a difference of two) with respect to the normalised image x, float
``[C, H, W]``, and give one map ``[H, W]``. A signed map is the sum over the channels, which preserves the total attribution; a
map of sensitivity is the largest magnitude over the channels, as in Simonyan 2013. In normalised units 0 is the mean colour of
the training images: the baseline of every path here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from service.engine.graph.runner import NETWORK_ROWS
from service.engine.methods.method import Query, QueryMethod
from service.engine.types import MethodParameters

GRADIENT_COST = 3  # cost of one forward and backward pass of the whole network, in forward passes

# n -> the next n points ``[n, C, H, W]`` and the weights of their gradients, broadcastable to them.
Draw = Callable[[int], tuple[Tensor, Tensor]]


def saliency(query: Query) -> tuple[Tensor]:
    r"""Saliency: the largest magnitude of the gradient over the channels.

    .. math:: L_{ij} = \max_c \left| \frac{\partial s}{\partial x_{cij}} \right|

    Simonyan et al. 2013, https://arxiv.org/abs/1312.6034, section 3.1. The map is never negative. Before the maximum it is
    captum's `Saliency`.
    """
    return (_max_magnitude(query.runner.gradient(query.image, query.target.score)[0]),)


def input_x_gradient(query: Query) -> tuple[Tensor]:
    r"""Input times gradient: the contribution of each pixel to the score of a linear network.

    .. math:: L_{ij} = \sum_c x_{cij} \frac{\partial s}{\partial x_{cij}}

    Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713. It is captum's `InputXGradient`, summed over the channels.
    """
    return ((query.image * query.runner.gradient(query.image, query.target.score))[0].sum(0),)


def smoothgrad(query: Query) -> tuple[Tensor]:
    r"""SmoothGrad: saliency of the mean gradient over noisy copies of the image.

    .. math:: L_{ij} = \max_c \left| \frac{1}{n} \sum_k \nabla s(x + \epsilon_k)_{cij} \right|,
        \qquad \epsilon_k \sim N(0, (\mathrm{noise} \cdot (\max x - \min x))^2)

    Smilkov et al. 2017, https://arxiv.org/abs/1706.03825. The paper takes the magnitude of the averaged gradients, as does
    captum's `NoiseTunnel` over `Saliency(abs=False)`; without noise the map is that of saliency. n is `samples`.
    """
    samples, noise = query.parameters.samples, query.parameters.noise
    assert samples is not None
    assert noise is not None
    deviation = noise * (query.image.max() - query.image.min())
    generator = query.generator

    def draw(count: int) -> tuple[Tensor, Tensor]:
        return query.image + deviation * _sample_normal(query, count, generator), torch.ones_like(query.image)

    return (_max_magnitude(_sum_weighted_gradients(query, samples, draw) / samples),)


def integrated_gradients(query: Query) -> tuple[Tensor]:
    r"""Integrated gradients along the straight path from the mean colour to the image.

    .. math:: L_{ij} = \sum_c x_{cij} \sum_k w_k \frac{\partial s(\alpha_k x)}{\partial x_{cij}}
        \approx \sum_c x_{cij} \int_0^1 \frac{\partial s(\alpha x)}{\partial x_{cij}} d\alpha

    Sundararajan et al. 2017, https://arxiv.org/abs/1703.01365. Completeness: the sum of the map approaches s(x) - s(0) as
    `steps` grows. Points and weights are those of Gauss-Legendre quadrature, captum's default; the map is summed over the
    channels.
    """
    steps = query.parameters.steps
    assert steps is not None
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    alphas = torch.from_numpy((nodes + 1) / 2).to(query.image).view(-1, 1, 1, 1)
    shares = torch.from_numpy(weights / 2).to(query.image).view(-1, 1, 1, 1)
    start = 0

    def draw(count: int) -> tuple[Tensor, Tensor]:
        nonlocal start
        chunk = slice(start, start + count)
        start += count
        return alphas[chunk] * query.image, shares[chunk] * query.image

    return (_sum_weighted_gradients(query, steps, draw).sum(0),)


def gradient_shap(query: Query) -> tuple[Tensor]:
    r"""Gradient SHAP: integrated gradients in expectation over noise and baselines.

    .. math:: L_{ij} = \frac{1}{n} \sum_k \sum_c (x_k - b_k)_{cij} \nabla s(\alpha_k x_k + (1 - \alpha_k) b_k)_{cij},
        \qquad \alpha_k \sim U(0, 1)

    Lundberg and Lee 2017, https://arxiv.org/abs/1705.07874; expected gradients in Erion et al. 2019,
    https://arxiv.org/abs/1906.10670. It is captum's `GradientShap`, summed over the channels: x_k is the image with normal
    noise of `noise` times its range. A baseline b_k is one uniform colour, each channel N(0, 1): normalisation gives the
    colours of the training images that mean and deviation. The expected sum of the map is s(x) less the mean score of the
    baselines. n is `samples`.
    """
    samples, noise = query.parameters.samples, query.parameters.noise
    assert samples is not None
    assert noise is not None
    deviation = noise * (query.image.max() - query.image.min())
    generator = query.generator

    def draw(count: int) -> tuple[Tensor, Tensor]:
        colors = torch.randn(count, query.image.shape[1], 1, 1, generator=generator).to(query.image)
        alphas = torch.rand(count, 1, 1, 1, generator=generator).to(query.image)
        noisy = query.image + deviation * _sample_normal(query, count, generator)
        return alphas * noisy + (1 - alphas) * colors, noisy - colors

    return (_sum_weighted_gradients(query, samples, draw).sum(0) / samples,)


def _max_magnitude(gradient: Tensor) -> Tensor:
    """The largest magnitude over the channels: ``[C, H, W]`` -> ``[H, W]``."""
    return gradient.abs().amax(0)


def _sample_normal(query: Query, count: int, generator: torch.Generator) -> Tensor:
    """Standard normal noise, ``[count, C, H, W]``."""
    return torch.randn(count, *query.image.shape[1:], generator=generator).to(query.image)


def _sum_weighted_gradients(query: Query, count: int, draw: Draw) -> Tensor:
    """The sum ``[C, H, W]`` of weighted gradients at `count` points, computed for a bounded number of points at a time."""
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
        raw_unit="logit",
        has_grid=False,
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
        raw_unit="logit",
        has_grid=False,
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
        raw_unit="logit",
        has_grid=False,
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
        raw_unit="logit",
        has_grid=False,
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
        raw_unit="logit",
        has_grid=False,
        defaults=MethodParameters(samples=32, noise=0.1, seed=0),
        explain=gradient_shap,
        layered=False,
        passes=lambda parameters: GRADIENT_COST * (parameters.samples or 0),
    ),
)
