"""Requests to the engine and its results: arrays and plain values, so that no other package handles a tensor.

Types that are serialized to the client unchanged carry the descriptions that the OpenAPI schema shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from service.vocabulary import Activation, AttentionDirection, HeadFusion, LayoutKind

# A response has exactly the fields of its type, so the schema of that type forbids additional properties.
CLOSED = ConfigDict(extra="forbid")


class MethodParameters(BaseModel):
    """Parameters of methods. None means that the request does not set the parameter, or that the method does not have it.

    `GET /methods` lists the parameters of each method; a parameter that the method does not have is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    eigen_smooth: bool | None = Field(None, description="First principal component of the weighted channels, not their sum.")
    aug_smooth: bool | None = Field(None, description="Mean over flipped and rescaled inputs.")
    samples: int | None = Field(None, ge=1, le=10_000, description="Random draws: noise, masks, coalitions.")
    steps: int | None = Field(None, ge=1, le=1000, description="Points on the path of integration.")
    noise: float | None = Field(None, ge=0, le=10, allow_inf_nan=False, description="Noise, as a part of the input's range.")
    window: int | None = Field(None, ge=1, le=1024, description="Side of the square that is covered, in input pixels.")
    stride: int | None = Field(None, ge=1, le=1024, description="Steps of that square, in input pixels.")
    segments: int | None = Field(None, ge=2, le=500, description="Superpixels.")
    seed: int | None = Field(None, ge=0, le=2**31 - 1, description="Of everything random: the same request, the same answer.")
    head_fusion: HeadFusion | None = Field(None, description="How attention heads become one.")
    block: int | None = Field(None, ge=-200, le=200, description="Attention block, from 0; negative counts from the last.")
    toward: AttentionDirection | None = Field(None, description="Attention from the class token, or to it.")
    discard_ratio: float | None = Field(None, ge=0, lt=1, allow_inf_nan=False, description="Lowest part of attention dropped.")
    rivals: int | None = Field(None, ge=1, le=16, description="How many of the most similar classes to compare with.")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResult:
    """The network's result for one image.

    Attributes:
        logits: float32 ``[classes]``.
        classes: the explained class ids, in order: those of the request, or the best.
        maps: for each class, for each layer, the signed map on the layer's grid, float32 ``[rows, columns]``, in the method's
            unit; for methods without layers one map, of the input's size or on the grid of patches.
        layers: paths of the modules at which the network was split; empty for methods without layers.
        engine, precision: the engine that ran the trunk, and the precision of its arithmetic.
    """

    logits: NDArray[np.float32]
    classes: tuple[int, ...]
    maps: tuple[tuple[NDArray[np.float32], ...], ...]
    layers: tuple[str, ...]
    engine: str
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    """A layer at which the network can be explained; `name` is its module path."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    name: str
    channels: int
    grid: Annotated[tuple[int, int], Field(description="Rows and columns at the default input size.")]
    layout: Annotated[
        LayoutKind,
        Field(description="How the network holds it: channels first, channels last, or a token for each place."),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """Maps of one image whose faithfulness to the network is to be measured.

    Attributes:
        pixels: uint8 ``[h, w, 3]`` RGB, at the network's input size.
        classes: class ids.
        maps: for each class its map as it is rendered, float32 ``[h, w]``.
        grid: (rows, columns) of the grid on which the maps were computed.
        activation: the function from logits to probabilities.
    """

    pixels: NDArray[np.uint8]
    classes: tuple[int, ...]
    maps: tuple[NDArray[np.float32], ...]
    grid: tuple[int, int]
    activation: Activation = "softmax"


@dataclass(frozen=True, slots=True, kw_only=True)
class Faithfulness:
    """Faithfulness metrics of one map; probabilities are those of the explained class.

    `deletion` and `insertion`: Petsiuk et al. 2018 (RISE), https://arxiv.org/abs/1806.07421. `average_drop`: Chattopadhay et
    al. 2018, https://arxiv.org/abs/1710.11063, 0..1. `road`: Rong et al. 2022, https://arxiv.org/abs/2202.00449, combined as
    in pytorch-grad-cam's `ROADCombined`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    deletion: Annotated[float, Field(description="Area under `deletion_curve`; low is good.")]
    insertion: Annotated[float, Field(description="Area under `insertion_curve`; high is good.")]
    average_drop: Annotated[float, Field(description="Part of the probability lost when the map masks the image; low is good.")]
    road: Annotated[float, Field(description="Mean of (`road_least` - `road_most`) / 2; high is good.")]
    deletion_curve: Annotated[
        tuple[float, ...],
        Field(description="Probability while pixels, hottest first, are set to the channels' means."),
    ]
    insertion_curve: Annotated[
        tuple[float, ...],
        Field(
            description="Probability while pixels, hottest first, enter the image blurred by a Gaussian (kernel 11, sigma 5)."
        ),
    ]
    road_most: Annotated[
        tuple[float, ...],
        Field(description="Probability without the hottest pixels, for each of `road_percent`."),
    ]
    road_least: Annotated[tuple[float, ...], Field(description="Probability without the coldest pixels.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Faithfulness of a map and of two baselines to compare it with: a random map on the same grid, a centred Gaussian."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    steps: Annotated[int, Field(description="Of the curves, from 0 to all of the pixels.")]
    road_percent: Annotated[tuple[int, ...], Field(description="Percentages of the pixels that ROAD removes and imputes.")]
    probability: Annotated[float, Field(description="Of the class in the whole image.")]
    map: Faithfulness
    random: Faithfulness
    center: Faithfulness


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStatisticsRequest:
    """One image, and the layers whose statistics for a class are to be computed.

    Attributes:
        pixels: uint8 ``[h, w, 3]`` RGB, at the network's input size.
        class_id: the class, or None for the best.
        versus: class id whose logit is subtracted from the score, or None.
        layers: module paths; () for a few stages over the depth.
        channels: how many channels of the largest weights are described.
    """

    pixels: NDArray[np.uint8]
    class_id: int | None = None
    versus: int | None = None
    layers: tuple[str, ...] = ()
    channels: int = 8


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values between edges; one more edge than counts."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel of a layer."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    channel: int
    weight: Annotated[float, Field(description="Mean gradient of the score, as in Grad-CAM.")]
    mean: Annotated[float, Field(description="Mean activation.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStatistics:
    """Statistics of one layer for a class."""

    __pydantic_config__: ClassVar[ConfigDict] = CLOSED

    layer: str
    shape: Annotated[tuple[int, int, int], Field(description="Channels, rows, columns.")]
    activation_min: float
    activation_mean: float
    activation_max: float
    gradients: Annotated[Histogram, Field(description="Of the score, in every cell of every channel.")]
    weights: Annotated[Histogram, Field(description="The same, pooled: one mean for each channel.")]
    strongest: Annotated[tuple[Channel, ...], Field(description="Channels by falling magnitude of their weight.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStatisticsResult:
    """Logits of an image, and statistics of layers for `class_id`; `engine` and `precision` as in `EngineResult`.

    Attributes:
        logits: float32 ``[classes]``.
        layers: statistics of each layer.
        feature_maps: for each layer the activations of its strongest channels, float32 ``[n, rows, columns]``.
    """

    logits: NDArray[np.float32]
    class_id: int
    layers: tuple[LayerStatistics, ...]
    feature_maps: tuple[NDArray[np.float32], ...]
    engine: str
    precision: str
