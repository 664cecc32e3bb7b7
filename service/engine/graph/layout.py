"""The layouts of a layer's activations, and their conversion to and from channels first, the only layout of methods."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from service.engine.graph.dimensions import Dimensions, Tokens
from service.vocabulary import LayoutKind


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of one layer's activations.

    Attributes:
        kind: `nchw`: ``[N, K, h, w]``; `nhwc`: ``[N, h, w, K]``; `tokens`: ``[N, prefix + h w (+ others), K]``, row by row.
        grid: (h, w) of tokens; unused by the other kinds, whose shape has h and w.
        prefix: number of tokens before the grid (class, distillation, registers).
    """

    kind: LayoutKind = "nchw"
    grid: tuple[int, int] = (0, 0)
    prefix: int = 0

    def to_nchw(self, activations: Tensor) -> Tensor:
        """Activations in the layer's layout as ``[N, K, h, w]``; differentiable."""
        if self.kind == "nhwc":
            return activations.permute(0, 3, 1, 2)
        if self.kind == "tokens":
            tokens = activations[:, self.prefix : self.prefix + self.grid[0] * self.grid[1]]
            return tokens.transpose(1, 2).reshape(len(tokens), -1, *self.grid)
        return activations

    def from_nchw(self, grid: Tensor, template: Tensor) -> Tensor:
        """``[N, K, h, w]`` as activations in the layer's layout, contiguous, as views behind the layer expect.

        Tokens beside the grid (prefix tokens) are copied from `template`, activations in the layer's layout.
        """
        if self.kind == "nhwc":
            return grid.permute(0, 2, 3, 1).contiguous()
        if self.kind == "tokens":
            tokens = grid.flatten(2).transpose(1, 2)
            return torch.cat([template[:, : self.prefix], tokens, template[:, self.prefix + tokens.shape[1] :]], dim=1)
        return grid.contiguous()


@dataclass(frozen=True, slots=True)
class LayoutOverride:
    """The layout that a card states for a layer whose layout the graph does not tell.

    Attributes:
        kind: as in `Layout`.
        prefix: number of tokens before the grid.
    """

    kind: LayoutKind
    prefix: int = 0

    def dimensions(self, sizes: tuple[int, ...], image: tuple[int, int]) -> Dimensions | None:
        """The dimensions of activations of these sizes; None for sizes that cannot have this layout.

        Args:
            sizes: the size of each dimension; that of the batch does not matter.
            image: (height, width) of the network's input; tokens are assumed to be a grid of square patches of it.
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
    """Layout, channels and grid of activations with these dimensions; None for dimensions that are no grid of channels.

    Args:
        dimensions: the meaning of each dimension.
        sizes: the size of each dimension; that of the batch does not matter.
    """
    if not dimensions or dimensions[0] != "batch":
        return None
    if dimensions == ("batch", "channels", "rows", "columns"):
        return Layout("nchw"), sizes[1], (sizes[2], sizes[3])
    # The last dimension beside rows and columns holds the channels, even where the tracker does not know it.
    if dimensions[1:] in {("rows", "columns", "channels"), ("rows", "columns", None)}:
        return Layout("nhwc"), sizes[3], (sizes[1], sizes[2])
    if len(dimensions) == 3 and isinstance(dimensions[1], Tokens) and dimensions[2] in {"channels", None}:
        grid = (dimensions[1].rows, dimensions[1].columns)
        return Layout("tokens", grid, dimensions[1].before), sizes[2], grid
    return None
