"""What an explainer is given and gives back: small frozen objects that carry their own provenance. Knows no HTTP, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from service.engine.types import Evaluation, LayerInfo, LayerStatistics
from service.explain.cache import CacheStatus
from service.explain.options import Targets

__all__ = [
    "Answer",
    "Delivery",
    "Encoded",
    "Evaluation",
    "Explanation",
    "ImageInfo",
    "ImageInput",
    "ImageResult",
    "LayerInfo",
    "LayerStatistics",
    "MethodInfo",
    "ModelIdentity",
    "ModelInfo",
    "Prediction",
    "Timings",
]  # fmt: skip

Delivery = Literal["json", "png", "jpeg", "webp", "npy"]


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image to explain, as its bytes, with the classes to explain in it."""

    data: bytes
    targets: Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    name: str
    version: str
    digest: str
    precision: str
    engine: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """Of the image after EXIF orientation; `sha256` is of the bytes received."""

    width: int
    height: int
    format: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    class_id: int
    label: str
    wordnet_id: str | None
    probability: float
    logit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An image or an array, ready to be sent."""

    media_type: str
    width: int
    height: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One class of one image, explained.

    `grid` is (rows, columns) of the (first) layer's map; `region` is (left, top, right, bottom) in pixels of the upright
    original: the part the network saw. `raw_min` and `raw_max` bound the map before scaling, in logit units. `heatmap` is a
    nested list of floats when that was asked for.
    """

    prediction: Prediction
    versus: Prediction | None
    method: str
    layer: tuple[str, ...]
    polarity: str
    scale: str
    raw_min: float
    raw_max: float
    blank: bool
    grid: tuple[int, int]
    region: tuple[int, int, int, int]
    heatmap: Encoded | list[Any] | None
    overlay: Encoded | None
    evaluation: Evaluation | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the layers of a network do for one class of one image; `versus` as in an explanation."""

    prediction: Prediction
    versus: Prediction | None
    layers: tuple[LayerStatistics, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """`inspection` where that was asked for, in place of explanations."""

    image: ImageInfo
    predictions: tuple[Prediction, ...]
    explanations: tuple[Explanation, ...]
    inspection: Inspection | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Milliseconds per stage; of several images the slowest. `queue` is the wait for the network, `infer` the network."""

    decode: float
    queue: float
    infer: float
    render: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`document` is the whole answer as one image or array where that was asked for (delivery other than json).

    `cache` tells where the network's part came from, of several images the costliest; None where nothing is remembered.
    """

    model: ModelIdentity
    results: tuple[ImageResult, ...]
    timings: Timings
    batch_size: int
    document: Encoded | None = None
    cache: CacheStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodInfo:
    """`cost` is `head`, `forward` or `many forwards`; `options` names the request options that the method minds."""

    name: str
    family: str
    cost: str
    options: tuple[str, ...]
    paper: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A card and the state of its model: `available` (not asked for), `loading`, `ready` or `failed` (with `error`).

    What only a loaded model knows is None or empty before it is ready.
    """

    name: str
    version: str
    description: str
    state: str
    error: str | None
    device: str | None
    precision: str | None
    engine: str | None
    input_size: tuple[int, int] | None
    classes: int | None
    default_layer: tuple[str, ...]
    layers: tuple[LayerInfo, ...]
    methods: tuple[str, ...]
    digest: str | None
