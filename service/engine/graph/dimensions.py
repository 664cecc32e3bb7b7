"""The meaning of each dimension of each tensor in a graph, tracked through its operations from the image on.

The image has the dimensions (batch, channels, rows, columns). A convolution keeps their order, a permutation changes it, a
flattening merges rows and columns into tokens, a concatenation puts a class token before them. Sizes alone would be ambiguous:
a transformer of width 256 with 16 x 16 patches has tensors with as many tokens as channels.

A reordering of tokens makes them a product of parts, which is no grid: Hiera's tokens are (row in the window, column in the
window, row of the window, column of the window). They are a grid again once the positions in the window have been pooled away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx


@dataclass(frozen=True, slots=True)
class Tokens:
    """A dimension of tokens: the cells of a grid, row by row, after `before` tokens beside the grid (class, registers)."""

    rows: int
    columns: int
    before: int = 0


@dataclass(frozen=True, slots=True)
class Product:
    """A dimension that merges parts in an order that is no grid.

    Attributes:
        parts: (dimension, size) of each part, the slowest first; one without a known dimension may be a position in a window.
    """

    parts: tuple[tuple[Dimension, Any], ...]


Dimension = Literal["batch", "channels", "rows", "columns"] | Tokens | Product | None
Dimensions = tuple[Dimension, ...]

IMAGE: Dimensions = ("batch", "channels", "rows", "columns")

# Operations whose arguments of four dimensions are [N, C, h, w].
GRID_OPERATIONS = {
    "conv2d", "convolution", "conv_transpose2d", "batch_norm", "_native_batch_norm_legit_no_training", "max_pool2d",
    "max_pool2d_with_indices", "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
    "upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d", "pixel_shuffle", "pixel_unshuffle",
}  # fmt: skip


def operation(node: fx.Node) -> str:
    """Name of the operation that a node calls, "permute" for ``aten.permute.default``; empty for a node that calls none."""
    return getattr(node.target, "__name__", "").split(".")[0] if node.op == "call_function" else ""


def shape(node: Any) -> tuple[Any, ...] | None:
    """Sizes of a node's tensor, of which the batch size is symbolic; None for a node that is no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else None


def per_image(size: Any, batch: Any) -> int:
    """The ratio of a symbolic size to the batch size; 0 for other sizes, even for one that equals the example's batch size."""
    expression = size.node.expr if isinstance(size, torch.SymInt) else None
    ratio = expression / batch.node.expr if expression is not None else None
    return int(ratio) if ratio is not None and ratio.is_Integer else 0


class DimensionTracker:
    """Tracks dimensions through one graph.

    Args:
        image: the graph's placeholder, ``[N, C, height, width]``.
        per_image: size of a dimension -> how many of its entries belong to one image, 0 for sizes that are no multiple of N.
    """

    def __init__(self, image: fx.Node, per_image: Callable[[Any], int]) -> None:
        self._per_image = per_image
        self._known: dict[fx.Node, Dimensions] = {image: IMAGE}

    def follow(self, nodes: Iterable[fx.Node]) -> dict[fx.Node, Dimensions]:
        """The dimensions of every node of which at least one dimension is known."""
        nodes = list(nodes)
        for node in nodes:
            if node.op == "call_function":
                dimensions = self._infer(node)
                if dimensions is not None and any(dimensions):
                    self._known[node] = _without_wrong_products(dimensions, shape(node))
        # Where the dimensions of a node were lost on the way (attention in windows), the sum or product that uses it has them.
        for node in reversed(nodes):
            if node not in self._known or _unknown_dimensions(self._known[node]) > 1:
                for user in node.users:
                    if user in self._known and operation(user) in {"add", "mul"} and shape(user) == shape(node):
                        self._known[node] = self._known[user]
        return self._known

    def _infer(self, node: fx.Node) -> Dimensions | None:
        """The dimensions of a node, from those of its inputs."""
        name, size = operation(node), shape(node)
        # Of several results (a batch norm has statistics too) only the tensor has four dimensions.
        producer = operation(node.args[0]) if name == "getitem" and isinstance(node.args[0], fx.Node) else name
        if producer in GRID_OPERATIONS and size is not None and len(size) == len(IMAGE):
            return IMAGE if self._per_image(size[0]) == 1 else self._windows(node)
        if name in {"cat", "concat"}:
            return self._concatenate(node.args[0], _dim(node))  # type: ignore[arg-type]
        first = node.args[0] if node.args else None
        dimensions = self._known.get(first) if isinstance(first, fx.Node) else None
        if dimensions is None or name not in RULES:
            return self._elementwise(node)
        if name in RESHAPES:
            return self._reshape(first, dimensions, node)
        return RULES[name](node, dimensions, self._known)

    def _windows(self, node: fx.Node) -> Dimensions | None:
        """The dimensions of the result of a grid operation on windows, each of which is an entry of the batch dimension."""
        dimensions = self._known.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        if dimensions is None or not isinstance(dimensions[0], Product) or len(dimensions) != len(IMAGE):
            return None
        return (dimensions[0], "channels", None, None)

    def _elementwise(self, node: fx.Node) -> Dimensions | None:
        """The dimensions of an input of the output's sizes, for an operation without a rule; of several the best known."""
        size = shape(node)
        if size is None or operation(node) in RULES:
            return None
        candidates = [self._known[parent] for parent in node.all_input_nodes if parent in self._known and shape(parent) == size]
        return min(candidates, key=_unknown_dimensions, default=None)

    def _concatenate(self, parents: Sequence[fx.Node], dim: int) -> Dimensions | None:
        """The dimensions of a concatenation, in which the tensors before the tokens of the grid shift these."""
        before: Any = 0
        known: Dimensions | None = None
        for parent in parents:
            dimensions, size = self._known.get(parent), shape(parent)
            dimension = dimensions[dim] if dimensions is not None else None
            if dimensions is not None and isinstance(dimension, Tokens):
                return _replace_dimension(dimensions, dim, replace(dimension, before=dimension.before + before))
            known = known or dimensions
            before += size[dim] if size else 0
        return known

    def _reshape(self, source: Any, dimensions: Dimensions, node: fx.Node) -> Dimensions | None:
        """The dimensions of a reshaped tensor: groups of old and new dimensions of equal products are matched in order."""
        old, new = shape(source), shape(node)
        if old is None or new is None:
            return None
        result: list[Dimension] = []
        i = j = 0
        while i < len(old) or j < len(new):
            old_group, new_group = [i] if i < len(old) else [], [j] if j < len(new) else []
            while self._size_product(old, old_group) != self._size_product(new, new_group):
                grow_old = self._size_product(old, old_group)[1] < self._size_product(new, new_group)[1] or not new_group
                if grow_old or len(new) <= new_group[-1] + 1:
                    old_group.append(old_group[-1] + 1 if old_group else i)
                else:
                    new_group.append(new_group[-1] + 1)
                if old_group and old_group[-1] >= len(old):
                    return None
            result += self._reshape_group(
                [(dimensions[index], old[index]) for index in old_group], [new[index] for index in new_group]
            )
            i, j = i + len(old_group), j + len(new_group)
        return tuple(result)

    def _reshape_group(self, old: Sequence[tuple[Dimension, Any]], new: Sequence[Any]) -> list[Dimension]:
        """The dimensions of one group, given as old (dimension, size) pairs, after a reshape to the new sizes."""
        larger = [index for index, size in enumerate(new) if _exceeds_one(size)]
        if len(old) == len(new) == 1:
            return [old[0][0]]
        if len(new) == 1:
            return [_merge(old)]
        result: list[Dimension] = [None] * len(new)
        if len(larger) == 1:
            result[larger[0]] = _merge(old)
        elif len(old) == 1 and larger and not isinstance(old[0][0], (Tokens, Product)):
            # Where one dimension becomes two, the first is the coarse position: row i of the windows, head i of the channels.
            result[larger[0]] = old[0][0]
        else:
            for index, dimension in zip(larger, self._distribute(_parts(old), [new[i] for i in larger]), strict=False):
                result[index] = dimension
        return result

    def _distribute(self, parts: list[tuple[Dimension, Any]], sizes: Sequence[Any]) -> list[Dimension]:
        """The dimensions of several new sizes, from the parts in order; [] where a part cannot be divided between them."""
        result: list[Dimension] = []
        for size in sizes:
            group: list[tuple[Dimension, Any]] = []
            exponent, factor = self._size_product([size], [0])
            while (exponent, factor) != (0, 1):
                if not parts:
                    return []
                dimension, part = parts.pop(0)
                part_exponent, part_factor = self._size_product([part], [0])
                if part_factor and factor % part_factor and not part_exponent and factor and part_factor % factor == 0:
                    # The first of two is the coarse position, as above.
                    parts.insert(0, (None, part_factor // factor))
                    part, part_factor = factor, factor
                if not part_factor or factor % part_factor or part_exponent > exponent or isinstance(dimension, Tokens):
                    return []
                group.append((dimension, part))
                exponent, factor = exponent - part_exponent, factor // part_factor
            result.append(_merge(group))
        return result

    def _size_product(self, sizes: Sequence[Any], group: Sequence[int]) -> tuple[int, int]:
        """The product of the sizes of a group: (the exponent of the batch size, the product of the other factors)."""
        exponent, product = 0, 1
        for index in group:
            symbolic = isinstance(sizes[index], torch.SymInt)
            exponent += symbolic
            product *= self._per_image(sizes[index]) if symbolic else int(sizes[index])
        return exponent, product


def _exceeds_one(size: Any) -> bool:
    return isinstance(size, torch.SymInt) or size != 1


def _parts(pairs: Sequence[tuple[Dimension, Any]]) -> list[tuple[Dimension, Any]]:
    """The (dimension, size) pairs with products and tokens divided into their parts; those of size 1 are ignored."""
    parts: list[tuple[Dimension, Any]] = []
    for dimension, size in pairs:
        if isinstance(dimension, Product):
            parts += dimension.parts
        elif isinstance(dimension, Tokens) and dimension.before == 0 and size == dimension.rows * dimension.columns:
            parts += [("rows", dimension.rows), ("columns", dimension.columns)]
        else:
            parts.append((dimension, size))
    return [(dimension, size) for dimension, size in parts if _exceeds_one(size)]


def _merge(old: Sequence[tuple[Dimension, Any]]) -> Dimension:
    """The dimension that several (dimension, size) pairs become when they are merged."""
    parts = _parts(old)
    dimensions = [dimension for dimension, _ in parts]
    if dimensions == ["rows", "columns"]:
        return Tokens(int(parts[0][1]), int(parts[1][1]))
    if len(parts) == 1:
        return dimensions[0]
    if "channels" in dimensions and all(dimension in {"channels", None} for dimension in dimensions):
        return "channels"
    return Product(tuple(parts)) if any(dimensions) else None


def _unknown_dimensions(dimensions: Dimensions) -> int:
    return sum(dimension is None or isinstance(dimension, Product) for dimension in dimensions)


def _without_wrong_products(dimensions: Dimensions, sizes: tuple[Any, ...] | None) -> Dimensions:
    """The dimensions without the products whose size has changed: by a slice, a concatenation or padding."""
    return tuple(
        None if isinstance(dimension, Product) and sizes is not None and _size_of(dimension) != sizes[index] else dimension
        for index, dimension in enumerate(dimensions)
    )


def _size_of(product: Product) -> Any:
    return math.prod(size for _, size in product.parts)


def _replace_dimension(dimensions: Dimensions, dim: int, dimension: Dimension) -> Dimensions:
    dim %= len(dimensions)
    return (*dimensions[:dim], dimension, *dimensions[dim + 1 :])


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _dim(node: fx.Node) -> int:
    return int(_argument(node, 1, "dim", 0))


def _permute(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions:
    dims: Any = node.args[1]
    return tuple(dimensions[dim] for dim in dims)


def _transpose(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions:
    a, b = (_argument(node, position, name, 0) for position, name in ((1, "dim0"), (2, "dim1")))
    return _replace_dimension(_replace_dimension(dimensions, a, dimensions[b]), b, dimensions[a])


def _linear_or_norm(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions:
    """A linear layer, or a norm over the last dimension alone, has its channels there."""
    over_last = operation(node) == "linear" or len(_argument(node, 1, "normalized_shape", ())) == 1
    return _replace_dimension(dimensions, -1, "channels") if over_last else dimensions


def _select(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions:
    dim = _dim(node) % len(dimensions)
    return (*dimensions[:dim], *dimensions[dim + 1 :])


def _slice(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions:
    dim = _dim(node)
    dimension = dimensions[dim]
    if not isinstance(dimension, Tokens):
        return dimensions
    start, end, step = (_argument(node, position, name, default) for position, name, default in
                        ((2, "start", None), (3, "end", None), (4, "step", 1)))  # fmt: skip
    start, last = start or 0, dimension.before + dimension.rows * dimension.columns
    has_grid = step == 1 and 0 <= start <= dimension.before and (end is None or end >= last)
    return _replace_dimension(dimensions, dim, replace(dimension, before=dimension.before - start) if has_grid else None)


def _reduce(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions | None:
    argument = _argument(node, 1, "dim", None)
    if argument is None:
        return None
    if isinstance(argument, fx.Node):  # the larger of two tensors
        return dimensions
    dims = {dim % len(dimensions) for dim in ([argument] if isinstance(argument, int) else argument)}
    keepdim = _argument(node, 2, "keepdim", default=False)
    return tuple(None if dim in dims else dimension for dim, dimension in enumerate(dimensions) if keepdim or dim not in dims)


def _chunk(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions:
    dim = int(_argument(node, 2, "dim", 0))
    return _replace_dimension(dimensions, dim, None) if isinstance(dimensions[dim], Tokens) else dimensions


def _expand(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions | None:
    size = shape(node)
    return dimensions if size is not None and len(size) == len(dimensions) else None


def _matmul(node: fx.Node, dimensions: Dimensions, known: dict[fx.Node, Dimensions]) -> Dimensions:
    other: Any = node.args[1]
    return (*dimensions[:-1], known[other][-1] if other in known else None)


def _attention(node: fx.Node, dimensions: Dimensions, known: dict[fx.Node, Dimensions]) -> Dimensions:
    values: Any = node.args[2]
    return (*dimensions[:-1], known[values][-1] if values in known else None)


def _unfold(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions | None:
    """The windows of a grid as tokens, row by row: ``[N, K, h, w]`` -> ``[N, K k k, windows]``."""
    size = shape(node.args[0])
    if dimensions != IMAGE or size is None:
        return None
    settings: Any = node.args[1:5]  # kernel, dilation, padding, stride, each for rows and columns
    rows, columns = (
        (int(side) + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for side, kernel, dilation, padding, stride in zip(size[2:], *settings, strict=True)
    )
    return ("batch", "channels", Tokens(rows, columns))


def _pad(_node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions:
    return tuple(None if isinstance(dimension, Tokens) else dimension for dimension in dimensions)


def _unknown(_node: fx.Node, _dimensions: Dimensions, _known: dict[fx.Node, Dimensions]) -> None:
    return None


# Node, the dimensions of its first argument, the dimensions of all nodes -> the dimensions of the node.
Rule = Callable[[fx.Node, Dimensions, dict[fx.Node, Dimensions]], "Dimensions | None"]

RESHAPES = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"}

RULES: dict[str, Rule] = {
    **dict.fromkeys(RESHAPES, _unknown),  # see DimensionTracker._reshape
    "permute": _permute,
    "transpose": _transpose,
    "linear": _linear_or_norm,
    "layer_norm": _linear_or_norm,
    "rms_norm": _linear_or_norm,
    "select": _select,
    "slice": _slice,
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min"), _reduce),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _chunk),
    "unbind": _select,
    "getitem": lambda _node, dimensions, _: dimensions,
    **dict.fromkeys(("expand", "expand_as"), _expand),
    "matmul": _matmul,
    "bmm": _matmul,
    "scaled_dot_product_attention": _attention,
    "im2col": _unfold,
    **dict.fromkeys(("constant_pad_nd", "pad"), _pad),
    **dict.fromkeys(("gather", "index", "index_select", "einsum", "t", "numpy_T", "movedim", "sort", "topk"), _unknown),
}
