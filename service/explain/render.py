"""From a network's maps to what the caller asked to see: maps, overlays, contact sheets, arrays, and their base64.

Runs in a codec thread; knows no HTTP and no torch.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from service.engine.methods import METHODS
from service.engine.types import EngineResult, Evaluation
from service.errors import ParameterInvalid
from service.explain.cells import scale_cells
from service.explain.model import ClassScores, ClassSelection
from service.explain.options import ExplainOptions, TensorOptions
from service.explain.preprocess import PreparedImage
from service.explain.results import (
    EncodedMedia,
    ExplainResult,
    Explanation,
    ImageTensors,
    Media,
    Prediction,
    PredictResult,
)
from service.explain.scheduler import Deadline
from service.imaging.encode import encode_grey, encode_image, encode_npy
from service.imaging.geometry import fit_size, place_map, resize_image, resize_region
from service.imaging.heatmap import Heatmap, scale_maps
from service.imaging.overlay import compose, default_color_map, default_overlay_type, lut
from service.imaging.panel import PanelRow, contact_sheet
from service.imaging.provenance import ClassProvenance, Provenance
from service.vocabulary import MEDIA_TYPES, Box, Delivery, HeatmapOverlay, ImageMedia, MapInterpolation, Size, TensorName

MAX_LISTED_VALUES: Final = 1_000_000  # of one answer: a number in a list costs 50 times what it costs in an array
MAX_ENLARGED_PIXELS: Final = 16_000_000  # of one rendered image: a small file must not ask for a giant
MAX_RENDERED_PIXELS: Final = 256_000_000  # of one answer, over all its images and classes

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedImage:
    """One image's part of the answer; the rest is what one answer for several classes is put together from.

    `provenances` are those of `rows`.
    """

    result: PredictResult
    rows: tuple[PanelRow, ...] = ()
    provenances: tuple[Provenance, ...] = ()
    arrays: tuple[Map, ...] = ()
    media: Media | None = None
    tensors: ImageTensors | None = None


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """What the maps of one image are rendered on, `width` by `height` pixels, and the box in it that the network saw."""

    image: PreparedImage
    width: int
    height: int
    region: Box
    as_input: bool

    @classmethod
    def of(cls, image: PreparedImage, size: Size) -> Canvas:
        """The image at the size asked for: the original, the network's input, or scaled to a longest side."""
        decoded, placement = image.decoded, image.placement
        if size == "input":
            height, width = placement.input_size
            return cls(image=image, width=width, height=height, region=placement.window, as_input=True)
        width, height = (decoded.width, decoded.height) if size == "original" else fit_size(decoded.width, decoded.height, size)
        region = resize_region(placement, width, height)
        return cls(image=image, width=width, height=height, region=region, as_input=False)

    @functools.cached_property
    def rgb(self) -> Pixels:
        """The image, uint8 ``[H, W, 3]``."""
        return self.image.pixels if self.as_input else resize_image(self.image.decoded.rgb, self.width, self.height)

    def place(self, values: Map, interpolation: MapInterpolation = "bilinear") -> Map:
        """A map of the network's input, float32 ``[h, w]``, on the canvas, ``[H, W]``; 0 where the network did not look."""
        if not self.as_input:
            return place_map(values, self.image.placement, self.width, self.height, interpolation)
        left, top, right, bottom = self.region
        placed = np.zeros_like(values)
        placed[top:bottom, left:right] = values[top:bottom, left:right]
        return placed


def check_output_size(
    images: Sequence[PreparedImage], selections: Sequence[ClassSelection], options: ExplainOptions, delivery: Delivery
) -> None:
    """Refuses an answer that would be too large to render or to send, before the network is asked.

    Raises:
        ParameterInvalid: too many pixels or listed values in all.
    """
    total = 0
    for image, selection in zip(images, selections, strict=True):
        height, width = image.decoded.height, image.decoded.width
        side = max(height, width)
        pixels = height * width
        if options.size == "grid" and not options.overlay:
            pixels = 0  # `cells.check_cells` counts them
        elif options.size == "input":
            pixels = image.pixels.shape[0] * image.pixels.shape[1]
        elif isinstance(options.size, int):
            pixels = round(pixels * (options.size / side) ** 2)
            if options.size > side and pixels > MAX_ENLARGED_PIXELS:
                raise ParameterInvalid(
                    f"size: images are enlarged to at most {MAX_ENLARGED_PIXELS} pixels; ask for a smaller size."
                )
        total += pixels * selection.count
    lists_pixels = delivery == "json" and options.heatmap == "list" and options.size != "grid"
    limit = MAX_LISTED_VALUES if lists_pixels else MAX_RENDERED_PIXELS
    if total > limit:
        instead = ", or heatmap=npy." if limit == MAX_LISTED_VALUES else "."
        raise ParameterInvalid(
            f"size: the answer would hold {total} values of {limit} allowed; ask for a smaller size or fewer classes{instead}"
        )


# Explanations --------------------------------------------------------------------------------------------------------------


def render_heatmaps(image: PreparedImage, result: EngineResult, options: ExplainOptions) -> tuple[Heatmap, ...]:
    """The maps of an image's classes at the network's input size, scaled as asked."""
    return scale_maps(
        result.maps,
        polarity=options.polarity,
        scale=options.scale,
        input_size=image.placement.input_size,
        clip=(options.clip_percent_lowerbound, options.clip_percent_upperbound),
        interpolation=options.interpolation,
    )


def render_predictions(
    image: PreparedImage, scores: ClassScores, selection: ClassSelection, options: ExplainOptions
) -> RenderedImage:
    """One image's part of an answer without explanations."""
    tensors = ImageTensors(scores=scores.probabilities) if isinstance(options, TensorOptions) else None
    return RenderedImage(result=PredictResult(image=image.info, predictions=scores.best(selection.listed)), tensors=tensors)


def render_explanations(
    image: PreparedImage,
    result: EngineResult,
    scores: ClassScores,
    selection: ClassSelection,
    options: ExplainOptions,
    delivery: Delivery,
    deadline: Deadline,
    evaluations: Sequence[Evaluation] = (),
    *,
    provenance: Provenance,
    number: int = 1,
) -> RenderedImage:
    """Renders everything that was asked for of one image.

    Args:
        image: decoded.
        result: what the network said of it.
        scores: its logits, read with the model's labels.
        selection: the classes asked for.
        options: how they are rendered.
        delivery: where it is not JSON, `rows`, `arrays` or `media` of the rendered image hold what is delivered.
        deadline: looked at before each class.
        evaluations: one for each class, or none.
        provenance: what the images of the answer say of their origin, without layers and classes.
        number: of the image within the request, from 1.

    Raises:
        DeadlineExceeded: no client waits any more.
    """
    canvas = Canvas.of(image, options.image_size)
    explanations: list[Explanation] = []
    rows: list[PanelRow] = []
    provenances: list[Provenance] = []
    arrays: list[Map] = []
    overlays: list[Pixels] = []
    media: Media | None = None
    tensors = options.tensors if isinstance(options, TensorOptions) else None
    versus = None if selection.versus is None else scores.of(selection.versus)
    heatmaps = render_heatmaps(image, result, options)
    measured: Sequence[Evaluation | None] = evaluations or [None] * len(heatmaps)
    cells: Sequence[Map | None] = [None] * len(heatmaps)
    if options.size == "grid":
        cells = scale_cells(result, image.placement, options)
    for class_id, heatmap, evaluation, class_cells in zip(result.classes, heatmaps, measured, cells, strict=True):
        deadline.check()
        explained = _ExplainedClass(
            canvas=canvas,
            heatmap=heatmap,
            options=options,
            prediction=scores.of(class_id),
            versus=versus,
            evaluation=evaluation,
            cells=class_cells,
            provenance=describe_class(provenance, result.layers, scores.of(class_id), versus, number),
        )
        heatmap_media: EncodedMedia | list[Any] | None = None
        overlay: EncodedMedia | None = None
        if tensors is not None:
            if "heatmap" in tensors:
                arrays.append(explained.values)
            if options.overlay:
                overlays.append(_render_class(explained))
                provenances.append(explained.provenance)
        elif delivery == "npy":
            arrays.append(explained.values)
        elif delivery != "json" and options.overlay_type == "panel":
            rows.append(_panel_row(explained))
            provenances.append(explained.provenance)
        elif delivery != "json":
            media = image_media(_render_class(explained), delivery, explained.provenance)
        else:
            heatmap_media = _heatmap_media(explained)
            if options.overlay:
                overlay = _base64(image_media(_render_class(explained), "png", explained.provenance))
        explanations.append(
            Explanation(
                **fields_of(explained.prediction),
                versus=versus,
                method=options.method,
                layer=result.layers,
                polarity=options.polarity,
                scale=options.scale,
                raw_min=heatmap.raw_min,
                raw_max=heatmap.raw_max,
                raw_unit=METHODS[options.method].raw_unit,
                blank=heatmap.blank,
                grid=heatmap.grid,
                region=image.placement.region,
                heatmap=heatmap_media,
                overlay=overlay,
                evaluation=evaluation,
            )
        )
    return RenderedImage(
        result=ExplainResult(image=image.info, predictions=scores.best(selection.listed), explanations=tuple(explanations)),
        rows=tuple(rows),
        provenances=tuple(provenances),
        arrays=tuple(arrays),
        media=media,
        tensors=None if tensors is None else _image_tensors(tensors, scores, arrays, overlays, provenances),
    )


def combine(images: Sequence[RenderedImage], delivery: Delivery, *, color_map: str | None, signed: bool) -> Media | None:
    """The whole answer as one image or array; None for JSON.

    Args:
        images: of the answer.
        delivery: the form of the answer.
        color_map: of the colour bar of a contact sheet; the default where None.
        signed: whether the maps have signs.
    """
    if delivery == "json":
        return None
    if delivery == "npy":
        (only,) = images
        stack = only.arrays[0] if len(only.arrays) == 1 else np.stack(only.arrays)
        return Media(media_type=MEDIA_TYPES["npy"], width=stack.shape[-1], height=stack.shape[-2], data=encode_npy(stack))
    rows = [row for image in images for row in image.rows]
    if rows:
        described = [one for image in images for one in image.provenances]
        classes = tuple(one for part in described for one in part.classes)
        sheet = _contact_sheet(rows, color_map, signed=signed)
        return image_media(sheet, delivery, replace(described[0], classes=classes))
    return images[0].media


@dataclass(frozen=True, slots=True, kw_only=True)
class _ExplainedClass:
    """What one class's image is rendered from; `cells` are its map where the cells of its grid are asked for."""

    canvas: Canvas
    heatmap: Heatmap
    options: ExplainOptions
    prediction: Prediction
    versus: Prediction | None
    evaluation: Evaluation | None
    cells: Map | None
    provenance: Provenance

    @property
    def values(self) -> Map:
        """The map that is delivered, scaled as asked: cells ``[rows, columns]``, or on the canvas ``[H, W]``."""
        return self.cells if self.cells is not None else self.canvas.place(self.heatmap.values, self.options.interpolation)


def _render_class(explained: _ExplainedClass) -> Pixels:
    """One class's image of whatever kind."""
    options = explained.options
    if options.overlay_type == "curves":
        # Imported by the first plot, not at the start: matplotlib takes 0.3 s (`python -X importtime -c "import
        # service.imaging.plots"`), and most services never render a plot.
        from service.explain.curves import evaluation_curves  # noqa: PLC0415

        assert explained.evaluation is not None  # Plan.evaluates
        return evaluation_curves(explained.evaluation, options.method, explained.prediction)
    if options.overlay_type == "panel":
        return _contact_sheet([_panel_row(explained)], options.color_map, signed=explained.heatmap.signed)
    return _overlay(explained, options.overlay_type or default_overlay_type(signed=explained.heatmap.signed))


def _overlay(explained: _ExplainedClass, overlay_type: HeatmapOverlay) -> Pixels:
    canvas, heatmap, options = explained.canvas, explained.heatmap, explained.options
    return compose(
        canvas.rgb,
        canvas.place(heatmap.shades, options.interpolation),
        region=canvas.region,
        color_map=options.color_map,
        alpha=options.alpha,
        overlay_type=overlay_type,
        signed=heatmap.signed,
    )


def _image_tensors(
    wanted: frozenset[TensorName],
    scores: ClassScores,
    heatmaps: Sequence[Map],
    overlays: Sequence[Pixels],
    provenances: Sequence[Provenance],
) -> ImageTensors:
    files = zip(overlays, provenances, strict=True) if "overlay_png" in wanted else ()
    return ImageTensors(
        scores=scores.probabilities,
        heatmaps=tuple(heatmaps),
        overlays=tuple(overlays) if "overlay" in wanted else (),
        overlay_files=tuple(image_media(rgb, "png", provenance).data for rgb, provenance in files),
    )


def _panel_row(explained: _ExplainedClass) -> PanelRow:
    options, prediction, versus = explained.options, explained.prediction, explained.versus
    note = f"{options.method}, {options.polarity}" if versus is None else f"{options.method}, versus {versus.label}"
    return PanelRow(
        rgb=explained.canvas.rgb,
        heat_rgb=_overlay(explained, "none"),
        overlay_rgb=_overlay(explained, default_overlay_type(signed=explained.heatmap.signed)),
        caption=f"{prediction.label}  {prediction.probability:.1%}",
        note=f"{note}, nothing found" if explained.heatmap.blank else note,
    )


def _contact_sheet(rows: Sequence[PanelRow], color_map: str | None, *, signed: bool) -> Pixels:
    bar = lut(color_map or default_color_map(signed=signed))
    return contact_sheet(rows, bar=bar, bar_ends=("against", "for") if signed else ("low", "high"))


def _heatmap_media(explained: _ExplainedClass) -> EncodedMedia | list[Any] | None:
    canvas, heatmap, options = explained.canvas, explained.heatmap, explained.options
    match options.heatmap:
        case "none":
            return None
        case "list":
            listed: list[Any] = explained.values.tolist()
            return listed
        case "npy":
            values = explained.values
            height, width = values.shape
            return _base64(Media(media_type=MEDIA_TYPES["npy"], width=width, height=height, data=encode_npy(values)))
        case "png" | "png16":
            bits: Literal[8, 16] = 16 if options.heatmap == "png16" else 8
            data = encode_grey(canvas.place(heatmap.shades, options.interpolation), bits, signed=heatmap.signed)
            return _base64(Media(media_type=MEDIA_TYPES["png"], width=canvas.width, height=canvas.height, data=data))


# Encoding -------------------------------------------------------------------------------------------------------------------


def image_media(rgb: Pixels, delivery: Delivery, provenance: Provenance) -> Media:
    """An image, uint8 ``[H, W, 3]``, as a file of the format asked for, with its provenance inside."""
    assert delivery not in {"json", "npy"}  # an image is delivered as an image
    media: ImageMedia = delivery  # type: ignore[assignment] # mypy does not narrow a literal by `in`
    height, width, _ = rgb.shape
    return Media(media_type=MEDIA_TYPES[media], width=width, height=height, data=encode_image(rgb, media, provenance))


def _base64(media: Media) -> EncodedMedia:
    return EncodedMedia(
        media_type=media.media_type,
        width=media.width,
        height=media.height,
        b64=base64.b64encode(media.data).decode("ascii"),
    )


def describe_class(
    provenance: Provenance, layers: Sequence[str], prediction: Prediction, versus: Prediction | None, number: int = 1
) -> Provenance:
    """The provenance of an answer made that of the image of one class, of the image with that number in the request."""
    shown = ClassProvenance(
        image=number,
        class_id=prediction.class_id,
        label=prediction.label,
        probability=prediction.probability,
        versus=None if versus is None else versus.label,
    )
    return replace(provenance, layers=tuple(layers), classes=(shown,))


def fields_of(prediction: Prediction) -> dict[str, Any]:
    """The fields that all that is said of a class begins with."""
    return {name: getattr(prediction, name) for name in ("class_id", "label", "wordnet_id", "probability", "logit")}
