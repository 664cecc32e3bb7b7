"""Superpixels: an image in patches of like colour. Arrays in, arrays out; knows no network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COMPACTNESS = 0.5  # of place against colour: one patch's width counts as much as so many units of colour
ROUNDS = 5


def superpixels(image: NDArray[np.float32], segments: int) -> NDArray[np.int64]:
    """SLIC: k-means over colour and place, each pixel choosing among the centres of the nine grid cells around it.

    Achanta et al. 2012, https://doi.org/10.1109/TPAMI.2012.120. Colours are compared as they come, in normalised units rather
    than in CIELAB, so that any number of channels will do. Patches are not forced to be connected.

    Args:
        image: ``[H, W, C]``, of unit variance or so.
        segments: about how many patches.

    Returns:
        int64 ``[H, W]``, numbered from 0 without gaps.
    """
    height, width, _ = image.shape
    rows = max(1, min(height, round((segments * height / width) ** 0.5)))
    columns = max(1, min(width, round(segments / rows)))
    y, x = np.mgrid[0:height, 0:width]
    cell_y, cell_x = y * rows // height, x * columns // width
    scale = COMPACTNESS / (height * width / (rows * columns)) ** 0.5
    points = np.concatenate([image, scale * np.stack([y, x], -1)], axis=-1, dtype=np.float32)
    labels = np.asarray(cell_y * columns + cell_x, np.int64)
    for _ in range(ROUNDS):
        centres = _means(points, labels, rows * columns)
        best = np.full((height, width), np.inf, np.float32)
        chosen = labels.copy()
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                near = np.clip(cell_y + down, 0, rows - 1) * columns + np.clip(cell_x + right, 0, columns - 1)
                distance = ((points - centres[near]) ** 2).sum(-1)
                closer = distance < best
                best[closer] = distance[closer]
                chosen[closer] = near[closer]
        labels = chosen
    return np.unique(labels, return_inverse=True)[1].reshape(height, width).astype(np.int64)


def _means(points: NDArray[np.float32], labels: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Mean of the points of each label ``[count, C + 2]``; one that has no points left is infinitely far away."""
    flat, features = labels.ravel(), points.reshape(-1, points.shape[-1])
    sizes = np.bincount(flat, minlength=count)
    sums = np.stack([np.bincount(flat, weights=column, minlength=count) for column in features.T], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = sums / sizes[:, None]
    means[sizes == 0] = np.inf
    return means.astype(np.float32)
