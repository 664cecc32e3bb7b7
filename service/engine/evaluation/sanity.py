"""The sanity check of Adebayo et al. 2018, https://arxiv.org/abs/1810.03292: a map of a class must change with the weights.

The weights of the head are put in random order; a method whose maps stay as they were does not look at what the network learnt
about the class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@contextmanager
def shuffled(parameters: Sequence[Tensor], seed: int) -> Iterator[None]:
    """The values of each parameter in random order, until the context ends; nothing else may run the network meanwhile."""
    generator = torch.Generator().manual_seed(seed)
    originals = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, original in zip(parameters, originals, strict=True):
                order = torch.randperm(original.numel(), generator=generator).to(original.device)
                parameter.copy_(original.flatten()[order].view_as(original))
        yield
    finally:
        with torch.no_grad():
            for parameter, original in zip(parameters, originals, strict=True):
                parameter.copy_(original)


def rank_correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> float | None:
    """Spearman's rank correlation of two maps of one shape, -1..1; equal values share their mean rank.

    None where a map is constant, which has no order.
    """
    x, y = (_mean_ranks(grid) for grid in (a, b))
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norms if norms else None


def _mean_ranks(grid: NDArray[np.float32]) -> NDArray[np.float64]:
    """The rank of each value less the mean rank, float64 ``[n]``."""
    _, places, counts = np.unique(grid, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # of each distinct value, from 1
    flat: NDArray[np.float64] = ranks[places.ravel()] - (grid.size + 1) / 2
    return flat
