"""Test-time augmentation of any class activation map: the mean over flipped and brightened views of the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from service.engine.methods.probe import LayerSplit, Probe
from service.engine.types import MethodParameters

FACTORS: Final = (0.9, 1.0, 1.1)
VIEWS: Final = 2 * len(FACTORS)


def augmented(p: Probe, cam: Callable[[Tensor, Tensor, MethodParameters], Tensor]) -> tuple[Tensor, ...]:
    r"""Mean of a method's signed maps over the image and its mirror image, each times 0.9, 1 and 1.1.

    .. math:: L = \frac{1}{6} \sum_v T_v^{-1} L(T_v x), \qquad L(x) \text{ with } A, G \text{ of } x

    The views of pytorch-grad-cam 1.5's `aug_smooth`; as there, the factors multiply the normalised image. It averages maps
    after ReLU, scaling and resizing. Here the raw signed maps are averaged, so that polarity and a scale shared by several
    classes keep their meaning, and a view in which little speaks for the class counts for little.

    Args:
        p: the class, and the network cut at each layer.
        cam: activations and gradients ``[6, K, h, w]`` to maps ``[6, h, w]``.

    Returns:
        A signed map ``[h, w]`` for each layer.
    """
    views = torch.cat([view * factor for view in (p.image, p.image.flip(-1)) for factor in FACTORS])
    maps = []
    for number, cut in enumerate(p.cuts):
        p.pause(number, len(p.cuts))
        plain, mirrored = cam(*_look(p, cut, views), p.parameters).chunk(2)
        maps.append(torch.cat([plain, mirrored.flip(-1)]).mean(0))
    return tuple(maps)


def _look(p: Probe, cut: LayerSplit, views: Tensor) -> tuple[Tensor, Tensor]:
    """Activations and gradients ``[n, K, h, w]`` at a cut."""
    with torch.no_grad():
        crossing = cut.split.trunk(views)
    with torch.enable_grad():
        logits, activations = cut.split.head(*cut.split.enter(crossing, None))
    (gradients,) = torch.autograd.grad(p.score(logits).sum(), activations)
    return cut.layout.to_nchw(activations.detach()), cut.layout.to_nchw(gradients)
