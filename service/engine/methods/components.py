"""First principal components of a grid of vectors: what the eigen methods show in place of a sum over channels."""

from __future__ import annotations

import torch
from torch import Tensor


def total(weighted: Tensor, *, eigen_smooth: bool | None) -> Tensor:
    """Weighted activations ``[N, K, h, w]`` to maps ``[N, h, w]``: their sum, or their first principal component."""
    return first_component(weighted) if eigen_smooth else weighted.sum(dim=1)


def first_component(weighted: Tensor) -> Tensor:
    r"""Projects each cell's vector on the first principal component of all cells.

    .. math:: L = X v_1, \qquad X = \text{cells} \times \text{channels, centred}, \qquad X = U S V^T

    pytorch-grad-cam's `get_2d_projection`, but for the sign. That of a singular vector is arbitrary, and there it is whatever
    LAPACK returns. Here the map is turned the way that agrees with the sum over channels (their inner product is not
    negative), so that smoothing cannot turn an explanation over.

    Args:
        weighted: float ``[N, K, h, w]``.

    Returns:
        float ``[N, h, w]``; NaN throughout for an item that is not finite.
    """
    cells, finite = _centred(weighted)
    u, s, _ = torch.linalg.svd(cells, full_matrices=False)
    projected = u[..., 0] * s[..., :1]
    turned = (projected * cells.sum(2)).sum(1, keepdim=True) < 0
    return _as_maps(torch.where(turned, -projected, projected), finite, weighted)


def first_kernel_component(activations: Tensor) -> Tensor:
    r"""The same in the feature space of the sigmoid kernel.

    .. math:: L = \sqrt{\lambda_1} u_1, \qquad \text{centred } \tanh(X X^T / K + 1) = U \Lambda U^T

    scikit-learn's `KernelPCA(n_components=1, kernel="sigmoid")`, with its sign: the entry of largest magnitude is positive.
    Takes memory and time of (h w)² and (h w)³.

    Args:
        activations: float ``[N, K, h, w]``.

    Returns:
        float ``[N, h, w]``; NaN throughout for an item that is not finite.
    """
    cells, finite = _centred(activations)
    # In double precision: the leading eigenvalues of this kernel may lie close together.
    cells = cells.double()
    kernel = torch.tanh(cells @ cells.mT / cells.shape[2] + 1)
    kernel = kernel - kernel.mean(1, keepdim=True) - kernel.mean(2, keepdim=True) + kernel.mean((1, 2), keepdim=True)
    values, vectors = torch.linalg.eigh(kernel)
    projected = vectors[..., -1] * values[..., -1:].clamp_min(0).sqrt()
    furthest = projected.gather(1, projected.abs().argmax(1, keepdim=True))
    return _as_maps(torch.where(furthest < 0, -projected, projected), finite, activations)


def _centred(grid: Tensor) -> tuple[Tensor, Tensor]:
    """Cells by channels ``[N, h w, K]`` less their mean, and which items are finite ``[N]``; zeros for those that are not."""
    cells = grid.flatten(2).mT
    finite = cells.isfinite().all(2).all(1)
    # A decomposition refuses the whole batch for one item that is not finite.
    cells = torch.where(finite[:, None, None], cells, 0)
    return cells - cells.mean(1, keepdim=True), finite


def _as_maps(projected: Tensor, finite: Tensor, grid: Tensor) -> Tensor:
    maps = torch.where(finite[:, None], projected, torch.nan).to(grid.dtype)
    return maps.view(-1, *grid.shape[2:])
