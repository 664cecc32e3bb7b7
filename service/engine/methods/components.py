"""First principal components of a grid of vectors, which the eigen methods use in place of a sum over channels."""

from __future__ import annotations

import torch
from torch import Tensor


def total(weighted: Tensor, *, eigen_smooth: bool | None) -> Tensor:
    """Weighted activations ``[N, K, h, w]`` -> maps ``[N, h, w]``: their sum, or their first principal component."""
    return first_component(weighted) if eigen_smooth else weighted.sum(dim=1)


def first_component(weighted: Tensor) -> Tensor:
    r"""Projects each cell's vector on the first principal component of all cells.

    .. math:: L = X v_1, \qquad X = \text{cells} \times \text{channels, centred}, \qquad X = U S V^T

    This is pytorch-grad-cam's `get_2d_projection` except for the sign. The sign of a singular vector is arbitrary, and
    pytorch-grad-cam keeps the one that LAPACK returns. Here the map has the sign with which its inner product with the sum over
    channels is not negative, so that smoothing cannot invert an explanation.

    Args:
        weighted: float ``[N, K, h, w]``.

    Returns:
        float ``[N, h, w]``; NaN throughout for an item that is not finite.
    """
    cells, finite = _center_cells(weighted)
    u, s, _ = torch.linalg.svd(cells, full_matrices=False)
    projection = u[..., 0] * s[..., :1]
    is_opposite = (projection * cells.sum(2)).sum(1, keepdim=True) < 0
    return _as_maps(torch.where(is_opposite, -projection, projection), finite, weighted)


def first_kernel_component(activations: Tensor) -> Tensor:
    r"""Projects each cell's vector on the first principal component in the feature space of the sigmoid kernel.

    .. math:: L = \sqrt{\lambda_1} u_1, \qquad \text{centred } \tanh(X X^T / K + 1) = U \Lambda U^T

    This is scikit-learn's `KernelPCA(n_components=1, kernel="sigmoid")`, with its sign: the entry of largest magnitude is
    positive. It needs memory of (h w)² and time of (h w)³.

    Args:
        activations: float ``[N, K, h, w]``.

    Returns:
        float ``[N, h, w]``; NaN throughout for an item that is not finite.
    """
    cells, finite = _center_cells(activations)
    # Double precision is used because the leading eigenvalues of this kernel may be close together.
    cells = cells.double()
    kernel = torch.tanh(cells @ cells.mT / cells.shape[2] + 1)
    kernel = kernel - kernel.mean(1, keepdim=True) - kernel.mean(2, keepdim=True) + kernel.mean((1, 2), keepdim=True)
    values, vectors = torch.linalg.eigh(kernel)
    projection = vectors[..., -1] * values[..., -1:].clamp_min(0).sqrt()
    largest = projection.gather(1, projection.abs().argmax(1, keepdim=True))
    return _as_maps(torch.where(largest < 0, -projection, projection), finite, activations)


def _center_cells(grid: Tensor) -> tuple[Tensor, Tensor]:
    """Cells by channels ``[N, h w, K]`` less their mean, and which items are finite ``[N]``; items that are not are zero."""
    cells = grid.flatten(2).mT
    finite = cells.isfinite().all(2).all(1)
    # A decomposition raises an error for the whole batch if one item is not finite.
    cells = torch.where(finite[:, None, None], cells, 0)
    return cells - cells.mean(1, keepdim=True), finite


def _as_maps(projection: Tensor, finite: Tensor, grid: Tensor) -> Tensor:
    """Projections ``[N, h w]`` as maps ``[N, h, w]`` of the grid's dtype; NaN for items that are not finite."""
    maps = torch.where(finite[:, None], projection, torch.nan).to(grid.dtype)
    return maps.view(-1, *grid.shape[2:])
