"""What each dimension of each tensor in a graph means: followed from the image on, not guessed from sizes.

An image enters as (batch, channels, rows, columns). A convolution keeps that order, a permutation moves it, a flattening turns
rows x columns into tokens, a concatenation puts a class token before them. Sizes alone would mislead: a transformer of width
256 with 16 x 16 patches has tensors whose tokens and channels are equally many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx


@dataclass(frozen=True, slots=True)
class Tokens:
    """The places of a grid in one dimension, row by row, after `before` tokens that are no places (class, registers)."""

    rows: int
    columns: int
    before: int = 0


Dimension = Literal["batch", "channels", "rows", "columns"] | Tokens | None
Dimensions = tuple[Dimension, ...]

IMAGE: Dimensions = ("batch", "channels", "rows", "columns")

# Operations defined on [N, C, h, w] and on nothing else, where they are given four dimensions.
GRID_OPERATIONS = {
    "conv2d", "convolution", "conv_transpose2d", "batch_norm", "_native_batch_norm_legit_no_training", "max_pool2d",
    "max_pool2d_with_indices", "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
    "upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d", "pixel_shuffle", "pixel_unshuffle",
}  # fmt: skip


def operation(node: fx.Node) -> str:
    """Name of the operation of a node, "permute" for ``aten.permute.default``; empty where it calls none."""
    return getattr(node.target, "__name__", "").split(".")[0] if node.op == "call_function" else ""


def shape(node: Any) -> tuple[Any, ...] | None:
    """Sizes of a node's tensor; the batch size in them is symbolic."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else None


class DimensionTracker:
    """Follows the axes through one graph."""

    def __init__(self, image: fx.Node, per_image: Callable[[Any], int]) -> None:
        self._per_image = per_image
        self._known: dict[fx.Node, Dimensions] = {image: IMAGE}

    def follow(self, nodes: Iterable[fx.Node]) -> dict[fx.Node, Dimensions]:
        """Axes of every node of which something is known."""
        nodes = list(nodes)
        for node in nodes:
            if node.op == "call_function":
                dimensions = self._axes(node)
                if dimensions is not None and any(dimensions):
                    self._known[node] = dimensions
        # What came out of a detour (attention in windows) is known again by what it is added to.
        for node in reversed(nodes):
            if node not in self._known or self._known[node].count(None) > 1:
                for user in node.users:
                    if user in self._known and operation(user) in {"add", "mul"} and shape(user) == shape(node):
                        self._known[node] = self._known[user]
        return self._known

    def _axes(self, node: fx.Node) -> Dimensions | None:
        name, size = operation(node), shape(node)
        # Of several results (a batch norm's statistics) only the tensor has four dimensions.
        made_by = operation(node.args[0]) if name == "getitem" and isinstance(node.args[0], fx.Node) else name
        if made_by in GRID_OPERATIONS and size is not None and len(size) == len(IMAGE):
            return IMAGE if self._per_image(size[0]) == 1 else None
        if name in {"cat", "concat"}:
            return self._joined(node.args[0], _dim(node))  # type: ignore[arg-type]
        first = node.args[0] if node.args else None
        dimensions = self._known.get(first) if isinstance(first, fx.Node) else None
        if dimensions is None or name not in RULES:
            return self._unchanged(node)
        if name in REGROUPINGS:
            return self._regrouped(first, dimensions, node)
        return RULES[name](node, dimensions, self._known)

    def _unchanged(self, node: fx.Node) -> Dimensions | None:
        """Those of an input that has the output's sizes: element by element."""
        size = shape(node)
        for parent in node.all_input_nodes:
            if parent in self._known and size is not None and shape(parent) == size and operation(node) not in RULES:
                return self._known[parent]
        return None

    def _joined(self, parts: Sequence[fx.Node], dim: int) -> Dimensions | None:
        """Concatenated: what stands before the places shifts them."""
        before: Any = 0
        known: Dimensions | None = None
        for part in parts:
            dimensions, size = self._known.get(part), shape(part)
            axis = dimensions[dim] if dimensions is not None else None
            if dimensions is not None and isinstance(axis, Tokens):
                return _with(dimensions, dim, replace(axis, before=axis.before + before))
            known = known or dimensions
            before += size[dim] if size else 0
        return known

    def _regrouped(self, source: Any, dimensions: Dimensions, node: fx.Node) -> Dimensions | None:
        """Viewed under other sizes: dimensions are matched in groups whose products agree, from the left."""
        old, new = shape(source), shape(node)
        if old is None or new is None:
            return None
        found: list[Dimension] = []
        i = j = 0
        while i < len(old) or j < len(new):
            group, into = [i] if i < len(old) else [], [j] if j < len(new) else []
            while self._product(old, group) != self._product(new, into):
                grow_old = self._product(old, group)[1] < self._product(new, into)[1] or not into
                if grow_old or len(new) <= into[-1] + 1:
                    group.append(group[-1] + 1 if group else i)
                else:
                    into.append(into[-1] + 1)
                if group and group[-1] >= len(old):
                    return None
            found += _split([(dimensions[g], old[g]) for g in group], [new[n] for n in into])
            i, j = i + len(group), j + len(into)
        return tuple(found)

    def _product(self, sizes: Sequence[Any], at: Sequence[int]) -> tuple[int, int]:
        """(how often the batch size is a factor, the other factors multiplied)."""
        batches, number = 0, 1
        for index in at:
            symbolic = isinstance(sizes[index], torch.SymInt)
            batches += symbolic
            number *= self._per_image(sizes[index]) if symbolic else int(sizes[index])
        return batches, number


def _split(old: Sequence[tuple[Dimension, Any]], new: Sequence[Any]) -> list[Dimension]:
    """The axes of one group of dimensions under its new sizes."""
    dimensions = [axis for axis, _ in old]
    parts = [place for place, size in enumerate(new) if _counts(size)]
    if len(old) == len(new):
        return dimensions
    if len(new) == 1:
        return [_merged(old)]
    found: list[Dimension] = [None] * len(new)
    if len(old) == 1 and parts:
        (axis,) = dimensions
        if not isinstance(axis, Tokens) or len(parts) == 1:
            # Cut in two, the first part is the coarse position: row i of the windows, head i of the channels.
            found[parts[0]] = axis
        elif axis.before == 0 and [new[place] for place in parts] == [axis.rows, axis.columns]:
            found[parts[0]], found[parts[1]] = "rows", "columns"
    return found


def _counts(size: Any) -> bool:
    return isinstance(size, torch.SymInt) or size != 1


def _merged(old: Sequence[tuple[Dimension, Any]]) -> Dimension:
    """The axis of several dimensions that have become one; those of size 1 add nothing."""
    big = [(axis, size) for axis, size in old if _counts(size)]
    dimensions = [axis for axis, _ in big]
    if dimensions == ["rows", "columns"]:
        return Tokens(int(big[0][1]), int(big[1][1]))
    if len(dimensions) == 1:
        return dimensions[0]
    if "channels" in dimensions and all(axis in {"channels", None} for axis in dimensions):
        return "channels"
    return None


def _with(dimensions: Dimensions, dim: int, axis: Dimension) -> Dimensions:
    dim %= len(dimensions)
    return (*dimensions[:dim], axis, *dimensions[dim + 1 :])


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _dim(node: fx.Node) -> int:
    return int(_argument(node, 1, "dim", 0))


def _permute(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions:
    order: Any = node.args[1]
    return tuple(dimensions[dim] for dim in order)


def _transpose(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions:
    a, b = (_argument(node, position, name, 0) for position, name in ((1, "dim0"), (2, "dim1")))
    return _with(_with(dimensions, a, dimensions[b]), b, dimensions[a])


def _channels_last(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions:
    """A linear layer, or a norm over the last dimension, says what that dimension is."""
    alone = operation(node) == "linear" or len(_argument(node, 1, "normalized_shape", ())) == 1
    return _with(dimensions, -1, "channels") if alone else dimensions


def _select(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions:
    dim = _dim(node) % len(dimensions)
    return (*dimensions[:dim], *dimensions[dim + 1 :])


def _slice(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions:
    dim = _dim(node)
    axis = dimensions[dim]
    if not isinstance(axis, Tokens):
        return dimensions
    start, end, step = (_argument(node, position, name, default) for position, name, default in
                        ((2, "start", None), (3, "end", None), (4, "step", 1)))  # fmt: skip
    start, last = start or 0, axis.before + axis.rows * axis.columns
    whole = step == 1 and 0 <= start <= axis.before and (end is None or end >= last)
    return _with(dimensions, dim, replace(axis, before=axis.before - start) if whole else None)


def _reduced(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions | None:
    dims = _argument(node, 1, "dim", None)
    if dims is None:
        return None
    gone = {dim % len(dimensions) for dim in ([dims] if isinstance(dims, int) else dims)}
    keep = _argument(node, 2, "keepdim", default=False)
    return tuple(None if dim in gone else axis for dim, axis in enumerate(dimensions) if keep or dim not in gone)


def _parts(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions:
    dim = int(_argument(node, 2, "dim", 0))
    return _with(dimensions, dim, None) if isinstance(dimensions[dim], Tokens) else dimensions


def _expanded(node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions | None:
    size = shape(node)
    return dimensions if size is not None and len(size) == len(dimensions) else None


def _product(node: fx.Node, dimensions: Dimensions, known: dict[fx.Node, Dimensions]) -> Dimensions:
    other: Any = node.args[1]
    return (*dimensions[:-1], known[other][-1] if other in known else None)


def _attention(node: fx.Node, dimensions: Dimensions, known: dict[fx.Node, Dimensions]) -> Dimensions:
    values: Any = node.args[2]
    return (*dimensions[:-1], known[values][-1] if values in known else None)


def _padded(_node: fx.Node, dimensions: Dimensions, _: dict[fx.Node, Dimensions]) -> Dimensions:
    return tuple(None if isinstance(axis, Tokens) else axis for axis in dimensions)


def _lost(_node: fx.Node, _axes: Dimensions, _known: dict[fx.Node, Dimensions]) -> None:
    return None


Rule = Callable[[fx.Node, Dimensions, dict[fx.Node, Dimensions]], "Dimensions | None"]

REGROUPINGS = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"}

RULES: dict[str, Rule] = {
    **dict.fromkeys(REGROUPINGS, _lost),  # see Tracker._regrouped
    "permute": _permute,
    "transpose": _transpose,
    "linear": _channels_last,
    "layer_norm": _channels_last,
    "rms_norm": _channels_last,
    "select": _select,
    "slice": _slice,
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduced),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _parts),
    "unbind": _select,
    "getitem": lambda _node, dimensions, _: dimensions,
    **dict.fromkeys(("expand", "expand_as"), _expanded),
    "matmul": _product,
    "bmm": _product,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(
        ("constant_pad_nd", "pad"), lambda _node, dimensions, _: tuple(None if isinstance(a, Tokens) else a for a in dimensions)
    ),
    **dict.fromkeys(("gather", "index", "index_select", "einsum", "t", "numpy_T", "movedim", "sort", "topk"), _lost),
}
