"""From a network's maps to what the caller asked to see. Runs in a codec thread; knows no HTTP and no torch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from service.engine.types import EngineResult, Evaluation, EvaluationRequest
from service.explain.curves import curves
from service.explain.model import ClassScores, ClassSelection, Model
from service.explain.options import Options
from service.explain.preprocess import Canvas, Map, Pixels, PreparedImage
from service.explain.results import Delivery, Encoded, Explanation, ImageResult, Prediction
from service.imaging import colors
from service.imaging.encode import encode_grey, encode_image, encode_npy
from service.imaging.heatmap import Heatmap, render_maps
from service.imaging.overlay import OverlayType, compose
from service.imaging.panel import PanelRow, contact_sheet


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedImage:
    """One image's part of the answer; `rows` and `arrays` are what a document of several is put together from."""

    result: ImageResult
    rows: tuple[PanelRow, ...] = ()
    arrays: tuple[Map, ...] = ()
    overlay: Encoded | None = None


def measure(
    seen: PreparedImage, outcome: EngineResult, model: Model, options: Options, abandoned: threading.Event
) -> tuple[Evaluation, ...]:
    """Holds one image's maps, as they will be drawn, against the network; for the model's own thread, as it takes long."""
    heatmaps = _heatmaps(seen, outcome, options)
    grid = heatmaps[0].grid if heatmaps else (1, 1)
    maps = tuple(heatmap.values for heatmap in heatmaps)
    return model.network.evaluate(
        EvaluationRequest(
            pixels=seen.pixels,
            classes=outcome.classes,
            maps=maps,
            grid=grid,
            activation=model.card.labels.activation,
            abandoned=abandoned,
        )
    )


def draw(
    seen: PreparedImage,
    outcome: EngineResult,
    wanted: ClassSelection,
    model: Model,
    options: Options,
    delivery: Delivery,
    abandoned: threading.Event,
    evaluations: Sequence[Evaluation] = (),
) -> RenderedImage:
    """Draws everything that was asked for of one image; stops between classes when nobody waits any more.

    `evaluations`: one for each class, or none.
    """
    reading = ClassScores(outcome.logits, model.labels, model.card.labels.activation)
    predictions = reading.best(wanted.listed)
    if not outcome.classes:
        return RenderedImage(result=ImageResult(image=seen.info, predictions=predictions, explanations=()))
    heatmaps = _heatmaps(seen, outcome, options)
    canvas = Canvas.of(seen, options.size)
    explanations: list[Explanation] = []
    rows: list[PanelRow] = []
    arrays: list[Map] = []
    image: Encoded | None = None
    measured: Sequence[Evaluation | None] = evaluations or [None] * len(heatmaps)
    for class_id, heatmap, evaluation in zip(outcome.classes, heatmaps, measured, strict=True):
        if abandoned.is_set():
            break
        prediction = reading.of(class_id)
        versus = None if wanted.versus is None else reading.of(wanted.versus)
        encoded: Encoded | list[Any] | None = None
        overlay: Encoded | None = None
        if delivery == "npy":
            arrays.append(canvas.spread(heatmap.values))
        elif delivery != "json" and options.overlay_type == "panel":
            rows.append(_row(canvas, heatmap, options, prediction, versus))
        elif delivery != "json":
            image = _image(_one(canvas, heatmap, options, prediction, versus, evaluation), delivery)
        else:
            encoded = _heatmap(canvas, heatmap, options)
            if options.overlay:
                overlay = _image(_one(canvas, heatmap, options, prediction, versus, evaluation), "png")
        explanations.append(
            Explanation(
                prediction=prediction,
                versus=versus,
                method=options.method,
                layer=outcome.layers,
                polarity=options.polarity,
                scale=options.scale,
                raw_min=heatmap.raw_min,
                raw_max=heatmap.raw_max,
                blank=heatmap.blank,
                grid=heatmap.grid,
                region=seen.placement.region,
                heatmap=encoded,
                overlay=overlay,
                evaluation=evaluation,
            )
        )
    return RenderedImage(
        result=ImageResult(image=seen.info, predictions=predictions, explanations=tuple(explanations)),
        rows=tuple(rows),
        arrays=tuple(arrays),
        overlay=image,
    )


def document(drawn: Sequence[RenderedImage], options: Options, delivery: Delivery) -> Encoded | None:
    """The whole answer as one image or array; None for JSON."""
    if delivery == "json":
        return None
    if delivery == "npy":
        (only,) = drawn
        stack = only.arrays[0] if len(only.arrays) == 1 else np.stack(only.arrays)
        return Encoded(media_type="application/x-npy", width=stack.shape[-1], height=stack.shape[-2], data=encode_npy(stack))
    rows = [row for image in drawn for row in image.rows]
    if rows:
        return _image(_sheet(rows, options), delivery)
    return drawn[0].overlay


def _heatmaps(seen: PreparedImage, outcome: EngineResult, options: Options) -> tuple[Heatmap, ...]:
    return render_maps(
        outcome.maps,
        polarity=options.polarity,
        scale=options.scale,
        input_size=seen.placement.input_size,
        clip=(options.clip_percent_lowerbound, options.clip_percent_upperbound),
    )


def _heatmap(canvas: Canvas, heatmap: Heatmap, options: Options) -> Encoded | list[Any] | None:
    height, width = canvas.height, canvas.width
    match options.heatmap:
        case "none":
            return None
        case "list":
            listed: list[Any] = canvas.spread(heatmap.values).tolist()
            return listed
        case "npy":
            return Encoded(
                media_type="application/x-npy", width=width, height=height, data=encode_npy(canvas.spread(heatmap.values))
            )
        case "png" | "png16":
            bits: Literal[8, 16] = 16 if options.heatmap == "png16" else 8
            return Encoded(
                media_type="image/png",
                width=width,
                height=height,
                data=encode_grey(canvas.spread(heatmap.shades), bits, signed=heatmap.signed),
            )


def _overlay(canvas: Canvas, heatmap: Heatmap, options: Options, overlay_type: OverlayType) -> Pixels:
    return compose(
        canvas.rgb,
        canvas.spread(heatmap.shades),
        region=canvas.region,
        color_map=options.color_map,
        alpha=options.alpha,
        overlay_type=overlay_type,
        signed=heatmap.signed,
    )


def _row(canvas: Canvas, heatmap: Heatmap, options: Options, prediction: Prediction, versus: Prediction | None) -> PanelRow:
    note = f"{options.method}, {options.polarity}" if versus is None else f"{options.method}, versus {versus.label}"
    return PanelRow(
        rgb=canvas.rgb,
        heat_rgb=_overlay(canvas, heatmap, options, "none"),
        overlay_rgb=_overlay(canvas, heatmap, options, "original"),
        caption=f"{prediction.label}  {prediction.probability:.1%}",
        note=f"{note}, nothing found" if heatmap.blank else note,
    )


def _one(
    canvas: Canvas,
    heatmap: Heatmap,
    options: Options,
    prediction: Prediction,
    versus: Prediction | None,
    evaluation: Evaluation | None,
) -> Pixels:
    """One class's image of whatever kind."""
    if options.overlay_type == "curves":
        assert evaluation is not None  # Plan.evaluates
        return curves(evaluation, options.method, prediction)
    if options.overlay_type == "panel":
        return _sheet([_row(canvas, heatmap, options, prediction, versus)], options)
    return _overlay(canvas, heatmap, options, options.overlay_type)


def _sheet(rows: Sequence[PanelRow], options: Options) -> Pixels:
    signed = options.polarity == "both"
    bar = colors.lut(options.color_map or colors.default(signed=signed))
    return contact_sheet(rows, bar=bar, bar_ends=("against", "for") if signed else ("low", "high"))


def _image(rgb: Pixels, media: Delivery) -> Encoded:
    height, width, _ = rgb.shape
    assert media in {"png", "jpeg", "webp"}
    return Encoded(media_type=f"image/{media}", width=width, height=height, data=encode_image(rgb, media))
