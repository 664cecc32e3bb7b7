"""Test-time augmentation of any class activation map: the mean over flipped and brightened views of the image."""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import Final

import torch
from torch import Tensor

from service.engine.methods.method import BatchedMethod, Cam, LayerSplit, Method, Query, QueryMethod, Target

FACTORS: Final = (0.9, 1.0, 1.1)
VIEWS: Final = 2 * len(FACTORS)


@functools.cache
def augmented(method: BatchedMethod) -> QueryMethod:
    """The method averaged over augmented views; a `QueryMethod`, for the views need passes of their own."""
    values = {field.name: getattr(method, field.name) for field in fields(Method)}
    return QueryMethod(**values, explain=functools.partial(average_over_views, method.cam))


def average_over_views(cam: Cam, query: Query) -> tuple[Tensor, ...]:
    r"""The mean of a method's signed maps over the image and its mirror image, each multiplied by 0.9, 1 and 1.1.

    .. math:: L = \frac{1}{6} \sum_v T_v^{-1} L(T_v x), \qquad L(x) \text{ with } A, G \text{ of } x

    The views are those of pytorch-grad-cam 1.5's `aug_smooth`; as there, the factors multiply the normalised image. That
    averages maps after ReLU, scaling and resizing. Here the raw signed maps are averaged, so that polarity and a scale shared
    by several classes keep their meaning, and a view with little evidence for the class has little weight.

    Args:
        cam: activations and gradients ``[6, K, h, w]`` -> maps ``[6, h, w]``.
        query: the image, the target, and the network split at each layer.

    Returns:
        A signed map ``[h, w]`` for each layer.
    """
    views = torch.cat([view * factor for view in (query.image, query.image.flip(-1)) for factor in FACTORS])
    maps = []
    for number, layer in enumerate(query.layers):
        query.runner.checkpoint(number, len(query.layers))
        originals, mirror_images = cam(*_activations_and_gradients(layer, views, query.target), query.parameters).chunk(2)
        maps.append(torch.cat([originals, mirror_images.flip(-1)]).mean(0))
    return tuple(maps)


def _activations_and_gradients(layer: LayerSplit, views: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Activations and gradients of the views at a layer, both ``[n, K, h, w]``."""
    with torch.no_grad():
        crossing = layer.split.trunk(views)
    with torch.enable_grad():
        logits, activations = layer.split.head(*layer.split.enter(crossing, None))
    (gradients,) = torch.autograd.grad(target.score(logits).sum(), activations)
    return layer.layout.to_nchw(activations.detach()), layer.layout.to_nchw(gradients)
