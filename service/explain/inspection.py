"""What layers do for a class, as an answer: asked of the network, drawn as a sheet of feature maps. Knows no HTTP, no torch."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.engine.types import LayerStatistics, LayerStatisticsRequest, LayerStatisticsResult
from service.explain.model import ClassScores, ClassSelection, Model
from service.explain.options import Options
from service.explain.plan import Plan
from service.explain.preprocess import PreparedImage
from service.explain.render import RenderedImage
from service.explain.results import Delivery, Encoded, ImageResult, Inspection
from service.imaging import colors
from service.imaging.encode import encode_image
from service.imaging.tiles import Section, Tile, tile_sheet

COLUMNS = 8
COLOR_MAP = "viridis"  # unless another is asked for


def inspections(plan: Plan, seen: Sequence[PreparedImage], abandoned: threading.Event) -> list[LayerStatisticsRequest]:
    """What the network is asked, for each image."""
    return [
        LayerStatisticsRequest(
            pixels=image.pixels,
            class_id=asked.classes[0] if asked.classes else None,
            versus=asked.versus,
            layers=plan.options.layer,
            channels=plan.options.channels,
            abandoned=abandoned,
        )
        for image, asked in zip(seen, plan.wanted, strict=True)
    ]


def draw_inspection(
    seen: PreparedImage,
    inspected: LayerStatisticsResult,
    wanted: ClassSelection,
    model: Model,
    options: Options,
    delivery: Delivery,
) -> RenderedImage:
    """One image's part of the answer, with the sheet where an image is asked for."""
    reading = ClassScores(inspected.logits, model.labels, model.card.labels.activation)
    found = Inspection(
        reading.of(inspected.class_id), None if wanted.versus is None else reading.of(wanted.versus), inspected.layers
    )
    image: Encoded | None = None
    if delivery != "json":
        assert delivery != "npy"  # no route offers it
        label = found.prediction.label
        sheet = tile_sheet([_section(view, label, options) for view in inspected.layers], columns=COLUMNS)
        height, width, _ = sheet.shape
        image = Encoded(media_type=f"image/{delivery}", width=width, height=height, data=encode_image(sheet, delivery))
    return RenderedImage(
        result=ImageResult(image=seen.info, predictions=reading.best(wanted.listed), explanations=(), inspection=found),
        overlay=image,
    )


def _section(view: LayerStatistics, label: str, options: Options) -> Section:
    channels, rows, columns = view.shape
    return Section(
        f"{view.layer}   {channels} x {rows} x {columns}",
        f"activations {view.activation_min:.3g} to {view.activation_max:.3g}, mean {view.activation_mean:.3g}; the channels "
        f"that weigh most for {label}, with their weight (mean gradient)",
        tuple(
            Tile(_feature_map(values, options.color_map or COLOR_MAP), f"{one.channel}:  {one.weight:+.2g}")
            for one, values in zip(view.strongest, view.maps, strict=True)
        ),
    )


def _feature_map(values: NDArray[np.float32], color_map: str) -> NDArray[np.uint8]:
    """From its own lowest to its own highest value."""
    low, high = float(values.min()), float(values.max())
    shades = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return colors.colorize(np.asarray(shades, np.float32), color_map, signed=False)
