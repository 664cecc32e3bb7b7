"""Statistics of layers for one class: activations, gradients of the score, channels of the largest weights. No maps."""

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
DEFAULT_LAYERS: Final = 4  # how many layers are described where the request names none


def default_layers(network: NetworkGraph) -> tuple[str, ...]:
    """A few layers over the depth: the last layer of each of the smallest grids, else layers at equal distances.

    Outer modules are preferred to the modules inside them, as long as there are enough outer modules.
    """
    layers = network.layers()
    nodes = {path: node for path, node in network.layer_nodes().items() if path in layers}
    # A module's last node may be its parent's last node too: then the node goes by the parent's path.
    outermost = {node: path for path, node in sorted(nodes.items(), key=lambda item: -item[0].count("."))}
    paths = [outermost[node] for node in sorted(outermost)]  # in the order of their computation
    stages = min(DEFAULT_LAYERS, len({layers[path].grid for path in paths}))
    for depth in range(max(path.count(".") for path in paths) + 1):
        shallow = [path for path in paths if path.count(".") <= depth]
        last_by_grid = {layers[path].grid: path for path in shallow}
        if stages == 1 and len(shallow) >= min(2 * DEFAULT_LAYERS, len(paths)):
            positions = np.linspace(0, len(shallow) - 1, min(DEFAULT_LAYERS, len(shallow)))
            return tuple(shallow[round(position)] for position in positions)
        if len(last_by_grid) >= stages > 1:
            selection = set(sorted(last_by_grid.values(), key=shallow.index)[-DEFAULT_LAYERS:])
            return tuple(path for path in shallow if path in selection)
    return tuple(paths[-1:])


def layer_statistics(image: Tensor, split: Split, request: LayerStatisticsRequest) -> LayerStatisticsResult:
    """Computes statistics of layers in one forward and one backward pass.

    Args:
        image: float ``[1, C, H, W]``, normalised.
        split: the network, split at the layers to describe.
        request: the class, and the number of channels.

    Raises:
        InferenceNonFinite: the network's output, activations or gradients are not finite.
    """
    with torch.no_grad():
        crossing = split.trunk(image)
    inputs = split.enter(crossing, None)
    with torch.enable_grad():
        logits, *activations = split.head(*inputs)
    class_id = int(logits[0].argmax()) if request.class_id is None else request.class_id
    score = Target(class_id, request.versus).score(logits).sum()
    gradients = torch.autograd.grad(score, activations)
    descriptions = [
        _describe_layer(layer, _to_array(layout, a), _to_array(layout, g), request.channels)
        for layer, layout, a, g in zip(split.layers, split.layouts, activations, gradients, strict=True)
    ]
    return LayerStatisticsResult(
        logits=_check_finite(logits[0].detach().float().cpu().numpy()),
        class_id=class_id,
        layers=tuple(statistics for statistics, _ in descriptions),
        feature_maps=tuple(feature_maps for _, feature_maps in descriptions),
        engine=split.trunk.engine,
        precision=split.trunk.precision,
    )


def _to_array(layout: Layout, values: Tensor) -> NDArray[np.float32]:
    """Activations or gradients of one image as an array, float32 ``[K, h, w]``."""
    return _check_finite(layout.to_nchw(values.detach())[0].float().cpu().numpy())


def _check_finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(values).all():
        raise InferenceNonFinite("The network's output for this image is not finite; no result can be computed from it.")
    return values


def _describe_layer(
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
    """The histogram of values; in double precision, for the range may be too narrow for single precision to divide."""
    counts, edges = np.histogram(values.astype(np.float64), bins=BINS)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))
