"""Faithfulness of a map to the network: a class's probability while pixels are removed or inserted in the order of the map.

Every metric of a map comes with the same metric of two baselines, a random map on the same grid and a Gaussian in the centre: a
metric can be judged only by comparison with them. Nothing here knows the method that computed a map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, overload

import torch
from torch import Tensor
from torch.nn import functional

from service.engine.evaluation.road import SEED, impute
from service.engine.graph.runner import ChunkedRunner
from service.engine.types import Evaluation, EvaluationRequest, Faithfulness

STEPS: Final = 20  # of the deletion and insertion curves
ROAD_PERCENT: Final = (20, 40, 60, 80)
BLUR_KERNEL, BLUR_SIGMA = 11, 5.0  # those of RISE
CENTER_SIGMA: Final = 0.25  # as a fraction of the side
PASSES_PER_MAP: Final = 2 * (STEPS + 1) + 2 * len(ROAD_PERCENT) + 1


@dataclass(frozen=True, kw_only=True)
class PixelReplacement(Sequence[Tensor]):
    """The images of a curve: at each step more pixels of one image are replaced by those of another.

    An image is computed when it is indexed.

    Attributes:
        before, after: float ``[C, H, W]``, the images before and after all replacements.
        ranks: int64 ``[H, W]``, the rank of each pixel; low ranks are replaced first.
        counts: for each step the number of pixels that are replaced.
    """

    before: Tensor
    after: Tensor
    ranks: Tensor
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return list(self._images(self.counts[index]))
        return self._images((self.counts[index],))[0]

    def _images(self, counts: tuple[int, ...]) -> Tensor:
        """One image for each count, ``[n, C, H, W]``."""
        mask = self.ranks < torch.tensor(counts, device=self.ranks.device).view(-1, 1, 1, 1)
        return torch.where(mask, self.after, self.before)


def evaluate(runner: ChunkedRunner, images: Tensor, request: EvaluationRequest) -> tuple[Evaluation, ...]:
    """Measures the faithfulness of one map for each class of an image.

    Args:
        runner: the runner of the whole network.
        images: the image, float ``[1, C, H, W]``, normalised.
        request: classes and maps. The metrics depend on the ranks of a map's pixels alone, except the average drop, which
            multiplies the image by the map's positive part over its maximum.

    Returns:
        One evaluation for each class, in order.

    Raises:
        DeadlineExceeded: raised by the runner's checkpoint.
    """
    height, width = images.shape[2:]
    device = images.device

    def probabilities(batch: Sequence[Tensor]) -> Tensor:
        """Float64 ``[n, classes]``, on the CPU."""
        logits = runner.forward(batch).double().cpu()
        return logits.softmax(dim=1) if request.activation == "softmax" else logits.sigmoid()

    image = images[0]
    original = probabilities([image])[0]
    # The baselines are the same for every class, so all classes share their passes.
    random = _MapProbabilities(probabilities, image, random_map((height, width), request.grid).to(device), original)
    center = _MapProbabilities(probabilities, image, center_map((height, width)).to(device), original)
    return tuple(
        Evaluation(
            steps=STEPS,
            road_percent=ROAD_PERCENT,
            probability=float(original[class_id]),
            map=_MapProbabilities(probabilities, image, torch.from_numpy(heatmap).to(device), original).metrics(class_id),
            random=random.metrics(class_id),
            center=center.metrics(class_id),
        )
        for class_id, heatmap in zip(request.classes, request.maps, strict=True)
    )


class _MapProbabilities:
    """The probabilities of all classes in all passes for one map.

    Args:
        probabilities: images, float ``[C, H, W]`` each -> probabilities, float64 ``[n, classes]``.
        image: float ``[C, H, W]``, normalised.
        heatmap: float ``[H, W]``.
        original: probabilities of the image, float64 ``[classes]``.
    """

    def __init__(
        self, probabilities: Callable[[Sequence[Tensor]], Tensor], image: Tensor, heatmap: Tensor, original: Tensor
    ) -> None:
        ranks = rank_pixels(heatmap)
        pixels = ranks.numel()
        counts = tuple(round(pixels * step / STEPS) for step in range(STEPS + 1))
        self._original = original
        # Zero is the mean of each channel after normalisation.
        self._deletion = probabilities(
            PixelReplacement(before=image, after=torch.zeros_like(image), ranks=ranks, counts=counts)
        )
        self._insertion = probabilities(PixelReplacement(before=blur(image), after=image, ranks=ranks, counts=counts))
        road_counts = tuple(pixels * percent // 100 for percent in ROAD_PERCENT)
        most = torch.stack([ranks < count for count in road_counts])
        least = torch.stack([ranks >= pixels - count for count in road_counts])
        road = probabilities(list(impute(image, torch.cat([most, least]))))
        self._most, self._least = road[: len(road_counts)], road[len(road_counts) :]
        mask = heatmap.clamp(min=0)
        peak = mask.max()
        self._product = probabilities([image * (mask / peak if peak > 0 else mask)])[0]

    def metrics(self, class_id: int) -> Faithfulness:
        """The metrics of the map for one class."""
        deletion, insertion = self._deletion[:, class_id], self._insertion[:, class_id]
        most, least = self._most[:, class_id], self._least[:, class_id]
        original = self._original[class_id].clamp(min=torch.finfo(torch.float64).tiny)
        return Faithfulness(
            deletion=float(torch.trapezoid(deletion, dx=1 / STEPS)),
            insertion=float(torch.trapezoid(insertion, dx=1 / STEPS)),
            average_drop=float((original - self._product[class_id]).clamp(min=0) / original),
            road=float((least - most).mean() / 2),
            deletion_curve=tuple(deletion.tolist()),
            insertion_curve=tuple(insertion.tolist()),
            road_most=tuple(most.tolist()),
            road_least=tuple(least.tolist()),
        )


def rank_pixels(heatmap: Tensor) -> Tensor:
    """The rank of each pixel by descending value, int64 ``[H, W]`` from 0; ties are broken at random, with a fixed seed.

    Curves are defined by ranks rather than thresholds: a map with many zeros has no threshold above which a fifth of its pixels
    lie.
    """
    flat = heatmap.flatten()
    permutation = torch.randperm(len(flat), generator=torch.Generator().manual_seed(SEED)).to(flat.device)
    descending = permutation[flat[permutation].argsort(descending=True, stable=True)]
    ranks = torch.empty_like(descending)
    ranks[descending] = torch.arange(len(flat), device=flat.device)
    return ranks.view(heatmap.shape)


def random_map(size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Uniform noise on the grid, resized as a map would be: float ``[H, W]``, 0..1.

    Noise of single pixels would not be comparable with a coarse map: its curves fall at the first step for any image.
    """
    noise = torch.rand((1, 1, *grid), generator=torch.Generator().manual_seed(SEED))
    return functional.interpolate(noise, size, mode="bilinear", align_corners=False)[0, 0]


def center_map(size: tuple[int, int]) -> Tensor:
    """A Gaussian in the centre: float ``[H, W]``, 0..1."""
    rows, columns = (_gaussian(side, (side - 1) / 2, CENTER_SIGMA * side) for side in size)
    return rows[:, None] * columns[None]


def blur(image: Tensor) -> Tensor:
    """An image, float ``[C, H, W]``, blurred by a Gaussian of kernel size 11 and sigma 5: the start of RISE's insertion."""
    kernel = _gaussian(BLUR_KERNEL, BLUR_KERNEL // 2, BLUR_SIGMA).to(image)
    kernel = kernel / kernel.sum()
    channels, half = len(image), BLUR_KERNEL // 2
    padded = functional.pad(image[None], (half, half, half, half), mode="replicate")
    rows = functional.conv2d(padded, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return functional.conv2d(rows, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)[0]


def _gaussian(length: int, mean: float, sigma: float) -> Tensor:
    """A Gaussian of maximum 1 at the indices 0..length - 1."""
    return torch.exp(-((torch.arange(length) - mean) ** 2) / (2 * sigma**2))
