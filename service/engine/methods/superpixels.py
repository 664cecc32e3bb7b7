"""Superpixels: the segmentation of an image into patches of similar colour, on arrays. This module knows no network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COMPACTNESS = 0.5  # weight of position relative to colour: the distance of one patch's width in units of colour
ITERATIONS = 5


def superpixels(image: NDArray[np.float32], segments: int) -> NDArray[np.int64]:
    """SLIC: k-means over colour and position, in which a pixel is assigned to a centre of the nine grid cells around it.

    Achanta et al. 2012, https://doi.org/10.1109/TPAMI.2012.120. Colours are compared in normalised units rather than in CIELAB,
    so that images may have any number of channels. Superpixels need not be connected.

    Args:
        image: ``[H, W, C]``, of approximately unit variance.
        segments: approximate number of superpixels.

    Returns:
        The label of each pixel's superpixel, int64 ``[H, W]``, from 0 without gaps.
    """
    height, width, _ = image.shape
    rows = max(1, min(height, round((segments * height / width) ** 0.5)))
    columns = max(1, min(width, round(segments / rows)))
    y, x = np.mgrid[0:height, 0:width]
    cell_y, cell_x = y * rows // height, x * columns // width
    scale = COMPACTNESS / (height * width / (rows * columns)) ** 0.5
    points = np.concatenate([image, scale * np.stack([y, x], -1)], axis=-1, dtype=np.float32)
    labels = np.asarray(cell_y * columns + cell_x, np.int64)
    for _ in range(ITERATIONS):
        centers = _means(points, labels, rows * columns)
        min_distance = np.full((height, width), np.inf, np.float32)
        nearest = labels.copy()
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                candidate = np.clip(cell_y + dy, 0, rows - 1) * columns + np.clip(cell_x + dx, 0, columns - 1)
                distance = ((points - centers[candidate]) ** 2).sum(-1)
                is_nearer = distance < min_distance
                min_distance[is_nearer] = distance[is_nearer]
                nearest[is_nearer] = candidate[is_nearer]
        labels = nearest
    return np.unique(labels, return_inverse=True)[1].reshape(height, width).astype(np.int64)


def _means(points: NDArray[np.float32], labels: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """The mean of the points of each label ``[count, C + 2]``; infinite for a label without points."""
    flat, features = labels.ravel(), points.reshape(-1, points.shape[-1])
    sizes = np.bincount(flat, minlength=count)
    sums = np.stack([np.bincount(flat, weights=column, minlength=count) for column in features.T], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = sums / sizes[:, None]
    means[sizes == 0] = np.inf
    return means.astype(np.float32)
