"""Surrogates: a linear model of the superpixels, fitted to the scores of images in which some superpixels are covered.

The models are least squares in a few dozen unknowns, solved by numpy in double precision. The pixels of a covered superpixel
are 0 in normalised units: the mean colour. The map has each superpixel's coefficient on all its pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.graph.runner import NETWORK_ROWS
from service.engine.methods.method import Query, QueryMethod
from service.engine.methods.superpixels import superpixels
from service.engine.types import MethodParameters

KERNEL_WIDTH = 0.25  # of LIME's kernel over cosine distances
RIDGE = 1.0  # LIME's penalty

Coalitions = NDArray[np.bool_]  # ``[n, M]``: which of the M superpixels are visible
Numbers = NDArray[np.float64]


def lime(query: Query) -> tuple[Tensor]:
    r"""LIME: ridge regression on coalitions z, weighted by their proximity to the whole image.

    .. math:: \min_{\beta_0, \beta} \sum_k \pi_k (s(x_{z_k}) - \beta_0 - \beta^T z_k)^2 + \lVert \beta \rVert^2, \qquad
        \pi_k = e^{-d_k^2 / (2 \cdot 0.25^2)}, \quad d_k = 1 - \sqrt{|z_k| / M}

    Ribeiro et al. 2016, https://arxiv.org/abs/1602.04938. Convention of the authors' `lime_image`: every superpixel is visible
    with probability one half, the first sample is the whole image, d is the cosine distance to it, the penalty 1. There are two
    differences: the score is a logit, not a probability, and covered pixels have the mean colour of the training images. z_k in
    {0, 1}^M, M about `segments`, `samples` coalitions.
    """
    samples, labels, count = _segment(query)
    rng = np.random.default_rng(query.parameters.seed)
    visible = rng.random((samples, count)) < 0.5
    visible[0] = True
    scores = _scores(query, visible, labels)
    distance = 1 - np.sqrt(visible.mean(axis=1))
    return (_coefficient_map(query, ridge(visible, scores, np.exp(-(distance**2) / (2 * KERNEL_WIDTH**2)), RIDGE), labels),)


def kernel_shap(query: Query) -> tuple[Tensor]:
    r"""KernelSHAP: Shapley values of superpixels, estimated by weighted least squares.

    .. math:: \min_\phi \sum_k (s(x_{z_k}) - s(x_0) - \phi^T z_k)^2 \quad \text{with} \quad \sum_m \phi_m = s(x) - s(x_0)

    Lundberg and Lee 2017, https://arxiv.org/abs/1705.07874, section 4.1. Coalitions are sampled from the Shapley kernel: the
    size j of 1..M-1 with probability proportional to 1 / (j (M - j)), the members uniformly, and each coalition with its
    complement (Covert and Lee 2021, https://arxiv.org/abs/2012.01536), so that all have the same weight. The estimate is exact
    if the score is linear in z. x_0 is the image with all superpixels covered. The coefficients add up to s(x) - s(x_0); the
    map has each coefficient on all pixels of its superpixel.
    """
    samples, labels, count = _segment(query)
    rng = np.random.default_rng(query.parameters.seed)
    visible = np.concatenate([np.ones((1, count), bool), np.zeros((1, count), bool), coalitions(rng, samples, count)])
    whole, blank, *scores = _scores(query, visible, labels)
    return (_coefficient_map(query, shapley(visible[2:], np.array(scores) - blank, whole - blank), labels),)


def coalitions(rng: np.random.Generator, samples: int, count: int) -> Coalitions:
    """Coalitions ``[samples, count]`` sampled from the Shapley kernel, in pairs that complement each other."""
    if count == 1:
        return np.zeros((0, 1), bool)
    sizes = np.arange(1, count)
    weights = 1 / (sizes * (count - sizes))
    members = rng.choice(sizes, size=-(-samples // 2), p=weights / weights.sum())
    ranks = rng.random((len(members), count)).argsort(axis=1).argsort(axis=1)
    half = ranks < members[:, None]
    return np.stack([half, ~half], 1).reshape(-1, count)[:samples]


def shapley(visible: Coalitions, gains: Numbers, total: float) -> Numbers:
    """The phi ``[M]`` of `kernel_shap`, whose constraint eliminates the last unknown.

    Args:
        visible: coalitions ``[n, M]``.
        gains: s(x_z) - s(x_0) of each coalition, ``[n]``.
        total: s(x) - s(x_0).
    """
    z = visible.astype(np.float64)
    rest, last = z[:, :-1], z[:, -1]
    phi, *_ = np.linalg.lstsq(rest - last[:, None], gains - last * total, rcond=None)
    return np.append(phi, total - phi.sum())


def ridge(visible: Coalitions, scores: Numbers, weights: Numbers, penalty: float) -> Numbers:
    """Coefficients ``[M]`` of the weighted ridge regression of scores ``[n]`` on coalitions ``[n, M]``.

    The intercept is not penalised.
    """
    z = visible.astype(np.float64)
    share = weights / weights.sum()
    z, y = z - share @ z, scores - share @ scores
    coefficients: Numbers = np.linalg.solve((z.T * weights) @ z + penalty * np.eye(z.shape[1]), (z.T * weights) @ y)
    return coefficients


def _segment(query: Query) -> tuple[int, NDArray[np.int64], int]:
    """The number of samples, the label of each pixel's superpixel ``[H, W]``, and the number of superpixels."""
    samples, segments = query.parameters.samples, query.parameters.segments
    assert samples is not None
    assert segments is not None
    labels = superpixels(query.image[0].permute(1, 2, 0).cpu().numpy(), segments)
    return samples, labels, int(labels.max()) + 1


def _scores(query: Query, visible: Coalitions, labels: NDArray[np.int64]) -> Numbers:
    """The score of each coalition, ``[n]``."""
    label_tensor = torch.from_numpy(labels).to(query.image.device)

    def score_masked_images(chunk: Tensor) -> Tensor:
        return query.target.score(query.runner.logits(query.image * chunk.to(query.image)[:, label_tensor][:, None]))

    scores = query.runner.chunked(score_masked_images, torch.from_numpy(visible), NETWORK_ROWS)
    return np.asarray(scores.cpu().numpy(), np.float64)


def _coefficient_map(query: Query, coefficients: Numbers, labels: NDArray[np.int64]) -> Tensor:
    """The map ``[H, W]`` with each superpixel's coefficient on all its pixels."""
    return torch.from_numpy(coefficients[labels]).to(query.image)


METHODS = (
    QueryMethod(
        name="lime",
        family="surrogate",
        cost="many forwards",
        lane="slow",
        paper="https://arxiv.org/abs/1602.04938",
        summary="Linear model over superpixels, fitted to images with half of them covered, the more visible weighing more.",
        raw_unit="logit",
        has_grid=False,
        defaults=MethodParameters(samples=160, segments=40, seed=0),
        explain=lime,
        layered=False,
        passes=lambda parameters: parameters.samples or 0,
    ),
    QueryMethod(
        name="kernel_shap",
        family="surrogate",
        cost="many forwards",
        lane="slow",
        paper="https://arxiv.org/abs/1705.07874",
        summary="Shapley values of superpixels: what each adds to the logit, averaged over which others are there.",
        raw_unit="logit",
        has_grid=False,
        defaults=MethodParameters(samples=160, segments=40, seed=0),
        explain=kernel_shap,
        layered=False,
        passes=lambda parameters: (parameters.samples or 0) + 2,
    ),
)
