"""How a layer lays out its grid, so that methods meet channels first and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from service.engine.graph.dimensions import Dimensions, Tokens
from service.vocabulary import LayoutKind


@dataclass(frozen=True, slots=True)
class Layout:
    """Of one layer's activations.

    Attributes:
        kind: `nchw`: ``[N, K, h, w]``; `nhwc`: ``[N, h, w, K]``; `tokens`: ``[N, prefix + h w (+ others), K]``, row by row.
        grid: (h, w) of tokens; unused by the other kinds, whose shape tells.
        prefix: tokens before the grid's (class, distillation, registers).
    """

    kind: LayoutKind = "nchw"
    grid: tuple[int, int] = (0, 0)
    prefix: int = 0

    def to_nchw(self, activations: Tensor) -> Tensor:
        """The layer's own activations as ``[N, K, h, w]``; differentiable."""
        if self.kind == "nhwc":
            return activations.permute(0, 3, 1, 2)
        if self.kind == "tokens":
            places = activations[:, self.prefix : self.prefix + self.grid[0] * self.grid[1]]
            return places.transpose(1, 2).reshape(len(places), -1, *self.grid)
        return activations

    def from_nchw(self, grid: Tensor, own: Tensor) -> Tensor:
        """``[N, K, h, w]`` as the layer's own activations; what is not grid (prefix tokens) is taken from `own`.

        Contiguous, as views behind the layer expect.
        """
        if self.kind == "nhwc":
            return grid.permute(0, 2, 3, 1).contiguous()
        if self.kind == "tokens":
            places = grid.flatten(2).transpose(1, 2)
            return torch.cat([own[:, : self.prefix], places, own[:, self.prefix + places.shape[1] :]], dim=1)
        return grid.contiguous()


@dataclass(frozen=True, slots=True)
class LayoutOverride:
    """The layout that a card gives a layer, where the graph does not tell it.

    Attributes:
        kind: as of `Layout`.
        prefix: tokens before the grid's.
    """

    kind: LayoutKind
    prefix: int = 0

    def dimensions(self, sizes: tuple[int, ...], image: tuple[int, int]) -> Dimensions | None:
        """The axes of activations of these sizes, None where they cannot be so.

        Args:
            sizes: of each dimension; that of the batch does not matter.
            image: (height, width) of the network's input; tokens are taken for a grid of square patches of it.
        """
        if self.kind == "tokens" and len(sizes) == 3:
            cells = sizes[1] - self.prefix
            rows = round(math.sqrt(max(cells, 1) * image[0] / image[1]))
            fits = rows > 0 and cells % rows == 0 and rows * image[1] == cells // rows * image[0]
            return ("batch", Tokens(rows, cells // rows, self.prefix), "channels") if fits else None
        if self.kind != "tokens" and len(sizes) == 4:
            nchw: Dimensions = ("batch", "channels", "rows", "columns")
            return nchw if self.kind == "nchw" else ("batch", "rows", "columns", "channels")
        return None


def layout_of(dimensions: Dimensions, sizes: tuple[int, ...]) -> tuple[Layout, int, tuple[int, int]] | None:
    """Layout, channels and grid of activations with these axes, or None where they are no grid of channels.

    Args:
        dimensions: what each dimension means.
        sizes: of each dimension; that of the batch does not matter.
    """
    if not dimensions or dimensions[0] != "batch":
        return None
    if dimensions == ("batch", "channels", "rows", "columns"):
        return Layout("nchw"), sizes[1], (sizes[2], sizes[3])
    # A last dimension that is no place holds the channels, whatever became of them on the way.
    if dimensions[1:] in {("rows", "columns", "channels"), ("rows", "columns", None)}:
        return Layout("nhwc"), sizes[3], (sizes[1], sizes[2])
    if len(dimensions) == 3 and isinstance(dimensions[1], Tokens) and dimensions[2] in {"channels", None}:
        grid = (dimensions[1].rows, dimensions[1].columns)
        return Layout("tokens", grid, dimensions[1].before), sizes[2], grid
    return None
