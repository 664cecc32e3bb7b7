"""Surrogates: a linear model of which superpixels matter, fitted to the network's answers to images with parts covered.

Least squares in a few dozen unknowns, so written out here in double precision rather than asked of a library. A covered
superpixel takes 0 in normalised units: the mean colour. The map has each superpixel's coefficient on all its pixels.
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

KERNEL_WIDTH = 0.25  # of LIME, over cosine distances
RIDGE = 1.0

Coalitions = NDArray[np.bool_]
Numbers = NDArray[np.float64]


def lime(query: Query) -> tuple[Tensor]:
    r"""LIME: ridge regression on coalitions z near the whole image, those nearer weighing more.

    .. math:: \min_{\beta_0, \beta} \sum_k \pi_k (s(x_{z_k}) - \beta_0 - \beta^T z_k)^2 + \lVert \beta \rVert^2, \qquad
        \pi_k = e^{-d_k^2 / (2 \cdot 0.25^2)}, \quad d_k = 1 - \sqrt{|z_k| / M}

    Ribeiro et al. 2016, https://arxiv.org/abs/1602.04938. Convention of the authors' `lime_image`: every superpixel is shown
    with probability one half, the first sample is the whole image, d is the cosine distance to it, the penalty 1. Two things
    differ: the score is a logit, not a probability, and what is covered takes the mean colour of the training images. z_k in
    {0, 1}^M, M about `segments`, `samples` coalitions.
    """
    samples, labels, count = _prepare(query)
    random = np.random.default_rng(query.parameters.seed)
    shown = random.random((samples, count)) < 0.5
    shown[0] = True
    scores = _scores(query, shown, labels)
    distance = 1 - np.sqrt(shown.mean(axis=1))
    return (_spread(query, ridge(shown, scores, np.exp(-(distance**2) / (2 * KERNEL_WIDTH**2)), RIDGE), labels),)


def kernel_shap(query: Query) -> tuple[Tensor]:
    r"""KernelSHAP: Shapley values of superpixels, estimated by weighted least squares.

    .. math:: \min_\phi \sum_k (s(x_{z_k}) - s(x_0) - \phi^T z_k)^2 \quad \text{with} \quad \sum_m \phi_m = s(x) - s(x_0)

    Lundberg and Lee 2017, https://arxiv.org/abs/1705.07874, section 4.1. Coalitions are drawn as their kernel weighs them: the
    size j of 1..M-1 with probability proportional to 1 / (j (M - j)), its members at random, and each with its complement
    (Covert and Lee 2021, https://arxiv.org/abs/2012.01536), so that all weigh the same. Exact where the score is linear in z.
    x_0 is the image with all covered. The coefficients add up to s(x) - s(x_0); the map repeats each on all its pixels.
    """
    samples, labels, count = _prepare(query)
    random = np.random.default_rng(query.parameters.seed)
    shown = np.concatenate([np.ones((1, count), bool), np.zeros((1, count), bool), coalitions(random, samples, count)])
    whole, blank, *scores = _scores(query, shown, labels)
    return (_spread(query, shapley(shown[2:], np.array(scores) - blank, whole - blank), labels),)


def coalitions(random: np.random.Generator, samples: int, count: int) -> Coalitions:
    """Coalitions ``[samples, count]`` drawn as the Shapley kernel weighs them, in pairs that complement each other."""
    if count == 1:
        return np.zeros((0, 1), bool)
    sizes = np.arange(1, count)
    weights = 1 / (sizes * (count - sizes))
    drawn = random.choice(sizes, size=-(-samples // 2), p=weights / weights.sum())
    ranks = random.random((len(drawn), count)).argsort(axis=1).argsort(axis=1)
    half = ranks < drawn[:, None]
    return np.stack([half, ~half], 1).reshape(-1, count)[:samples]


def shapley(shown: Coalitions, gains: Numbers, total: float) -> Numbers:
    """The phi ``[M]`` of `kernel_shap` for coalitions ``[n, M]``; its constraint is met by eliminating the last unknown."""
    z = shown.astype(np.float64)
    rest, last = z[:, :-1], z[:, -1]
    phi, *_ = np.linalg.lstsq(rest - last[:, None], gains - last * total, rcond=None)
    return np.append(phi, total - phi.sum())


def ridge(shown: Coalitions, scores: Numbers, weights: Numbers, penalty: float) -> Numbers:
    """Coefficients ``[M]`` of weighted ridge regression; the intercept is not penalised."""
    z = shown.astype(np.float64)
    share = weights / weights.sum()
    z, y = z - share @ z, scores - share @ scores
    coefficients: Numbers = np.linalg.solve((z.T * weights) @ z + penalty * np.eye(z.shape[1]), (z.T * weights) @ y)
    return coefficients


def _prepare(query: Query) -> tuple[int, NDArray[np.int64], int]:
    """The number of samples, the superpixels ``[H, W]``, and how many there are."""
    samples, segments = query.parameters.samples, query.parameters.segments
    assert samples is not None
    assert segments is not None
    labels = superpixels(query.image[0].permute(1, 2, 0).cpu().numpy(), segments)
    return samples, labels, int(labels.max()) + 1


def _scores(query: Query, shown: Coalitions, labels: NDArray[np.int64]) -> Numbers:
    """The score of each coalition."""
    where = torch.from_numpy(labels).to(query.image.device)

    def masked(some: Tensor) -> Tensor:
        return query.target.score(query.runner.logits(query.image * some.to(query.image)[:, where][:, None]))

    return np.asarray(query.runner.chunked(masked, torch.from_numpy(shown), NETWORK_ROWS).cpu().numpy(), np.float64)


def _spread(query: Query, coefficients: Numbers, labels: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(coefficients[labels]).to(query.image)


METHODS = (
    QueryMethod(
        name="lime",
        family="surrogate",
        cost="many forwards",
        lane="slow",
        paper="https://arxiv.org/abs/1602.04938",
        summary="Linear model over superpixels, fitted to images with half of them covered, the more visible weighing more.",
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
        defaults=MethodParameters(samples=160, segments=40, seed=0),
        explain=kernel_shap,
        layered=False,
        passes=lambda parameters: (parameters.samples or 0) + 2,
    ),
)
