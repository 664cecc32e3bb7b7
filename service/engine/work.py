"""What a network is asked and what it answers, one image at a time: arrays only, so that no other room meets a tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tuning:
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


@dataclass(frozen=True, slots=True)
class Work:
    """One image for the network.

    Attributes:
        pixels: uint8 ``[h, w, 3]`` RGB, already at the network's input size.
        classes: class ids to explain, in this order.
        best: where `classes` is empty: explain so many of the best classes; 0 only predicts.
        versus: class id whose logit is subtracted from the score, or None.
        method: name of an explanation method.
        layers: module paths to explain at, or () for the card's.
        tuning: the method's parameters, all of them (`Method.tune`).
        abandoned: set when nobody waits for the outcome any more; looked at between the passes of long methods.
    """

    pixels: NDArray[np.uint8]
    classes: tuple[int, ...] = ()
    best: int = 0
    versus: int | None = None
    method: str = "gradcam"
    layers: tuple[str, ...] = ()
    tuning: Tuning = Tuning()
    abandoned: Event = field(default_factory=Event, compare=False)

    @property
    def rows(self) -> int:
        """Explanations asked for."""
        return len(self.classes) or self.best


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the network said of one image.

    Attributes:
        logits: float32 ``[classes]``.
        classes: the class ids explained, in order; those asked for, or the best.
        maps: for each class, for each layer, the signed map on the layer's grid, float32 ``[rows, columns]``, in logit units;
            one map, of the input's size, from methods that know no layer.
        layers: module paths explained at; none for those methods.
    """

    logits: NDArray[np.float32]
    classes: tuple[int, ...]
    maps: tuple[tuple[NDArray[np.float32], ...], ...]
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A place where the network can be explained; `grid` is (rows, columns) at the default input size."""

    name: str
    channels: int
    grid: tuple[int, int]
