"""What a network is asked and what it answers, one image at a time: arrays only, so that no other room meets a tensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
    """

    pixels: NDArray[np.uint8]
    classes: tuple[int, ...] = ()
    best: int = 0
    versus: int | None = None
    method: str = "gradcam"
    layers: tuple[str, ...] = ()

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
        maps: for each class, for each layer, the signed map on the layer's grid, float32 ``[rows, columns]``, in logit units.
        layers: module paths explained at.
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
