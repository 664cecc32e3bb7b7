"""The wire's shapes, for the OpenAPI schema and its readers.

Answers are written straight from the explainer's objects; a test holds the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from service.api.measures import Channel, Evaluation, Histogram, Shape
from service.explain.options import Options, Targets

EXAMPLE_PREDICTION: dict[str, Any] = {
    "class_id": 282, "label": "tiger cat", "wordnet_id": "n02123159", "probability": 0.39, "logit": 9.1,
}  # fmt: skip
EXAMPLE_MODEL: dict[str, Any] = {
    "name": "efficientnet_lite0", "version": "1", "digest": "sha256:57934424...", "precision": "fp32", "engine": "torch",
    "device": "cpu",
}  # fmt: skip


# Requests ---------------------------------------------------------------------------------------------------------------


class JsonImage(Targets):
    """One image. Classes that it names itself replace those of the request."""

    b64: str = Field(description="The file's bytes in standard base64, or a data URI of it.")


class JsonRequest(Options):
    """Images in base64 beside the options: `images`, or `image` for one."""

    images: list[JsonImage] | None = Field(None, description="One or more images.", min_length=1)
    image: str | None = Field(None, description="The one image: base64 or a data URI.")


class FormRequest(Options):
    """File parts beside the options."""

    image: list[Annotated[str, Field(json_schema_extra={"format": "binary"})]] = Field(
        description="The image as a file part; repeat it for several. `file` is another name for it."
    )


# Answers ----------------------------------------------------------------------------------------------------------------


class ModelIdentity(Shape):
    """The model that answered."""

    name: str
    version: str
    digest: str = Field(description="Of the weights.")
    precision: str
    engine: str
    device: str

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": EXAMPLE_MODEL})


class ImageInfo(Shape):
    """The image after EXIF orientation."""

    width: int = Field(ge=1)
    height: int = Field(ge=1)
    format: str
    sha256: str = Field(description="Of the bytes received.")


class Prediction(Shape):
    class_id: int = Field(ge=0)
    label: str
    wordnet_id: str | None
    probability: float = Field(ge=0, le=1, description="Softmax over all classes.")
    logit: float

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": EXAMPLE_PREDICTION})


class Encoded(Shape):
    """An image or an array in base64."""

    media_type: str
    width: int
    height: int
    b64: str


class Explanation(Prediction):
    """One class of one image, explained."""

    versus: Prediction | None = Field(description="The class contrasted with.")
    method: str
    layer: list[str]
    polarity: Literal["positive", "negative", "both"]
    scale: Literal["minmax", "max", "shared", "none"]
    raw_min: float = Field(description="Lowest value of the map before scaling, in logit units.")
    raw_max: float = Field(description="Highest value of the map before scaling, in logit units.")
    blank: bool = Field(description="No cell of the map has the sign asked for; the map is all zero.")
    grid: tuple[int, int] = Field(description="Rows and columns of the layer's map.")
    region: tuple[int, int, int, int] = Field(
        description="Left, top, right, bottom in pixels of the upright original: the part that the model saw."
    )
    heatmap: Encoded | list[Any] | None = Field(description="As option `heatmap` asks; zero outside `region`.")
    overlay: Encoded | None = Field(description="With option `overlay`.")
    evaluation: Evaluation | None = Field(description="With option `evaluate`.")

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": EXAMPLE_PREDICTION
            | {
                "versus": None, "method": "gradcam", "layer": ["bn2"], "polarity": "positive", "scale": "minmax",
                "raw_min": 0.0, "raw_max": 3.1, "blank": False, "grid": [7, 7], "region": [75, 0, 375, 300],
                "heatmap": {"media_type": "image/png", "width": 451, "height": 300, "b64": "iVBORw0KGgo="}, "overlay": None,
                "evaluation": None,
            }
        },
    )  # fmt: skip


class PredictResult(Shape):
    image: ImageInfo
    predictions: list[Prediction] = Field(description="The best classes, the best first.")


class ExplainResult(PredictResult):
    explanations: list[Explanation] = Field(description="One for each class asked for, in that order.")


class LayerStatistics(Shape):
    """What one layer does for a class."""

    layer: str
    shape: tuple[int, int, int] = Field(description="Channels, rows, columns.")
    activation_min: float
    activation_mean: float
    activation_max: float
    gradients: Histogram = Field(description="Of the score, in every cell of every channel.")
    weights: Histogram = Field(description="The same, pooled: one mean for each channel.")
    strongest: list[Channel] = Field(description="Channels by falling magnitude of their weight.")


class Inspection(Prediction):
    """What layers do for one class of one image."""

    versus: Prediction | None = Field(description="The class contrasted with.")
    layers: list[LayerStatistics]


class InspectResult(PredictResult):
    inspection: Inspection


class Timings(Shape):
    """Milliseconds per stage; of several images the slowest. `queue` is the wait for the network, `infer` the network."""

    decode: float
    queue: float
    infer: float
    render: float
    total: float


class PredictResponse(Shape):
    id: str = Field(description="The request's id.")
    model: ModelIdentity
    results: list[PredictResult] = Field(description="One for each image, in the order sent.")
    timings_ms: Timings
    batch_size: int = Field(description="Images in the network's pass that answered this request; 0 of a hit.")


class ExplainResponse(Shape):
    id: str = Field(description="The request's id.")
    model: ModelIdentity
    results: list[ExplainResult] = Field(description="One for each image, in the order sent.")
    timings_ms: Timings
    batch_size: int = Field(description="Images in the network's pass that answered this request; 0 of a hit.")


class InspectResponse(Shape):
    id: str = Field(description="The request's id.")
    model: ModelIdentity
    results: list[InspectResult] = Field(description="One for each image, in the order sent.")
    timings_ms: Timings
    batch_size: int


# The catalogue and the operator's routes --------------------------------------------------------------------------------


class Layer(Shape):
    name: str
    channels: int
    grid: tuple[int, int] = Field(description="Rows and columns at the default input size.")
    layout: Literal["nchw", "nhwc", "tokens"] = Field(
        description="How the network holds it: channels first, channels last, or a token for each place."
    )


class Model(Shape):
    """A card and the state of its model. What only a loaded model knows is null or empty before it is ready."""

    name: str
    version: str
    description: str
    state: Literal["available", "loading", "ready", "failed"]
    error: str | None
    device: str | None
    precision: str | None
    engine: str | None
    input_size: tuple[int, int] | None = Field(description="Height and width.")
    classes: int | None
    default_layer: list[str]
    layers: list[Layer] = Field(description="Where the model can be explained.")
    methods: list[str] = Field(description="Methods that fit the model.")
    digest: str | None = Field(description="Of the weights.")


class ModelList(Shape):
    models: list[Model]


class Method(Shape):
    name: str
    family: str
    cost: Literal["none", "head", "forward", "many forwards"]
    options: list[str] = Field(description="Request options that the method minds.")
    paper: str
    summary: str


class MethodList(Shape):
    methods: list[Method]


class Health(Shape):
    status: Literal["alive", "ready"]


class Welcome(Shape):
    status: Literal["alive"]
    name: str
    version: str
    explain: str
    predict: str
    models: str
    methods: str
    docs: str


class Problem(Shape):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str = Field(description="What is wrong and what to do, for people.")
    instance: str = Field(description="`urn:request:` and the request's id.")
    code: str = Field(description="What is wrong, for programs: stable, in snake case.")
    error: str = Field(description="The same as `detail`.")

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "type": "urn:camserve:problem:parameter_invalid", "title": "Invalid parameter", "status": 422,
                "detail": "alpha: must be at most 1", "instance": "urn:request:3f1c", "code": "parameter_invalid",
                "error": "alpha: must be at most 1",
            }
        },
    )  # fmt: skip
