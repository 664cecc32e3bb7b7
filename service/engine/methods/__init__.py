"""Explanation methods, one file per family; `METHODS` is the list that `GET /methods` shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from service.engine.methods.gradient import gradcam


@dataclass(frozen=True, slots=True)
class Method:
    """One way to explain.

    `cost` is what a map costs beside a prediction: `head` (one pass of the head with its gradient), `forward`, or
    `many forwards`. `run` maps activations and gradients ``[N, K, h, w]`` to signed maps ``[N, h, w]``.
    """

    name: str
    family: str
    cost: str
    options: tuple[str, ...]
    paper: str
    summary: str
    run: Callable[[Tensor, Tensor], Tensor]


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="gradcam",
            family="gradient at a layer",
            cost="head",
            options=("class_id", "class_name", "versus", "top_k", "layer", "polarity", "scale"),
            paper="https://arxiv.org/abs/1610.02391",
            summary="Channels of a layer weighted by the mean gradient of the class's logit.",
            run=gradcam,
        ),
    )
}
