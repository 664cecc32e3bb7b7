"""What the service answers: every shape declared once, for the explainer that fills it and for the OpenAPI schema.

A field's name, type and description here are those of the JSON that clients read. Knows no HTTP and no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from service.engine.types import CLOSED, Evaluation, LayerInfo, LayerStatistics
from service.vocabulary import CacheStatus, Cost, ModelState, Polarity, RawUnit, Scale

_PREDICTION: dict[str, Any] = {
    "class_id": 282, "label": "tiger cat", "wordnet_id": "n02123159", "probability": 0.39, "logit": 9.1,
}  # fmt: skip
_EXPLANATION: dict[str, Any] = _PREDICTION | {
    "versus": None, "method": "gradcam", "layer": ["bn2"], "polarity": "positive", "scale": "minmax", "raw_min": 0.0,
    "raw_max": 3.1, "raw_unit": "logit", "blank": False, "grid": [7, 7], "region": [75, 0, 375, 300],
    "heatmap": {"media_type": "image/png", "width": 451, "height": 300, "b64": "iVBORw0KGgo="}, "overlay": None,
    "evaluation": None,
}  # fmt: skip
_MODEL: dict[str, Any] = {
    "name": "efficientnet_lite0", "version": "1", "digest": "sha256:57934424...", "precision": "fp32", "engine": "torch",
    "device": "cpu",
}  # fmt: skip
RAW_UNIT = Field(
    description="What the map counts before scaling: `logit` (of a gradient by the image: for each unit of the normalised "
    "input), `activation`, `probability`, or `none`: a product of several, or a number without a unit."
)


def _closed(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"example": example})


# One image and one class -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """The image after EXIF orientation."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    format: str
    sha256: Annotated[str, Field(description="Of the file's bytes; of pixels without a file, of their shape and bytes.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the network says of one class."""

    __pydantic_config__: ClassVar[ConfigDict] = _closed(_PREDICTION)

    class_id: Annotated[int, Field(ge=0)]
    label: str
    wordnet_id: str | None
    probability: Annotated[float, Field(ge=0, le=1, description="Softmax over all classes.")]
    logit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedMedia:
    """An image or an array in base64."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    media_type: str
    width: int
    height: int
    b64: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation(Prediction):
    """One class of one image, explained."""

    __pydantic_config__: ClassVar[ConfigDict] = _closed(_EXPLANATION)

    versus: Annotated[Prediction | None, Field(description="The class contrasted with.")]
    method: str
    layer: tuple[str, ...]
    polarity: Polarity
    scale: Scale
    raw_min: Annotated[float, Field(description="Lowest value of the map before scaling, in `raw_unit`.")]
    raw_max: Annotated[float, Field(description="Highest value of the map before scaling, in `raw_unit`.")]
    raw_unit: Annotated[RawUnit, RAW_UNIT]
    blank: Annotated[bool, Field(description="No cell of the map has the sign asked for; the map is all zero.")]
    grid: Annotated[tuple[int, int], Field(description="Rows and columns of the layer's map.")]
    region: Annotated[
        tuple[int, int, int, int],
        Field(description="Left, top, right, bottom in pixels of the upright original: the part that the model saw."),
    ]
    heatmap: Annotated[
        EncodedMedia | list[Any] | None,
        Field(description="As option `heatmap` asks: zero outside `region`; of `size=grid` what lies in it."),
    ]
    overlay: Annotated[EncodedMedia | None, Field(description="With option `overlay`.")]
    evaluation: Annotated[Evaluation | None, Field(description="With option `evaluate`.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection(Prediction):
    """What layers do for one class of one image."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    versus: Annotated[Prediction | None, Field(description="The class contrasted with.")]
    layers: tuple[LayerStatistics, ...]


# A whole answer ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """The model that answered."""

    __pydantic_config__: ClassVar[ConfigDict] = _closed(_MODEL)

    name: str
    version: str
    digest: Annotated[str, Field(description="Of the weights.")]
    precision: str
    engine: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Milliseconds per stage; of several images the slowest.

    `queue` is the wait for the network, `infer` the network, `evaluate` the evaluation with its wait, 0 without one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    decode: float
    queue: float
    infer: float
    evaluate: float
    render: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictResult:
    """One image."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    image: ImageInfo
    predictions: Annotated[tuple[Prediction, ...], Field(description="The best classes, the best first.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainResult(PredictResult):
    """One image, explained."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    explanations: Annotated[tuple[Explanation, ...], Field(description="One for each class asked for, in that order.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectResult(PredictResult):
    """One image, and what layers do for a class of it."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    inspection: Inspection


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictResponse:
    """The predictions for every image."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    id: Annotated[str, Field(description="The request's id.")]
    model: ModelIdentity
    results: Annotated[tuple[PredictResult, ...], Field(description="One for each image, in the order sent.")]
    timings_ms: Timings
    batch_size: Annotated[int, Field(description="Images in the network's pass that answered this request; 0 of a hit.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainResponse(PredictResponse):
    """The explanations of every image."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    results: Annotated[tuple[ExplainResult, ...], Field(description="One for each image, in the order sent.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectResponse(PredictResponse):
    """What layers do, for every image."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    results: Annotated[tuple[InspectResult, ...], Field(description="One for each image, in the order sent.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """A rendered image or an array, as the bytes of a file."""

    media_type: str
    width: int
    height: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTensors:
    """What was found of one image, as arrays. Of each class explained one map and one overlay, where they are wanted.

    Attributes:
        scores: probability of every class, float32 ``[classes]``.
        heatmaps: float32 ``[H, W]``.
        overlays: uint8 ``[H, W, 3]``.
        overlay_files: PNG.
    """

    scores: NDArray[np.float32]
    heatmaps: tuple[NDArray[np.float32], ...] = ()
    overlays: tuple[NDArray[np.uint8], ...] = ()
    overlay_files: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the explainer answers.

    Attributes:
        results: one per image; `ExplainResult` or `InspectResult` where that was asked for.
        media: the whole answer as one image or array where that was asked for (delivery other than json).
        cache: where the network's part came from, of several images the costliest; None where nothing is kept.
        tensors: one per image, where arrays were asked for (`TensorOptions`).
    """

    model: ModelIdentity
    results: tuple[PredictResult, ...]
    timings: Timings
    batch_size: int
    media: Media | None = None
    cache: CacheStatus | None = None
    tensors: tuple[ImageTensors, ...] = ()


# What there is to ask for ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodInfo:
    """A method of explanation."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    name: str
    family: str
    cost: Cost
    passes: Annotated[
        int, Field(ge=1, description="Forward passes that one image, class and layer cost with the default parameters.")
    ]
    raw_unit: Annotated[RawUnit, RAW_UNIT]
    options: Annotated[tuple[str, ...], Field(description="Request options that the method minds.")]
    paper: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FaithfulnessScores:
    """Means over the images of a check; see `Faithfulness` for their meaning."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    deletion: Annotated[float, Field(description="Low is good.")]
    insertion: Annotated[float, Field(description="High is good.")]
    average_drop: Annotated[float, Field(description="Low is good.")]
    road: Annotated[float, Field(description="High is good.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCheck:
    """What `camserve check` found of one method on one model."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    method: str
    ms: Annotated[float, Field(description="Milliseconds of one image and class.")]
    sanity: Annotated[
        float | None,
        Field(
            description="Mean rank correlation of maps before and after the weights of the head are shuffled (Adebayo 2018): 1 "
            "is a map that ignores what the network learnt about the class. Null where every map is blank."
        ),
    ]
    verdict: str
    faithfulness: FaithfulnessScores | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCheck:
    """What `camserve check` found of a model, kept beside its card."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    camserve: Annotated[str, Field(description="Version that checked it.")]
    digest: Annotated[str, Field(description="Of the weights that were checked.")]
    layer: tuple[str, ...]
    images: Annotated[int, Field(description="Number of images.")]
    methods: tuple[MethodCheck, ...]
    random: Annotated[FaithfulnessScores | None, Field(description="Of a random map.")]
    center: Annotated[FaithfulnessScores | None, Field(description="Of a Gaussian in the centre.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A card and the state of its model. What only a loaded model knows is null or empty before it is ready."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    name: str
    version: str
    description: str
    reference: Annotated[
        str | None, Field(description="Of a model named by reference or found as a folder; of a path its last part.")
    ]
    revision: Annotated[str | None, Field(description="Commit of the repository that the weights come from.")]
    state: ModelState
    error: str | None
    device: str | None
    precision: str | None
    engine: str | None
    input_size: Annotated[tuple[int, int] | None, Field(description="Height and width.")]
    classes: int | None
    default_layer: tuple[str, ...]
    layers: Annotated[tuple[LayerInfo, ...], Field(description="Where the model can be explained.")]
    methods: Annotated[tuple[str, ...], Field(description="Methods that fit the model.")]
    digest: Annotated[str | None, Field(description="Of the weights.")]
    check: Annotated[ModelCheck | None, Field(description="What `camserve check --keep` found of these weights.")]


@dataclass(frozen=True, slots=True)
class ModelList:
    """Every card."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    models: list[ModelInfo]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassInfo:
    """A class of a model."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    class_id: Annotated[int, Field(ge=0)]
    label: Annotated[str, Field(description="As predictions show it.")]
    wordnet_id: str | None


@dataclass(frozen=True, slots=True)
class ClassList:
    """Every class of a model, in order of class ids."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    classes: tuple[ClassInfo, ...]


@dataclass(frozen=True, slots=True)
class MethodList:
    """Every method."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    methods: list[MethodInfo]


@dataclass(frozen=True, slots=True)
class Health:
    """The state of the process."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    status: Literal["alive", "ready"]
