"""From the statistics of layers to the answer of /inspect, and to its sheet of feature maps.

Runs in a codec thread; knows no HTTP and no torch.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.engine.types import LayerStatistics, LayerStatisticsResult
from service.explain.model import ClassScores, ClassSelection
from service.explain.options import InspectOptions
from service.explain.preprocess import PreparedImage
from service.explain.render import RenderedImage, describe_class, fields_of, image_media
from service.explain.results import Inspection, InspectResult, Media
from service.imaging.overlay import colorize
from service.imaging.provenance import Provenance
from service.imaging.tiles import Section, Tile, tile_sheet
from service.vocabulary import Delivery

INSPECT_COLUMNS: Final = 8
INSPECT_COLOR_MAP: Final = "viridis"  # unless another is asked for


def render_inspection(
    image: PreparedImage,
    result: LayerStatisticsResult,
    scores: ClassScores,
    selection: ClassSelection,
    options: InspectOptions,
    delivery: Delivery,
    provenance: Provenance,
) -> RenderedImage:
    """One image's part of the answer of /inspect, with a sheet of feature maps where an image is asked for."""
    prediction = scores.of(result.class_id)
    inspection = Inspection(
        **fields_of(prediction),
        versus=None if selection.versus is None else scores.of(selection.versus),
        layers=result.layers,
    )
    media: Media | None = None
    if delivery != "json":
        color_map = options.color_map or INSPECT_COLOR_MAP
        sections = [
            _section(statistics, feature_maps, prediction.label, color_map)
            for statistics, feature_maps in zip(result.layers, result.feature_maps, strict=True)
        ]
        layers = [statistics.layer for statistics in result.layers]
        described = describe_class(provenance, layers, prediction, inspection.versus)
        media = image_media(tile_sheet(sections, columns=INSPECT_COLUMNS), delivery, described)
    predictions = scores.best(selection.listed)
    return RenderedImage(result=InspectResult(image=image.info, predictions=predictions, inspection=inspection), media=media)


def _section(statistics: LayerStatistics, feature_maps: NDArray[np.float32], label: str, color_map: str) -> Section:
    channels, rows, columns = statistics.shape
    return Section(
        f"{statistics.layer}   {channels} x {rows} x {columns}",
        f"activations {statistics.activation_min:.3g} to {statistics.activation_max:.3g}, mean "
        f"{statistics.activation_mean:.3g}; the channels that weigh most for {label}, with their weight (mean gradient)",
        tuple(
            Tile(_feature_map(values, color_map), f"{channel.channel}:  {channel.weight:+.2g}")
            for channel, values in zip(statistics.strongest, feature_maps, strict=True)
        ),
    )


def _feature_map(values: NDArray[np.float32], color_map: str) -> NDArray[np.uint8]:
    """From its own lowest to its own highest value."""
    low, high = float(values.min()), float(values.max())
    shades = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return colorize(np.asarray(shades, np.float32), color_map, signed=False)
