"""How faithful a map is to the network: what becomes of a class when the image loses, or gains, what the map shows first.

Every figure stands beside the same figure of a random map, as coarse as the map itself, and of a bump in the centre: alone none
of them can be read. Nothing here knows how a map was made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, overload

import torch
from torch import Tensor
from torch.nn import functional

from service.engine.evaluation.road import impute
from service.engine.graph.runner import ChunkedRunner
from service.engine.types import Evaluation, EvaluationRequest, Faithfulness

STEPS: Final = 20  # of the deletion and insertion curves
ROAD_PERCENT: Final = (20, 40, 60, 80)
BLUR_KERNEL, BLUR_SIGMA = 11, 5.0  # RISE's
CENTER_SIGMA: Final = 0.25  # of the side
SEED: Final = 0
PASSES_PER_MAP: Final = 2 * (STEPS + 1) + 2 * len(ROAD_PERCENT) + 1


@dataclass(frozen=True, kw_only=True)
class PixelReplacement(Sequence[Tensor]):
    """An image whose pixels are replaced by those of another, more of them at each step; a step is made when it is indexed.

    Attributes:
        before, after: float ``[C, H, W]``.
        order: int64 ``[H, W]``, the rank of each pixel.
        counts: of pixels replaced, for each step.
    """

    before: Tensor
    after: Tensor
    order: Tensor
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return list(self._steps(self.counts[index]))
        return self._steps((self.counts[index],))[0]

    def _steps(self, counts: tuple[int, ...]) -> Tensor:
        replaced = self.order < torch.tensor(counts, device=self.order.device).view(-1, 1, 1, 1)
        return torch.where(replaced, self.after, self.before)


def evaluate(runner: ChunkedRunner, images: Tensor, request: EvaluationRequest) -> tuple[Evaluation, ...]:
    """Measures one map for each class of an image.

    Args:
        runner: of the whole network.
        images: the image, float ``[1, C, H, W]``, normalised.
        request: classes and maps; of a map only its order counts, but for the average drop, which multiplies with its
            positive part over its peak.

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
    whole = probabilities([image])[0]
    # Neither baseline looks at a class, so that one run of passes serves all of them.
    random = _MapPasses(probabilities, image, random_map((height, width), request.grid).to(device), whole)
    center = _MapPasses(probabilities, image, center_map((height, width)).to(device), whole)
    return tuple(
        Evaluation(
            steps=STEPS,
            road_percent=ROAD_PERCENT,
            probability=float(whole[class_id]),
            map=_MapPasses(probabilities, image, torch.from_numpy(heat).to(device), whole).of(class_id),
            random=random.of(class_id),
            center=center.of(class_id),
        )
        for class_id, heat in zip(request.classes, request.maps, strict=True)
    )


class _MapPasses:
    """All passes for one map; `of` reads them for a class."""

    def __init__(self, probabilities: Callable[[Sequence[Tensor]], Tensor], image: Tensor, heat: Tensor, whole: Tensor) -> None:
        ranks = order(heat)
        pixels = ranks.numel()
        counts = tuple(round(pixels * step / STEPS) for step in range(STEPS + 1))
        self._whole = whole
        # Zero is the mean of each channel after normalisation.
        self._deletion = probabilities(
            PixelReplacement(before=image, after=torch.zeros_like(image), order=ranks, counts=counts)
        )
        self._insertion = probabilities(PixelReplacement(before=blurred(image), after=image, order=ranks, counts=counts))
        removed = tuple(pixels * percent // 100 for percent in ROAD_PERCENT)
        most = torch.stack([ranks < count for count in removed])
        least = torch.stack([ranks >= pixels - count for count in removed])
        road = probabilities(list(impute(image, torch.cat([most, least]))))
        self._most, self._least = road[: len(removed)], road[len(removed) :]
        shade = heat.clamp(min=0)
        peak = shade.max()
        self._shown = probabilities([image * (shade / peak if peak > 0 else shade)])[0]

    def of(self, class_id: int) -> Faithfulness:
        deletion, insertion = self._deletion[:, class_id], self._insertion[:, class_id]
        most, least = self._most[:, class_id], self._least[:, class_id]
        whole = self._whole[class_id].clamp(min=torch.finfo(torch.float64).tiny)
        return Faithfulness(
            deletion=float(torch.trapezoid(deletion, dx=1 / STEPS)),
            insertion=float(torch.trapezoid(insertion, dx=1 / STEPS)),
            average_drop=float((whole - self._shown[class_id]).clamp(min=0) / whole),
            road=float((least - most).mean() / 2),
            deletion_curve=tuple(deletion.tolist()),
            insertion_curve=tuple(insertion.tolist()),
            road_most=tuple(most.tolist()),
            road_least=tuple(least.tolist()),
        )


def order(heat: Tensor) -> Tensor:
    """The place of each pixel when they are sorted by falling heat, int64 ``[H, W]``; equal ones are shuffled, by a fixed seed.

    Ranks, not thresholds: a map with many zeros has no percentile that would take just a fifth of its pixels.
    """
    flat = heat.flatten()
    shuffled = torch.randperm(len(flat), generator=torch.Generator().manual_seed(SEED)).to(flat.device)
    falling = shuffled[flat[shuffled].argsort(descending=True, stable=True)]
    places = torch.empty_like(falling)
    places[falling] = torch.arange(len(flat), device=flat.device)
    return places.view(heat.shape)


def random_map(size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Uniform noise on the grid, brought to the size as a map would be: float ``[H, W]``, 0..1.

    Noise of single pixels would be no fair opponent of a coarse map: it destroys any image at once.
    """
    noise = torch.rand((1, 1, *grid), generator=torch.Generator().manual_seed(SEED))
    return functional.interpolate(noise, size, mode="bilinear", align_corners=False)[0, 0]


def center_map(size: tuple[int, int]) -> Tensor:
    """A Gaussian bump in the middle: float ``[H, W]``, 0..1."""
    rows, columns = (_bell(side, (side - 1) / 2, CENTER_SIGMA * side) for side in size)
    return rows[:, None] * columns[None]


def blurred(image: Tensor) -> Tensor:
    """An image, float ``[C, H, W]``, under a Gaussian of kernel 11 and sigma 5, as RISE begins its insertion."""
    bell = _bell(BLUR_KERNEL, BLUR_KERNEL // 2, BLUR_SIGMA).to(image)
    bell = bell / bell.sum()
    channels, half = len(image), BLUR_KERNEL // 2
    padded = functional.pad(image[None], (half, half, half, half), mode="replicate")
    rows = functional.conv2d(padded, bell.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return functional.conv2d(rows, bell.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)[0]


def _bell(length: int, middle: float, sigma: float) -> Tensor:
    return torch.exp(-((torch.arange(length) - middle) ** 2) / (2 * sigma**2))
