"""Perturbation: maps from the score of images with covered pixels, by forward passes of the whole network, without gradients.

The score is a raw logit, or a difference of two. Covered pixels are 0 in normalised units: the mean colour.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from service.engine.graph.runner import NETWORK_ROWS
from service.engine.methods.method import LayerSplit, Query, QueryMethod
from service.engine.types import MethodParameters
from service.errors import ParameterInvalid

VISIBLE_PROBABILITY = 0.5  # of each cell of a RISE mask
CELLS = 7  # of a RISE mask, per side
TYPICAL_SIDE = 224  # of an input, to estimate the passes of occlusion before the image is decoded


def scorecam(query: Query) -> tuple[Tensor, ...]:
    r"""Score-CAM: every channel weighted by the score of the image masked by it.

    .. math:: L = \sum_k \mathrm{softmax}_k\big(s(x \odot \mathrm{minmax}(\mathrm{up}(A_k)))\big) A_k

    Wang et al. 2020, https://arxiv.org/abs/1910.01279. The result is a map ``[h, w]`` for each layer's A ``[K, h, w]``.
    Convention of pytorch-grad-cam 1.5's `ScoreCAM`: `up` is bilinear with aligned corners, minmax has eps 1e-8, the softmax is
    over the raw scores (the paper subtracts the score of a blank image from each, which leaves a softmax unchanged).

    If the layer has more channels than `samples`, the sum is over the channels with the largest variance over the grid alone.
    That is the faster Score-CAM of tf-keras-vis (`max_N`). With `samples` at least K the map is that of pytorch-grad-cam.
    """
    return tuple(_scorecam(query, layer) for layer in query.layers)


def _scorecam(query: Query, layer: LayerSplit) -> Tensor:
    channels = layer.activations[0]
    samples = query.parameters.samples
    assert samples is not None
    if samples < len(channels):
        channels = channels[channels.flatten(1).var(1).topk(samples).indices]
    size = tuple(query.image.shape[2:])

    def score_masked_images(chunk: Tensor) -> Tensor:
        masks = nn.functional.interpolate(chunk[None], size=size, mode="bilinear", align_corners=True)[0]
        low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
        return query.target.score(query.runner.logits(query.image * ((masks - low) / (high - low + 1e-8))[:, None]))

    weights = query.runner.chunked(score_masked_images, channels, NETWORK_ROWS).softmax(0)
    return torch.einsum("k,khw->hw", weights, channels)


def rise(query: Query) -> tuple[Tensor]:
    r"""RISE: random masks, each weighted by the score of the masked image.

    .. math:: L_{ij} = \frac{1}{n p} \sum_k (s(x \odot M_k) - \bar s) M_{kij}

    Petsiuk et al. 2018, https://arxiv.org/abs/1806.07421. The masks are those of the paper: each cell of a 7x7 grid is visible
    with p = 0.5; masks are upsampled bilinearly to one cell more than the image and shifted at random. The paper weighs masks
    by the class's probability; here the score is a logit, as everywhere in this service, and its mean over the masks is
    subtracted: in the limit the map is the same up to a constant, it is less noisy for few masks, and signed: pixels above 0
    raise the score. n is `samples`.
    """
    samples = query.parameters.samples
    assert samples is not None
    generator = query.generator
    visible = torch.rand(samples, 1, CELLS + 1, CELLS + 1, generator=generator) < VISIBLE_PROBABILITY
    height, width = query.image.shape[2:]
    cell = (-(-height // CELLS), -(-width // CELLS))
    shifts = torch.stack([torch.randint(0, side, (samples,), generator=generator) for side in cell], 1)

    def masks(chunk: Tensor) -> Tensor:
        """The masks ``[n, 1, H, W]`` of the indices ``[n]``."""
        grids = nn.functional.interpolate(
            visible[chunk].to(query.image),
            size=((CELLS + 1) * cell[0], (CELLS + 1) * cell[1]),
            mode="bilinear",
            align_corners=False,
        )
        return torch.stack(
            [
                mask[:, top : top + height, left : left + width]
                for mask, (top, left) in zip(grids, shifts[chunk].tolist(), strict=True)
            ]
        )

    indices = torch.arange(samples)
    scores = query.runner.chunked(
        lambda chunk: query.target.score(query.runner.logits(query.image * masks(chunk))), indices, NETWORK_ROWS
    )
    weights = (scores - scores.mean()) / (samples * VISIBLE_PROBABILITY)
    total = torch.zeros_like(query.image[0, 0])
    for chunk in torch.split(indices, NETWORK_ROWS):  # masks are computed again, for all of them may not fit into memory
        total += torch.einsum("n,nhw->hw", weights[chunk.to(weights.device)], masks(chunk)[:, 0])
    return (total,)


def occlusion(query: Query) -> tuple[Tensor]:
    r"""Occlusion: the score that is lost when a square is covered.

    .. math:: L_{ij} = \frac{1}{|W_{ij}|} \sum_{w \in W_{ij}} (s(x) - s(x \text{ with square } w \text{ covered}))

    Zeiler and Fergus 2013, https://arxiv.org/abs/1311.2901, section 4.2. W_ij are the squares that cover the pixel. It is
    captum's `Occlusion` with baseline 0: squares of `window` pixels every `stride` pixels, the last of a row cut off at the
    border.

    Raises:
        ParameterInvalid: the stride is larger than the window, so that no square covers the pixels between.
    """
    window, stride = query.parameters.window, query.parameters.stride
    assert window is not None
    assert stride is not None
    if stride > window:
        raise ParameterInvalid("stride: must not be larger than window, or pixels between the squares are never covered.")
    height, width = query.image.shape[2:]
    squares = torch.tensor([(top, left) for top in _starts(height, window, stride) for left in _starts(width, window, stride)])

    def score_covered_images(chunk: Tensor) -> Tensor:
        images = query.image.repeat(len(chunk), 1, 1, 1)
        for image, (top, left) in zip(images, chunk.tolist(), strict=True):
            image[:, top : top + window, left : left + window] = 0
        return query.target.score(query.runner.logits(images))

    score = query.target.score(query.logits[None])
    losses = (score - query.runner.chunked(score_covered_images, squares, NETWORK_ROWS)).tolist()
    total, count = torch.zeros_like(query.image[0, 0]), torch.zeros_like(query.image[0, 0])
    for loss, (top, left) in zip(losses, squares.tolist(), strict=True):
        total[top : top + window, left : left + window] += loss
        count[top : top + window, left : left + window] += 1
    return (total / count,)


def _starts(side: int, window: int, stride: int) -> Iterator[int]:
    """The first row or column of each square, up to the first square that reaches the border."""
    return iter(range(0, max(0, side - window) + stride, stride))


def _count_squares(parameters: MethodParameters) -> int:
    """The number of squares of an input of the typical size."""
    return len(list(_starts(TYPICAL_SIDE, parameters.window or 1, parameters.stride or 1))) ** 2


METHODS = (
    QueryMethod(
        name="scorecam",
        family="perturbation",
        cost="many forwards",
        lane="slow",
        paper="https://arxiv.org/abs/1910.01279",
        summary="Channels of a layer weighted by the logit of the image seen through each; `samples` bounds how many.",
        raw_unit="activation",
        defaults=MethodParameters(samples=128),
        explain=scorecam,
        passes=lambda parameters: parameters.samples or 0,
    ),
    QueryMethod(
        name="rise",
        family="perturbation",
        cost="many forwards",
        lane="slow",
        paper="https://arxiv.org/abs/1806.07421",
        summary="Random masks weighted by the class's logit of what each leaves visible.",
        raw_unit="logit",
        has_grid=False,
        defaults=MethodParameters(samples=160, seed=0),
        explain=rise,
        layered=False,
        passes=lambda parameters: parameters.samples or 0,
    ),
    QueryMethod(
        name="occlusion",
        family="perturbation",
        cost="many forwards",
        lane="slow",
        paper="https://arxiv.org/abs/1311.2901",
        summary="How much of the class's logit is lost when a square of the image is covered with the mean colour.",
        raw_unit="logit",
        has_grid=False,
        defaults=MethodParameters(window=48, stride=24),
        explain=occlusion,
        layered=False,
        passes=_count_squares,
    ),
)
