"""One batch through the head: from the trunk's activations to logits and signed maps, image by image, class by class.

Each class of each image is a row of the head, which runs under autograd once for all rows; the gradient is of the sum of the
rows' scores, and rows are independent in eval mode, so every row gets its own. Methods that need more than one gradient get a
probe for each of their rows afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.graph.export import NetworkGraph
from service.engine.graph.split import Split
from service.engine.methods import METHODS
from service.engine.methods.augmentation import augmented
from service.engine.methods.probe import LayerSplit, Probe
from service.engine.types import EngineRequest, EngineResult
from service.errors import CamserveError, InferenceNonFinite

MAX_ROWS = 32  # of one head pass: bounds memory when many classes are asked at an early, large layer

Maps = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images of one size whose trunk has run.

    Attributes:
        network: whole.
        images: float ``[N, C, h, w]``, normalised.
        parts: the network, cut at least at every layer that a work names.
        crossing: what the trunk gave for the images.
        works: one per image, each with its `layers` named.
        split_at: the network cut at other layers.
        step_aside: see `Probe`.
    """

    network: NetworkGraph
    images: Tensor
    parts: Split
    crossing: tuple[Tensor, ...]
    works: Sequence[EngineRequest]
    split_at: Callable[[tuple[str, ...]], Split]
    step_aside: Callable[[], None]


@dataclass(frozen=True, slots=True)
class HeadRow:
    """One class of one image; `class_id` None stands for the best."""

    image: int
    class_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadResult:
    """What the head said of a row: logits float32 ``[classes]`` and, from a batched method, a map for each cut layer."""

    row: HeadRow
    class_id: int
    logits: NDArray[np.float32]
    maps: Maps


def explain_batch(batch: Batch) -> list[EngineResult | Exception]:
    """Explains a batch.

    Returns:
        One outcome per work, in order; in place of it the error of one that failed, `InferenceNonFinite` where numbers are not
        finite.
    """
    works = batch.works
    done = _pass(batch, [HeadRow(image, c) for image, work in enumerate(works) for c in (work.classes or (None,))])
    # Of the k best classes asked for, the first pass explained the best and told which the others are.
    first = {explained.row.image: explained for explained in reversed(done)}
    done += _pass(
        batch,
        [
            HeadRow(image, int(class_id))
            for image, work in enumerate(works)
            if not work.classes and work.best > 1
            for class_id in np.argsort(-first[image].logits, kind="stable")[: work.best]
            if class_id != first[image].class_id
        ],
    )
    return [_outcome(batch, image, [e for e in done if e.row.image == image]) for image in range(len(works))]


def _pass(batch: Batch, rows: Sequence[HeadRow]) -> list[HeadResult]:
    """The head over all rows, a bounded number at a time."""
    done: list[HeadResult] = []
    for start in range(0, len(rows), MAX_ROWS):
        done += _head(batch, rows[start : start + MAX_ROWS])
    return done


def _head(batch: Batch, rows: Sequence[HeadRow]) -> list[HeadResult]:
    """One head pass with its gradient."""
    images = [row.image for row in rows]
    each_once = images == list(range(len(batch.works)))
    inputs = batch.parts.enter(batch.crossing, None if each_once else torch.tensor(images, device=batch.images.device))
    if batch.parts.pooled is not None:
        activations = inputs
        with torch.no_grad():
            logits = batch.parts.pooled.logits(inputs[0])
    else:
        with torch.enable_grad():
            logits, *activations = batch.parts.head(*inputs)
    scores = logits.detach().float().cpu().numpy()
    classes = [int(scores[i].argmax()) if row.class_id is None else row.class_id for i, row in enumerate(rows)]
    asked = [batch.works[image] for image in images]
    maps = _maps(batch.parts, logits, activations, classes, asked)
    return [HeadResult(row=row, class_id=classes[i], logits=scores[i], maps=maps[i]) for i, row in enumerate(rows)]


def _maps(
    parts: Split, logits: Tensor, activations: Sequence[Tensor], classes: Sequence[int], works: Sequence[EngineRequest]
) -> list[Maps]:
    """For each row, for each cut layer, the map of its method where that is a batched one."""
    found: list[Maps] = [()] * len(works)
    batched = [row for row, work in enumerate(works) if work.rows and is_batched(work)]
    if not batched:
        return found
    gradients: Sequence[Tensor] = [activation.new_empty(0) for activation in activations]
    if any(METHODS[works[row].method].gradient for row in batched):
        against = [(row, work.versus) for row, work in enumerate(works) if work.versus is not None]
        if parts.pooled is not None:
            gradients = [parts.pooled.gradients(activations[0], classes, against)]
        else:
            gradients = torch.autograd.grad(_score(logits, classes, against), list(activations))
    with torch.no_grad():
        seen = [layout.to_nchw(a.detach()) for layout, a in zip(parts.layouts, activations, strict=True)]
        felt = [layout.to_nchw(g) if g.numel() else g for layout, g in zip(parts.layouts, gradients, strict=True)]
        for kind in dict.fromkeys((works[row].method, works[row].parameters) for row in batched):
            own = [row for row in batched if (works[row].method, works[row].parameters) == kind]
            cam = METHODS[kind[0]].cam
            assert cam is not None
            at = slice(None) if len(own) == len(works) else torch.tensor(own, device=logits.device)
            grids = [
                cam(a[at], g[at] if g.numel() else g, kind[1]).float().cpu().numpy() for a, g in zip(seen, felt, strict=True)
            ]
            for position, row in enumerate(own):
                found[row] = tuple(grid[position] for grid in grids)
    return found


def _score(logits: Tensor, classes: Sequence[int], against: Sequence[tuple[int, int]]) -> Tensor:
    """The sum of what each row explains: its class's logit, less that of the class it is held `against`."""
    index = torch.arange(len(logits), device=logits.device)
    score = logits[index, torch.tensor(classes, device=logits.device)].sum()
    if against:
        at_row, at_class = torch.tensor(against, device=logits.device).unbind(1)
        score = score - logits[at_row, at_class].sum()
    return score


def is_batched(work: EngineRequest) -> bool:
    """Whether one head pass explains it, together with others; views of its own it must be asked about by itself."""
    return METHODS[work.method].cam is not None and not work.parameters.aug_smooth


def _explore(batch: Batch, image: int, explained: HeadResult) -> Maps:
    """The maps of a method that asks the network again."""
    work = batch.works[image]
    method = METHODS[work.method]
    probe = Probe(
        network=batch.network,
        image=batch.images[image : image + 1],
        class_id=explained.class_id,
        versus=work.versus,
        logits=torch.from_numpy(explained.logits).to(batch.images.device),
        cuts=tuple(_cut(batch, image, layer) for layer in work.layers) if method.layered else (),
        parameters=work.parameters,
        method=work.method,
        abandoned=work.abandoned,
        step_aside=batch.step_aside,
    )
    if method.cam is not None:
        maps = augmented(probe, method.cam)
    else:
        assert method.explore is not None
        maps = method.explore(probe)
    return tuple(grid.detach().float().cpu().numpy() for grid in maps)


def _cut(batch: Batch, image: int, layer: str) -> LayerSplit:
    """The network cut at one layer alone, for one image; the batch's own trunk pass where that was its cut."""
    if batch.parts.layers == (layer,):
        row = torch.tensor([image], device=batch.images.device)
        crossing = tuple(how.select(value, row) for how, value in zip(batch.parts.crossings, batch.crossing, strict=True))
        return LayerSplit(batch.parts, crossing, batch.parts.layouts[0])
    parts = batch.split_at((layer,))
    with torch.no_grad():
        return LayerSplit(parts, tuple(parts.trunk(batch.images[image : image + 1])), parts.layouts[0])


def _outcome(batch: Batch, image: int, explained: Sequence[HeadResult]) -> EngineResult | Exception:
    """The rows of one image, put together; only the layers that its work names."""
    work = batch.works[image]
    method = METHODS[work.method]
    logits = explained[0].logits
    broken = InferenceNonFinite("The network's output for this image is not finite; nothing can be said about it.")
    if not np.isfinite(logits).all():
        return broken
    wanted = explained if work.rows else []
    if is_batched(work):
        at = [batch.parts.layers.index(layer) for layer in work.layers]
        maps = tuple(tuple(e.maps[layer] for layer in at) for e in wanted)
    else:
        try:
            maps = tuple(_explore(batch, image, e) for e in wanted)
        except CamserveError as error:
            return error
    if not all(np.isfinite(grid).all() for grids in maps for grid in grids):
        return broken
    trunk = batch.parts.trunk
    layers = work.layers if method.layered else ()
    return EngineResult(
        logits=logits,
        classes=tuple(e.class_id for e in wanted),
        maps=maps,
        layers=layers,
        engine=trunk.engine,
        precision=trunk.precision,
    )
