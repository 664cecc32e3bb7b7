"""One batch: the request for each image, and the computation from the trunk's output to logits and signed maps.

Each class of each image is a row of the head, which runs under autograd once for all rows; the gradient is of the sum of the
rows' scores, and rows are independent in eval mode, so every row gets its own gradient. A `QueryMethod` runs the network again
after that, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.graph.runner import HEAD_ROWS, Checkpoint, ChunkedRunner
from service.engine.graph.split import Split
from service.engine.graph.split_cache import SizedNetwork
from service.engine.methods import METHODS
from service.engine.methods.method import BatchedMethod, LayerSplit, Method, Query, QueryMethod, Target
from service.engine.types import EngineResult, MethodParameters
from service.errors import CamserveError, InferenceNonFinite

GRADCAM: Final = METHODS["gradcam"]

Maps = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One image for the network.

    Attributes:
        pixels: uint8 ``[h, w, 3]`` RGB, already at the network's input size.
        classes: class ids to explain, in this order.
        best: where `classes` is empty, how many of the best classes to explain; 0 only predicts.
        versus: class id whose logit is subtracted from the score, or None.
        method: computes the maps.
        parameters: all parameters of the method, as `Network.resolve_method` gives them.
        layers: module paths to explain at, or () for the card's layers.
    """

    pixels: NDArray[np.uint8]
    classes: tuple[int, ...] = ()
    best: int = 0
    versus: int | None = None
    method: Method = GRADCAM
    parameters: MethodParameters = field(default=GRADCAM.defaults)
    layers: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """The number of explanations, each of which is a row of the head."""
        return len(self.classes) or self.best

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.pixels.shape[0], self.pixels.shape[1]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images of one size, with the trunk's output for them.

    Attributes:
        network: the network for images of this size.
        images: float ``[N, C, h, w]``, normalised.
        split: the network, split at least at every layer that a request names.
        crossing: the trunk's output for the images.
        requests: one per image, each with at least one layer.
        checkpoints: one per image, see `ChunkedRunner`.
    """

    network: SizedNetwork
    images: Tensor
    split: Split
    crossing: tuple[Tensor, ...]
    requests: Sequence[EngineRequest]
    checkpoints: Sequence[Checkpoint]


@dataclass(frozen=True, slots=True)
class HeadRow:
    """One class of one image of the batch; `class_id` None is the best class."""

    image: int
    class_id: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadResult:
    """The head's result for a row: logits float32 ``[classes]`` and, of a `BatchedMethod`, one map per layer of the split."""

    row: HeadRow
    class_id: int
    logits: NDArray[np.float32]
    maps: Maps


def explain_batch(batch: Batch) -> list[EngineResult | Exception]:
    """Explains a batch.

    Returns:
        One result per request, in order; in place of the result of a request that failed, its error: `InferenceNonFinite`
        where logits or maps are not finite.
    """
    requests = batch.requests
    results = _run_head(
        batch, [HeadRow(image, c) for image, request in enumerate(requests) for c in (request.classes or (None,))]
    )
    # A request for the k best classes: the first pass explains the best class, and its logits rank the others.
    first = {result.row.image: result for result in reversed(results)}
    results += _run_head(
        batch,
        [
            HeadRow(image, int(class_id))
            for image, request in enumerate(requests)
            if not request.classes and request.best > 1
            for class_id in np.argsort(-first[image].logits, kind="stable")[: request.best]
            if class_id != first[image].class_id
        ],
    )
    return [_image_result(batch, image, [r for r in results if r.row.image == image]) for image in range(len(requests))]


def _run_head(batch: Batch, rows: Sequence[HeadRow]) -> list[HeadResult]:
    """Runs the head over all rows, a bounded number at a time."""
    results: list[HeadResult] = []
    for start in range(0, len(rows), HEAD_ROWS):
        results += _head_pass(batch, rows[start : start + HEAD_ROWS])
    return results


def _head_pass(batch: Batch, rows: Sequence[HeadRow]) -> list[HeadResult]:
    """Runs the head once, with its gradient."""
    images = [row.image for row in rows]
    one_row_per_image = images == list(range(len(batch.requests)))
    inputs = batch.split.enter(batch.crossing, None if one_row_per_image else torch.tensor(images, device=batch.images.device))
    if batch.split.pooled is not None:
        activations = inputs
        with torch.no_grad():
            logits = batch.split.pooled.logits(inputs[0])
    else:
        with torch.enable_grad():
            logits, *activations = batch.split.head(*inputs)
    scores = logits.detach().float().cpu().numpy()
    classes = [int(scores[i].argmax()) if row.class_id is None else row.class_id for i, row in enumerate(rows)]
    maps = _batched_maps(batch.split, logits, activations, classes, [batch.requests[image] for image in images])
    return [HeadResult(row=row, class_id=classes[i], logits=scores[i], maps=maps[i]) for i, row in enumerate(rows)]


def _batched_maps(
    split: Split, logits: Tensor, activations: Sequence[Tensor], classes: Sequence[int], requests: Sequence[EngineRequest]
) -> list[Maps]:
    """For each row, for each layer of the split, the map of its method where that is a `BatchedMethod`."""
    maps: list[Maps] = [()] * len(requests)
    # Rows of one method and the same parameters are computed together.
    groups: dict[tuple[BatchedMethod, MethodParameters], list[int]] = {}
    for row, request in enumerate(requests):
        if request.rows and isinstance(request.method, BatchedMethod):
            groups.setdefault((request.method, request.parameters), []).append(row)
    if not groups:
        return maps
    gradients: Sequence[Tensor] = [activation.new_empty(0) for activation in activations]
    if any(method.uses_gradients for method, _ in groups):
        versus = [(row, request.versus) for row, request in enumerate(requests) if request.versus is not None]
        if split.pooled is not None:
            gradients = [split.pooled.gradients(activations[0], classes, versus)]
        else:
            gradients = torch.autograd.grad(_score(logits, classes, versus), list(activations))
    with torch.no_grad():
        activations_nchw = [layout.to_nchw(a.detach()) for layout, a in zip(split.layouts, activations, strict=True)]
        gradients_nchw = [layout.to_nchw(g) if g.numel() else g for layout, g in zip(split.layouts, gradients, strict=True)]
        for (method, parameters), rows in groups.items():
            index = slice(None) if len(rows) == len(requests) else torch.tensor(rows, device=logits.device)
            grids = [
                method.cam(a[index], g[index] if g.numel() else g, parameters).float().cpu().numpy()
                for a, g in zip(activations_nchw, gradients_nchw, strict=True)
            ]
            for position, row in enumerate(rows):
                maps[row] = tuple(grid[position] for grid in grids)
    return maps


def _score(logits: Tensor, classes: Sequence[int], versus: Sequence[tuple[int, int]]) -> Tensor:
    """The sum of the rows' scores: the logit of each row's class, less the logits of the (row, class) pairs in `versus`."""
    rows = torch.arange(len(logits), device=logits.device)
    score = logits[rows, torch.tensor(classes, device=logits.device)].sum()
    if versus:
        versus_rows, versus_classes = torch.tensor(versus, device=logits.device).unbind(1)
        score = score - logits[versus_rows, versus_classes].sum()
    return score


def _query_maps(batch: Batch, result: HeadResult, method: QueryMethod) -> Maps:
    """The maps of a `QueryMethod`, which runs the network again."""
    image = result.row.image
    request = batch.requests[image]
    query = Query(
        network=batch.network,
        runner=ChunkedRunner(batch.network.graph, batch.checkpoints[image], method.name),
        image=batch.images[image : image + 1],
        target=Target(result.class_id, request.versus),
        logits=torch.from_numpy(result.logits).to(batch.images.device),
        layers=tuple(_layer_split(batch, image, layer) for layer in request.layers) if method.layered else (),
        parameters=request.parameters,
    )
    return tuple(grid.detach().float().cpu().numpy() for grid in method.explain(query))


def _layer_split(batch: Batch, image: int, layer: str) -> LayerSplit:
    """The network split at one layer alone, for one image; where the batch has that split, its trunk's output is reused."""
    if batch.split.layers == (layer,):
        row = torch.tensor([image], device=batch.images.device)
        values = tuple(
            crossing.select(value, row) for crossing, value in zip(batch.split.crossings, batch.crossing, strict=True)
        )
        return LayerSplit(batch.split, values, batch.split.layouts[0])
    split = batch.network.split((layer,))
    with torch.no_grad():
        return LayerSplit(split, tuple(split.trunk(batch.images[image : image + 1])), split.layouts[0])


def _image_result(batch: Batch, image: int, results: Sequence[HeadResult]) -> EngineResult | Exception:
    """The result of one image from its rows, with the layers that its request names."""
    request = batch.requests[image]
    method = request.method
    logits = results[0].logits
    if not np.isfinite(logits).all():
        return _non_finite()
    explanations = results if request.rows else []
    if isinstance(method, QueryMethod):
        try:
            maps = tuple(_query_maps(batch, result, method) for result in explanations)
        except CamserveError as error:
            return error
    else:
        indices = [batch.split.layers.index(layer) for layer in request.layers]
        maps = tuple(tuple(result.maps[index] for index in indices) for result in explanations)
    if not all(np.isfinite(grid).all() for grids in maps for grid in grids):
        return _non_finite()
    return EngineResult(
        logits=logits,
        classes=tuple(result.class_id for result in explanations),
        maps=maps,
        layers=request.layers if method.layered else (),
        engine=batch.split.trunk.engine,
        precision=batch.split.trunk.precision,
    )


def _non_finite() -> InferenceNonFinite:
    return InferenceNonFinite("The network's output for this image is not finite; no result can be computed from it.")
