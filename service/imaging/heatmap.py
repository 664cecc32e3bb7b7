"""Scales signed maps in their method's unit to heatmaps for delivery and rendering. This module knows no image and no colour.

The steps for one class: polarity; per layer a scale and a resize to the input; the mean over layers; the scale again. With
`minmax` the result is bit-identical to pytorch-grad-cam 1.5.7's `compute_cam_per_layer`, `aggregate_multi_layers` and
`scale_cam_image`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.imaging.geometry import resize_map
from service.vocabulary import MapInterpolation, Polarity, Scale

Map = NDArray[np.float32]

_EPSILON: Final = 1e-7  # pytorch-grad-cam's


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmap:
    """The heatmap of one class.

    Attributes:
        values: float32 ``[h, w]`` at the input's size, scaled as requested, for delivery.
        shades: float32 ``[h, w]``, 0..1, or -1..1 where `signed`, for rendering.
        signed: whether values are signed (polarity `both`).
        raw_min: lowest cell of the grids before scaling, of the requested polarity, in the method's unit.
        raw_max: highest cell of those grids.
        blank: whether no cell has the requested sign; values and shades are then zero.
        grid: (rows, columns) of the first layer's map.
    """

    values: Map
    shades: Map
    signed: bool
    raw_min: float
    raw_max: float
    blank: bool
    grid: tuple[int, int]


def scale_maps(
    maps: Sequence[Sequence[Map]],
    *,
    polarity: Polarity,
    scale: Scale,
    input_size: tuple[int, int],
    clip: tuple[float, float] = (0, 100),
    interpolation: MapInterpolation = "bilinear",
) -> tuple[Heatmap, ...]:
    """Scales the maps of one image's classes.

    Args:
        maps: for each class, for each layer, a signed grid ``[gh, gw]`` in the method's unit.
        polarity: `positive` keeps evidence for the class, `negative` evidence against it, `both` keeps signs.
        scale: `minmax` scales each map to 0..1, `max` divides it by its own peak, `shared` by the peak of all classes, `none`
            keeps that unit. Signed maps keep their zero: `minmax` is then `max`.
        input_size: (height, width) of the network's input; that of the grids themselves leaves cells as they are.
        clip: percentiles of the shades: values below the first become the lowest shade, values above the second the highest.
            With `shared` they are percentiles of all classes together, so that clipping does not undo the shared scale.
        interpolation: how a grid is spread over the input, as in `geometry.resize_map`.

    Returns:
        One heatmap per class, in order.
    """
    signed = polarity == "both"
    grids = [[_polarize(grid, polarity) for grid in layers] for layers in maps]
    if scale == "none":
        values = [_fuse(layers, input_size, interpolation) for layers in grids]
        shades = [_divide_by_peak([value])[0] for value in values]
    elif scale == "shared":
        by_layer = [_divide_by_peak(layer) for layer in zip(*grids, strict=True)]
        values = _divide_by_peak([_fuse(layers, input_size, interpolation) for layers in zip(*by_layer, strict=True)])
        shades = values
    else:
        rescale = _minmax if scale == "minmax" and not signed else _divide_by_own_peak
        values = [rescale(_fuse([rescale(grid) for grid in layers], input_size, interpolation)) for layers in grids]
        shades = values
    shades = _clip(shades, clip) if scale == "shared" else [_clip([shade], clip)[0] for shade in shades]
    return tuple(
        Heatmap(
            values=value,
            shades=shade,
            signed=signed,
            raw_min=float(min(grid.min() for grid in layers)),
            raw_max=float(max(grid.max() for grid in layers)),
            blank=not any(grid.any() for grid in layers),
            grid=(layers[0].shape[0], layers[0].shape[1]),
        )
        for layers, value, shade in zip(grids, values, shades, strict=True)
    )


def _polarize(grid: Map, polarity: Polarity) -> Map:
    if polarity == "both":
        return np.asarray(grid, np.float32)
    return np.maximum(grid if polarity == "positive" else -grid, np.float32(0))


def _fuse(layers: Sequence[Map], input_size: tuple[int, int], interpolation: MapInterpolation) -> Map:
    """The mean of every layer's grid, resized to the input."""
    height, width = input_size
    resized = [resize_map(grid, width, height, interpolation) for grid in layers]
    return np.asarray(np.mean(resized, axis=0), np.float32)


def _minmax(values: Map) -> Map:
    differences = values - values.min()
    return np.asarray(differences / (_EPSILON + differences.max()), np.float32)


def _divide_by_own_peak(values: Map) -> Map:
    return _divide_by_peak([values])[0]


def _divide_by_peak(maps: Sequence[Map]) -> list[Map]:
    """Divides maps by the largest magnitude in all of them; maps of zeros stay unchanged."""
    peak = max(float(np.abs(values).max()) for values in maps)
    if peak == 0:
        return list(maps)
    return [values / np.float32(peak) for values in maps]


def _clip(maps: list[Map], percentiles: tuple[float, float]) -> list[Map]:
    """Clips maps at percentiles of their magnitudes, as Vertex AI's `clip_percent_lowerbound` and `clip_percent_upperbound`."""
    if percentiles[0] <= 0 and percentiles[1] >= 100:
        return maps
    low, high = (float(bound) for bound in np.percentile(np.abs(np.stack(maps)), percentiles))
    return [np.sign(values) * _stretch(np.abs(values), low, high) for values in maps]


def _stretch(magnitudes: Map, low: float, high: float) -> Map:
    """Maps magnitudes from low..high to 0..1."""
    if high > low:
        # Double precision is used because the range may be too narrow for single precision to divide by.
        return ((np.clip(magnitudes.astype(np.float64), low, high) - low) / (high - low)).astype(np.float32)
    # Both percentiles are equal, as in a map that is zero almost everywhere: values above them become the highest.
    return (magnitudes > low).astype(np.float32)
