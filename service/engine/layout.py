"""How a layer lays out its grid, so that methods meet channels first and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Of one layer's activations.

    Attributes:
        kind: `nchw`: ``[N, K, h, w]``.
    """

    kind: Literal["nchw"] = "nchw"

    def to_nchw(self, activations: Tensor) -> Tensor:
        """The layer's own activations as ``[N, K, h, w]``; differentiable."""
        return activations

    def from_nchw(self, grid: Tensor, own: Tensor) -> Tensor:  # noqa: ARG002
        """``[N, K, h, w]`` as the layer's own activations; what is not grid (prefix tokens) is taken from `own`."""
        return grid
