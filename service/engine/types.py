"""What a network is asked and what it answers, one image at a time: arrays only, so that no other room meets a tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodParameters:
    """Parameters of methods. None: not asked for, or not a parameter of the method at hand.

    Attributes:
        eigen_smooth: first principal component of the weighted activations in place of their sum.
        aug_smooth: mean over flipped and rescaled inputs.
        samples: random draws (noise, masks, coalitions).
        steps: points on a path of integration.
        noise: standard deviation of noise, as a fraction of the input's range.
        window, stride: of what is covered, in input pixels.
        segments: superpixels.
        seed: of everything random.
        head_fusion: how attention heads become one.
        block: which attention block, counted from 0; negative from the last.
        toward: attention from the class token, or to it.
        discard_ratio: lowest part of the attention that is dropped, 0..1.
        rivals: how many of the most similar classes to compare with.
    """

    eigen_smooth: bool | None = None
    aug_smooth: bool | None = None
    samples: int | None = None
    steps: int | None = None
    noise: float | None = None
    window: int | None = None
    stride: int | None = None
    segments: int | None = None
    seed: int | None = None
    head_fusion: Literal["mean", "max", "min"] | None = None
    block: int | None = None
    toward: Literal["from_class", "to_class"] | None = None
    discard_ratio: float | None = None
    rivals: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One image for the network.

    Attributes:
        pixels: uint8 ``[h, w, 3]`` RGB, already at the network's input size.
        classes: class ids to explain, in this order.
        best: where `classes` is empty: explain so many of the best classes; 0 only predicts.
        versus: class id whose logit is subtracted from the score, or None.
        method: name of an explanation method.
        layers: module paths to explain at, or () for the card's.
        tuning: the method's parameters, all of them (`Method.resolve_parameters`).
        abandoned: set when nobody waits for the outcome any more; looked at between the passes of long methods.
    """

    pixels: NDArray[np.uint8]
    classes: tuple[int, ...] = ()
    best: int = 0
    versus: int | None = None
    method: str = "gradcam"
    layers: tuple[str, ...] = ()
    parameters: MethodParameters = MethodParameters()
    abandoned: Event = field(default_factory=Event, compare=False)

    @property
    def rows(self) -> int:
        """Explanations asked for."""
        return len(self.classes) or self.best


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResult:
    """What the network said of one image.

    Attributes:
        logits: float32 ``[classes]``.
        classes: the class ids explained, in order; those asked for, or the best.
        maps: for each class, for each layer, the signed map on the layer's grid, float32 ``[rows, columns]``, in logit units;
            one map, of the input's size, from methods that know no layer.
        layers: module paths explained at; none for those methods.
        engine, precision: what ran the network up to the layers, and in which arithmetic.
    """

    logits: NDArray[np.float32]
    classes: tuple[int, ...]
    maps: tuple[tuple[NDArray[np.float32], ...], ...]
    layers: tuple[str, ...]
    engine: str
    precision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    """A place where the network can be explained.

    Attributes:
        name: module path.
        grid: (rows, columns) at the default input size.
        layout: how the network holds it: channels first, channels last, or a token for each place.
    """

    name: str
    channels: int
    grid: tuple[int, int]
    layout: Literal["nchw", "nhwc", "tokens"] = "nchw"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """Maps of one image, to be measured against the network.

    Attributes:
        pixels: uint8 ``[h, w, 3]`` RGB, at the network's input size.
        classes: class ids.
        maps: for each class its map as it is drawn, float32 ``[h, w]``.
        grid: (rows, columns) that the maps were made on.
        activation: how logits become probabilities.
        abandoned: as in `EngineRequest`.
    """

    pixels: NDArray[np.uint8]
    classes: tuple[int, ...]
    maps: tuple[NDArray[np.float32], ...]
    grid: tuple[int, int]
    activation: Literal["softmax", "sigmoid"] = "softmax"
    abandoned: Event = field(default_factory=Event, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faithfulness:
    """How one map fares. All probabilities are of the class explained.

    Attributes:
        deletion: area under the probability while pixels, by falling heat, are set to each channel's mean; low is good.
            Petsiuk et al. 2018 (RISE), https://arxiv.org/abs/1806.07421.
        insertion: the same while they are put into the blurred image; high is good.
        average_drop: part of the probability that is lost when the image is multiplied by the map, of peak 1, 0..1; low is
            good. Chattopadhay et al. 2018, https://arxiv.org/abs/1710.11063.
        road: mean over percentages of (probability without the coldest pixels - without the hottest) / 2, the removed ones
            made up from their neighbours; high is good. Rong et al. 2022, https://arxiv.org/abs/2202.00449; combined as in
            pytorch-grad-cam's `ROADCombined`.
        deletion_curve, insertion_curve: probabilities at 0, 1/steps, ... 1 of the pixels.
        road_most, road_least: without the hottest and without the coldest pixels, for each percentage.
    """

    deletion: float
    insertion: float
    average_drop: float
    road: float
    deletion_curve: tuple[float, ...]
    insertion_curve: tuple[float, ...]
    road_most: tuple[float, ...]
    road_least: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A map's faithfulness beside that of a random map and of a bump in the centre.

    Attributes:
        steps: of the curves.
        road_percent: of pixels removed.
        probability: of the class in the whole image.
    """

    steps: int
    road_percent: tuple[int, ...]
    probability: float
    map: Faithfulness
    random: Faithfulness
    center: Faithfulness


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStatisticsRequest:
    """One image, to look at what its layers do for a class.

    Attributes:
        pixels: uint8 ``[h, w, 3]`` RGB, at the network's input size.
        class_id: the class, or None for the best.
        versus: class id whose logit is subtracted from the score, or None.
        layers: module paths; () for a few stages over the depth.
        channels: how many of the strongest are given.
        abandoned: as in `EngineRequest`.
    """

    pixels: NDArray[np.uint8]
    class_id: int | None
    versus: int | None
    layers: tuple[str, ...]
    channels: int
    abandoned: Event = field(default_factory=Event, compare=False)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values between edges; one more edge than counts."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel of a layer: `weight` is its mean gradient, as in Grad-CAM, `mean` its mean activation."""

    channel: int
    weight: float
    mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStatistics:
    """What one layer does for a class.

    Attributes:
        layer: module path.
        shape: (channels, rows, columns).
        activation_min, activation_mean, activation_max: over all channels and cells.
        gradients: of the score, in every cell of every channel.
        weights: the gradients' means, one for each channel.
        strongest: channels by falling magnitude of their weight.
        maps: activations of the strongest, float32 ``[n, rows, columns]``, in the same order.
    """

    layer: str
    shape: tuple[int, int, int]
    activation_min: float
    activation_mean: float
    activation_max: float
    gradients: Histogram
    weights: Histogram
    strongest: tuple[Channel, ...]
    maps: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStatisticsResult:
    """What the network said of an image, and what its layers did for `class_id`; `engine`, `precision` as in `EngineResult`."""

    logits: NDArray[np.float32]
    class_id: int
    layers: tuple[LayerStatistics, ...]
    engine: str
    precision: str
