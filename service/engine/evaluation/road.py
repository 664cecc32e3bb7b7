"""Pixels made up from their neighbours: noisy linear imputation, so that what is removed leaves no edge to be read.

Rong et al. 2022 (ROAD), https://arxiv.org/abs/2202.00449: each removed pixel is the mean of its neighbours, four at weight 1/6
and four diagonal ones at 1/12, which is one sparse linear system for all of them; a little noise is added. Here the system is
solved from coarse to fine, by a few sweeps over the pixels at each size; the difference to the exact solution is tested.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SWEEPS: Final = 8
NOISE: Final = 0.01  # pytorch-grad-cam's
SEED: Final = 0
NEIGHBOURS: Final = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]], np.float32) / 12

Values = NDArray[np.float32]


def impute(image: Tensor, removed: Tensor) -> Tensor:
    """Fills in what is removed.

    Args:
        image: float ``[C, H, W]``.
        removed: bool ``[n, H, W]``.

    Returns:
        Float ``[n, C, H, W]`` on the image's device; 0 where nothing is left to guess from.
    """
    # On the CPU, where OpenCV takes a hundredth of what the same sweeps take as many small tensor operations.
    pixels = image.permute(1, 2, 0).float().cpu().numpy()
    noise = np.random.default_rng(SEED).normal(0, NOISE, pixels.shape).astype(np.float32)
    filled = []
    for gone in removed.cpu().numpy():
        made_up = _solved(np.where(gone[..., None], np.float32(0), pixels), gone) + noise
        filled.append(np.where(gone[..., None], made_up, pixels))
    return torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).to(image)


def _solved(image: Values, gone: NDArray[np.bool_]) -> Values:
    """The image, float32 ``[H, W, C]``, with the pixels that are gone close to the means of their neighbours."""
    if not gone.any() or gone.all():
        return image
    height, width, _ = image.shape
    half = ((width + 1) // 2, (height + 1) // 2)
    weight = _resized((~gone).astype(np.float32), half, cv2.INTER_AREA)
    coarse = np.asarray(_resized(image, half, cv2.INTER_AREA) / np.where(weight > 0, weight, 1), np.float32)
    guess = _resized(_solved(coarse, weight[..., 0] == 0), (width, height), cv2.INTER_LINEAR)
    place = gone[..., None]
    solved = np.where(place, guess, image)
    share = _means(np.ones_like(image))  # fewer neighbours at the border
    for _ in range(SWEEPS):
        np.copyto(solved, _means(solved) / share, where=place)
    return solved


def _means(image: Values) -> Values:
    summed = cv2.filter2D(image, -1, NEIGHBOURS, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(summed, np.float32).reshape(image.shape)


def _resized(values: Values, size: tuple[int, int], interpolation: int) -> Values:
    """To (width, height); always with a dimension of channels."""
    return np.asarray(cv2.resize(values, size, interpolation=interpolation), np.float32).reshape(size[1], size[0], -1)
