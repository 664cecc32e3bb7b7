"""What a caller may ask: the options of each route, for HTTP forms, query strings, JSON bodies and the command line.

Knows nothing of HTTP, images or networks: values are checked here for shape and range only; whether a class, a layer or a
model exists is for the explainer to say.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from service.engine.types import MethodParameters
from service.vocabulary import (
    ColorMap,
    Delivery,
    Fit,
    HeatmapEncoding,
    MapInterpolation,
    OverlayType,
    Polarity,
    Scale,
    Size,
    SizeOption,
    TensorName,
)


def _listed(value: object) -> object:
    """``"281,285"``, ``281``, ``["281,285", 243]`` -> one flat list: forms repeat a field, query strings use commas."""
    if value is None:
        return ()
    values = value if isinstance(value, (list, tuple)) else [value]
    flat: list[object] = []
    for item in values:
        flat.extend(part.strip() for part in item.split(",")) if isinstance(item, str) else flat.append(item)
    return tuple(flat)


def _repeated(value: object) -> object:
    """``"tabby, tabby cat"`` is one name: names and layers repeat, they are never split at commas."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _numbered(value: object) -> object:
    """``"282"`` -> ``282``: forms and query strings know only text, and no class is called by a number."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19 else value


Name = Annotated[str, Field(min_length=1, max_length=256)]
ClassIds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_listed)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_repeated)]


class Targets(BaseModel):
    """Which classes to explain. With none named the predicted class is explained; an image may carry its own in JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    class_id: ClassIds = Field((), description="Class ids to explain, in this order: repeat the option, or write `281,285`.")
    class_name: Names = Field(
        (),
        description="Classes by label (case-insensitive; first lemma or whole description) or WordNet id; repeatable.",
    )
    versus: Annotated[Annotated[int, Field(ge=0)] | Name | None, BeforeValidator(_numbered)] = Field(
        None, description="Class id or name to contrast with: explains `logit[class] - logit[versus]`."
    )
    top_k: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Predictions listed (5 if not given). With /explain and no class named: explain the k best classes.",
    )


class ModelOptions(BaseModel):
    """Which model answers, how it sees the image, and in which form it answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Name | None = Field(None, description="Name of a model card; the first model served if not given.")
    fit: Fit | None = Field(
        None,
        description="How the image meets the network: `crop` (resize, centre crop), `squash`, `pad`, `native` (no resize). "
        "The card's if not given.",
    )
    format: Delivery | None = Field(None, description="Answer as; the Accept header decides if not given.")


class PredictOptions(ModelOptions):
    """Every option that /predict uses."""

    top_k: int | None = Field(None, ge=1, le=1000, description="Predictions listed (5 if not given).")


class ExplainOptions(ModelOptions, MethodParameters, Targets):
    """Every option of /explain."""

    method: Name = Field("gradcam", description="Explanation method, see GET /methods.")
    layer: Names = Field((), description="Module path to explain at; the card's if not given. Several are fused by their mean.")
    polarity: Polarity = Field(
        "positive", description="`positive`: what speaks for the class; `negative`: against it; `both`: signed."
    )
    scale: Scale = Field(
        "minmax",
        description="How the map becomes 0..1: `minmax` (each map), `max` (by its own peak), `shared` (one scale for all "
        "classes of the image, so that an absent class stays dark), `none` (raw).",
    )
    color_map: ColorMap | None = Field(
        None,
        description="OpenCV colour map, `diverging` (blue, white, red), or `none` for grey. `jet` if not given, `diverging` "
        "for polarity `both`.",
    )
    alpha: float = Field(0.5, ge=0, le=1, allow_inf_nan=False, description="Weight of the heatmap in the overlay.")
    overlay_type: OverlayType | None = Field(
        None,
        description="`original`, `fade` (opacity follows the map's magnitude, `alpha` at its peak), `grayscale`, `mask_black` "
        "(the image shows where the map is hot), `none` (heatmap alone), `panel` (image, heatmap and overlay side by side; one "
        "row per class), `curves` (a plot of what `evaluate` finds). `original` if not given, `fade` for polarity `both`.",
    )
    interpolation: MapInterpolation = Field(
        "bilinear",
        description="How the layer's grid is spread over the image: `bilinear` (pytorch-grad-cam's), `nearest` (the cells as "
        "they are), `bicubic` (smooth; values beyond the grid's own lowest and highest are clipped to them).",
    )
    clip_percent_lowerbound: float = Field(
        0.0, ge=0, le=100, allow_inf_nan=False, description="Map values below this percentile show as the lowest."
    )
    clip_percent_upperbound: float = Field(
        100.0, ge=0, le=100, allow_inf_nan=False, description="Map values above this percentile show as the highest."
    )
    size: SizeOption | Annotated[int, Field(ge=8, le=16384)] = Field(
        "original",
        description="Image size: `original`, `input` (the image as the network saw it) or a longest side in pixels. `grid` is "
        "for maps alone (`format=npy`, `heatmap=list` or `npy`): the layer's own cells, those of `region`; an overlay beside "
        "it is `original`. Refused of several layers whose grids differ, and of methods with a value for each pixel.",
    )
    heatmap: HeatmapEncoding = Field(
        "png", description="Heatmap in JSON: 8-bit grey, 16-bit grey, float32 .npy, nested list, none."
    )
    overlay: bool = Field(default=False, description="Include the overlay in JSON too.")
    evaluate: bool = Field(
        default=False,
        description="In JSON: measure each explanation against the network (deletion, insertion, average drop, ROAD), beside a "
        "random map and a map of the centre. Takes many passes.",
    )

    @property
    def image_size(self) -> Size:
        """The size of images; those that come beside cells have the original's."""
        return "original" if self.size == "grid" else self.size

    @model_validator(mode="after")
    def _bounds_in_order(self) -> ExplainOptions:
        if self.clip_percent_lowerbound >= self.clip_percent_upperbound:
            raise ValueError("clip_percent_lowerbound must be below clip_percent_upperbound")
        return self


class TensorOptions(ExplainOptions):
    """Options of an answer in arrays: as /explain's, with the arrays wanted."""

    tensors: frozenset[TensorName]


class InspectOptions(ModelOptions, Targets):
    """Every option of /inspect."""

    layer: Names = Field(
        (), description="Module path to look at, repeatable; a few layers over the network's depth if not given."
    )
    channels: int = Field(8, ge=1, le=64, description="How many of a layer's strongest channels are shown.")
    color_map: ColorMap | None = Field(
        None, description="OpenCV colour map, `diverging`, or `none` for grey. `viridis` if not given."
    )
