"""The words that several rooms share, each declared once. Knows nothing but their spelling.

A request's options, a card's fields, an answer's fields and the parameters of functions are typed with these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

# Images on their way into a network.
Fit = Literal["crop", "squash", "pad", "native"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Channels = tuple[float, float, float] | tuple[float]
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels

# Networks.
Activation = Literal["softmax", "sigmoid"]
LayoutKind = Literal["nchw", "nhwc", "tokens"]
Engine = Literal["torch", "openvino"]
Precision = Literal["fp32", "bf16"]
EngineOption = Literal["auto", "torch", "openvino"]
PrecisionOption = Literal["auto", "fp32", "bf16"]
ModelState = Literal["available", "loading", "ready", "failed"]

# Methods: what one costs beside a prediction, and the queue that it waits in.
Cost = Literal["head", "forward", "many forwards"]
LaneName = Literal["fast", "slow"]
HeadFusion = Literal["mean", "max", "min"]
AttentionDirection = Literal["from_class", "to_class"]
RawUnit = Literal["logit", "activation", "probability", "none"]  # of maps before they are scaled

# Maps and what is rendered of them.
Polarity = Literal["positive", "negative", "both"]
Scale = Literal["minmax", "max", "shared", "none"]
ColorMap = Literal[
    "none", "autumn", "bone", "jet", "winter", "rainbow", "ocean", "summer", "spring", "cool", "hsv", "pink", "hot", "parula",
    "magma", "inferno", "plasma", "viridis", "cividis", "twilight", "twilight_shifted", "turbo", "deepgreen", "diverging",
]  # fmt: skip
MapInterpolation = Literal["bilinear", "nearest", "bicubic"]
HeatmapOverlay = Literal["original", "fade", "grayscale", "mask_black", "none"]
OverlayType = Literal["original", "fade", "grayscale", "mask_black", "none", "panel", "curves"]
HeatmapEncoding = Literal["png", "png16", "npy", "list", "none"]
NamedSize = Literal["original", "input"]
Size = NamedSize | int  # of what is rendered: an int is the longest side, in pixels
SizeOption = Literal["original", "input", "grid"]  # the last of maps only, see `explain.cells`

# Answers.
Protocol = Literal["native", "kserve", "oip", "torchserve", "sagemaker", "vertex"]
TensorName = Literal["scores", "class_id", "heatmap", "overlay", "overlay_png"]
ImageFormat = Literal["jpeg", "png", "webp", "gif"]
ImageMedia = Literal["png", "jpeg", "webp"]
Delivery = Literal["json", "png", "jpeg", "webp", "npy"]
MEDIA_TYPES: Final[dict[Delivery, str]] = {
    "json": "application/json",
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "npy": "application/x-npy",
}
Stage = Literal["decode", "queue", "infer", "evaluate", "render"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
CacheStatus = Literal["hit", "coalesced", "miss"]
CachePolicy = Literal["use", "renew", "off"]  # `renew` asks the network and keeps the answer; `off` leaves no trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an image becomes a network's input.

    Attributes:
        height: of the input in pixels.
        width: of the input in pixels.
        resize: the short side before the centre crop ("resize 256, crop 224"); None covers the input and no more.
        interpolation: Pillow's filter.
        mean: per channel, for values 0..1; one value makes a network that sees grey.
        std: as `mean`.
        fit: how an image of another shape is fitted in, where the request does not say.
        squash_crop: the part of each side that `squash` keeps, in the centre of the squashed image; 1 keeps all of it.
    """

    height: int
    width: int
    resize: int | None
    interpolation: Interpolation
    mean: Channels
    std: Channels
    fit: Fit = "crop"
    squash_crop: float = 1.0
