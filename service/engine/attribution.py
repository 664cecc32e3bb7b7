"""One batch through the head: from the trunk's activations to logits and signed maps, picture by picture, class by class.

Each class of each picture is a row of the head, which runs under autograd once for all rows; the gradient is of the sum of the
rows' scores, and rows are independent in eval mode, so every row gets its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.methods import METHODS
from service.engine.split import Split
from service.engine.work import Outcome, Work
from service.errors import InferenceNonFinite

MAX_ROWS = 32  # of one head pass: bounds memory when many classes are asked at an early, large layer


@dataclass(frozen=True, slots=True)
class Row:
    """One class of one picture; `class_id` None stands for the best."""

    picture: int
    class_id: int | None


@dataclass(frozen=True, slots=True)
class Explained:
    """What the head said of a row: logits float32 ``[classes]`` and, where asked, a map ``[h, w]`` for each cut layer."""

    row: Row
    class_id: int
    logits: NDArray[np.float32]
    maps: tuple[NDArray[np.float32], ...]


def explain_pictures(parts: Split, crossing: Sequence[Tensor], works: Sequence[Work]) -> list[Outcome | Exception]:
    """Explains a batch whose trunk has run.

    Args:
        parts: the network, cut at least at every layer that a work names.
        crossing: what the trunk gave for the batch.
        works: one per picture, each with its `layers` named.

    Returns:
        One outcome per work, in order; `InferenceNonFinite` in place of one whose numbers are not finite.
    """
    rows = [Row(picture, c) for picture, work in enumerate(works) for c in (work.classes or (None,))]
    done = _pass(parts, crossing, works, rows)
    # Of the k best classes asked for, the first pass explained the best and told which the others are.
    first = {explained.row.picture: explained for explained in reversed(done)}
    others = [
        Row(picture, int(class_id))
        for picture, work in enumerate(works)
        if not work.classes and work.best > 1
        for class_id in np.argsort(-first[picture].logits, kind="stable")[: work.best]
        if class_id != first[picture].class_id
    ]
    done += _pass(parts, crossing, works, others)
    return [_outcome(parts, work, [e for e in done if e.row.picture == picture]) for picture, work in enumerate(works)]


def _pass(parts: Split, crossing: Sequence[Tensor], works: Sequence[Work], rows: Sequence[Row]) -> list[Explained]:
    """The head over all rows, a bounded number at a time."""
    done: list[Explained] = []
    for start in range(0, len(rows), MAX_ROWS):
        done += _head(parts, crossing, works, rows[start : start + MAX_ROWS])
    return done


def _head(parts: Split, crossing: Sequence[Tensor], works: Sequence[Work], rows: Sequence[Row]) -> list[Explained]:
    """One head pass with its gradient."""
    pictures = [row.picture for row in rows]
    device = crossing[0].device
    each_once = pictures == list(range(len(works)))
    inputs = parts.enter(crossing, None if each_once else torch.tensor(pictures, device=device))
    with torch.enable_grad():
        logits, *activations = parts.head(*inputs)
    scores = logits.detach().float().cpu().numpy()
    classes = [int(scores[i].argmax()) if row.class_id is None else row.class_id for i, row in enumerate(rows)]
    asked = [works[row.picture] for row in rows]
    maps = _maps(logits, activations, classes, asked) if any(work.rows for work in asked) else [()] * len(rows)
    return [Explained(row, classes[i], scores[i], maps[i]) for i, row in enumerate(rows)]


def _maps(
    logits: Tensor, activations: Sequence[Tensor], classes: Sequence[int], works: Sequence[Work]
) -> list[tuple[NDArray[np.float32], ...]]:
    """For each row, for each cut layer, its method's map."""
    index = torch.arange(len(works), device=logits.device)
    score = logits[index, torch.tensor(classes, device=logits.device)].sum()
    against = [(row, work.versus) for row, work in enumerate(works) if work.versus is not None]
    if against:
        at_row, at_class = torch.tensor(against, device=logits.device).unbind(1)
        score = score - logits[at_row, at_class].sum()
    gradients = torch.autograd.grad(score, list(activations))
    found: list[tuple[NDArray[np.float32], ...]] = [()] * len(works)
    for method in dict.fromkeys(work.method for work in works if work.rows):
        own = [row for row, work in enumerate(works) if work.method == method]
        at = slice(None) if len(own) == len(works) else torch.tensor(own, device=logits.device)
        grids = [
            METHODS[method].run(a.detach()[at], g[at]).float().cpu().numpy()
            for a, g in zip(activations, gradients, strict=True)
        ]
        for position, row in enumerate(own):
            found[row] = tuple(grid[position] for grid in grids)
    return found


def _outcome(parts: Split, work: Work, explained: Sequence[Explained]) -> Outcome | Exception:
    """The rows of one picture, put together; only the layers that its work names."""
    wanted = explained if work.rows else []
    at = [parts.layers.index(layer) for layer in work.layers]
    maps = tuple(tuple(e.maps[layer] for layer in at) for e in wanted)
    logits = explained[0].logits
    if not np.isfinite(logits).all() or not all(np.isfinite(grid).all() for grids in maps for grid in grids):
        return InferenceNonFinite("The network's output for this picture is not finite; nothing can be said about it.")
    return Outcome(logits, tuple(e.class_id for e in wanted), maps, work.layers)
