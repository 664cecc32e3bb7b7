"""Noisy linear imputation of removed pixels, so that their removal leaves no edge that the network could recognise.

Rong et al. 2022 (ROAD), https://arxiv.org/abs/2202.00449: each removed pixel is the mean of its neighbours, four at weight 1/6
and four diagonal ones at 1/12, which is one sparse linear system for all of them; a little noise is added. Here the system is
solved from coarse to fine, by a few iterations over all pixels at each size; a test bounds the error of the solution.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ITERATIONS: Final = 8  # at each size
NOISE: Final = 0.01  # standard deviation, that of pytorch-grad-cam
SEED: Final = 0
NEIGHBOURS: Final = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]], np.float32) / 12

Values = NDArray[np.float32]


def impute(image: Tensor, removed: Tensor) -> Tensor:
    """Imputes the removed pixels of an image, for several masks.

    Args:
        image: float ``[C, H, W]``.
        removed: bool ``[n, H, W]``.

    Returns:
        Float ``[n, C, H, W]`` on the image's device; where all pixels are removed they are 0 but for the noise.
    """
    # The CPU is used because OpenCV takes a hundredth of the time of the same iterations as many small tensor operations.
    pixels = image.permute(1, 2, 0).float().cpu().numpy()
    noise = np.random.default_rng(SEED).normal(0, NOISE, pixels.shape).astype(np.float32)
    images = []
    for mask in removed.cpu().numpy():
        imputed = _solve(np.where(mask[..., None], np.float32(0), pixels), mask) + noise
        images.append(np.where(mask[..., None], imputed, pixels))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(image)


def _solve(image: Values, removed: NDArray[np.bool_]) -> Values:
    """The image, float32 ``[H, W, C]``, with removed pixels close to the weighted means of their neighbours.

    Args:
        image: 0 at the removed pixels.
        removed: ``[H, W]``.
    """
    if not removed.any() or removed.all():
        return image
    height, width, _ = image.shape
    half = ((width + 1) // 2, (height + 1) // 2)
    weight = _resize((~removed).astype(np.float32), half, cv2.INTER_AREA)
    coarse = np.asarray(_resize(image, half, cv2.INTER_AREA) / np.where(weight > 0, weight, 1), np.float32)
    initial = _resize(_solve(coarse, weight[..., 0] == 0), (width, height), cv2.INTER_LINEAR)
    mask = removed[..., None]
    solution = np.where(mask, initial, image)
    weight_sums = _sum_neighbours(np.ones_like(image))  # below 1 at the border
    for _ in range(ITERATIONS):
        np.copyto(solution, _sum_neighbours(solution) / weight_sums, where=mask)
    return solution


def _sum_neighbours(image: Values) -> Values:
    """The weighted sum of each pixel's neighbours; those beyond the border count as 0."""
    sums = cv2.filter2D(image, -1, NEIGHBOURS, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(sums, np.float32).reshape(image.shape)


def _resize(values: Values, size: tuple[int, int], interpolation: int) -> Values:
    """Resizes to (width, height); the result always has a dimension of channels."""
    return np.asarray(cv2.resize(values, size, interpolation=interpolation), np.float32).reshape(size[1], size[0], -1)
