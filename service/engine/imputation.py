"""Pixels made up from their neighbours: noisy linear imputation, so that what is removed leaves no edge to be read.

Rong et al. 2022 (ROAD), https://arxiv.org/abs/2202.00449: each removed pixel is the mean of its neighbours, four at weight 1/6
and four diagonal ones at 1/12, which is one sparse linear system for all of them; a little noise is added. Here the system is
solved by sweeps over the pixels, all masks at once, from a start that a pyramid of means gives; the difference to the exact
solution is tested.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

SWEEPS: Final = 40
NOISE: Final = 0.01  # pytorch-grad-cam's
SEED: Final = 0


def imputed(image: Tensor, removed: Tensor) -> Tensor:
    """Fills in what is removed.

    Args:
        image: float ``[C, H, W]``.
        removed: bool ``[n, H, W]``.

    Returns:
        Float ``[n, C, H, W]``; 0 where nothing is left to guess from.
    """
    gone = removed[:, None]
    known = (~gone).to(image)
    picture = torch.where(gone, _from_means(image * known, known), image)
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 0.0, 2.0], [1.0, 2.0, 1.0]]).to(image) / 12
    kernel = kernel.expand(len(image), 1, 3, 3)
    share = functional.conv2d(
        torch.ones_like(image)[None], kernel, padding=1, groups=len(image)
    )  # fewer neighbours at the border
    for _ in range(SWEEPS):
        means = functional.conv2d(picture, kernel, padding=1, groups=len(image)) / share
        picture = torch.where(gone, means, image)
    noise = NOISE * torch.randn(image.shape, generator=torch.Generator().manual_seed(SEED)).to(image)
    return torch.where(gone, picture + noise, image)


def _from_means(weighted: Tensor, weight: Tensor) -> Tensor:
    """For every pixel the mean of the known ones in the smallest block, of halving sizes, that has any."""
    height, width = weighted.shape[2:]
    if height * width == 1:
        coarse = torch.zeros_like(weighted)
    else:
        halves = [functional.avg_pool2d(values, 2, ceil_mode=True) for values in (weighted, weight)]
        coarse = functional.interpolate(_from_means(halves[0], halves[1]), (height, width), mode="bilinear")
    return torch.where(weight > 0, weighted / weight.clamp(min=1e-12), coarse)
