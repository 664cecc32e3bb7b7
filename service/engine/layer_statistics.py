"""Statistics of layers for one class: activations, the score's gradients, the channels that weigh most. Makes no maps."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.graph.export import NetworkGraph
from service.engine.graph.layout import Layout
from service.engine.graph.split import Split
from service.engine.methods.method import Target
from service.engine.types import Channel, Histogram, LayerStatistics, LayerStatisticsRequest, LayerStatisticsResult
from service.errors import InferenceNonFinite

BINS: Final = 20
DEFAULT_LAYERS: Final = 4  # described where none is named


def default_layers(network: NetworkGraph) -> tuple[str, ...]:
    """A few layers over the depth: the last of each of the smallest grids, else some at equal distances.

    Of modules inside modules the outer ones are taken, as long as there are enough of them.
    """
    grids = network.layers()
    nodes = {path: node for path, node in network.layer_nodes().items() if path in grids}
    # A module's last node may be its parent's too: the parent names it.
    outermost = {node: path for path, node in sorted(nodes.items(), key=lambda one: -one[0].count("."))}
    found = [outermost[node] for node in sorted(outermost)]  # in the order in which they compute
    different = min(DEFAULT_LAYERS, len({grids[path].grid for path in found}))
    for depth in range(max(path.count(".") for path in found) + 1):
        shallow = [path for path in found if path.count(".") <= depth]
        last = {grids[path].grid: path for path in shallow}
        if different == 1 and len(shallow) >= min(2 * DEFAULT_LAYERS, len(found)):
            places = np.linspace(0, len(shallow) - 1, min(DEFAULT_LAYERS, len(shallow)))
            return tuple(shallow[round(place)] for place in places)
        if len(last) >= different > 1:
            chosen = set(sorted(last.values(), key=shallow.index)[-DEFAULT_LAYERS:])
            return tuple(path for path in shallow if path in chosen)
    return tuple(found[-1:])


def layer_statistics(image: Tensor, split: Split, request: LayerStatisticsRequest) -> LayerStatisticsResult:
    """One pass forwards and one back.

    Args:
        image: float ``[1, C, H, W]``, normalised.
        split: the network, split at the layers asked for.
        request: the class, and how many channels.

    Raises:
        InferenceNonFinite: the network's numbers are not finite.
    """
    with torch.no_grad():
        crossing = split.trunk(image)
    inputs = split.enter(crossing, None)
    with torch.enable_grad():
        logits, *activations = split.head(*inputs)
    class_id = int(logits[0].argmax()) if request.class_id is None else request.class_id
    score = Target(class_id, request.versus).score(logits).sum()
    gradients = torch.autograd.grad(score, activations)
    described = [
        _describe(layer, _grid(layout, a), _grid(layout, g), request.channels)
        for layer, layout, a, g in zip(split.layers, split.layouts, activations, gradients, strict=True)
    ]
    return LayerStatisticsResult(
        logits=_finite(logits[0].detach().float().cpu().numpy()),
        class_id=class_id,
        layers=tuple(statistics for statistics, _ in described),
        feature_maps=tuple(feature_maps for _, feature_maps in described),
        engine=split.trunk.engine,
        precision=split.trunk.precision,
    )


def _grid(layout: Layout, values: Tensor) -> NDArray[np.float32]:
    """Float32 ``[K, h, w]``."""
    return _finite(layout.to_nchw(values.detach())[0].float().cpu().numpy())


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise InferenceNonFinite("The network's output for this image is not finite; nothing can be said about it.")
    return values


def _describe(
    layer: str, activations: NDArray[np.float32], gradients: NDArray[np.float32], channels: int
) -> tuple[LayerStatistics, NDArray[np.float32]]:
    """A layer's statistics, and the activations of its strongest channels."""
    weights = gradients.mean(axis=(1, 2))
    strongest = np.argsort(-np.abs(weights), kind="stable")[:channels]
    count, rows, columns = activations.shape
    statistics = LayerStatistics(
        layer=layer,
        shape=(count, rows, columns),
        activation_min=float(activations.min()),
        activation_mean=float(activations.mean()),
        activation_max=float(activations.max()),
        gradients=_histogram(gradients),
        weights=_histogram(weights),
        strongest=tuple(Channel(int(k), float(weights[k]), float(activations[k].mean())) for k in strongest),
    )
    return statistics, activations[strongest]


def _histogram(values: NDArray[np.float32]) -> Histogram:
    """In double precision: bounds may be closer together than single precision can divide by."""
    counts, edges = np.histogram(values.astype(np.float64), bins=BINS)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))
