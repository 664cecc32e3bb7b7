"""The choice of the layer to explain at, by evidence: photographs are explained once, and a layer whose maps are blank is left.

A map is blank where no cell has a positive value: the class's gradient does not reach the layer, or speaks against the class
everywhere. A layer that is blank for one photograph may be right for another, so it is left only where all of them are blank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from service.engine.disk_cache import Entries
from service.engine.types import EngineResult

NO_GRADIENT: Final = "the gradient of the best class does not reach its cells: the Grad-CAM map of every photograph is zero"
NOT_POSITIVE: Final = "the Grad-CAM map of the best class has no positive cell, for any photograph"
CONSTANT: Final = "the network's logits are the same for every photograph"
NOT_FINITE: Final = "the network's output is not finite, for any photograph"

# Explains the best class of each photograph in turn, at all of these layers at once.
ExplainAt = Callable[[tuple[str, ...]], Iterable[EngineResult]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChoice:
    """The layers at which a network is explained where a request names none.

    Attributes:
        chosen: their module paths.
        reason: why these.
        rejected: layers that were tried before, each with the reason why it was not taken.
        alternatives: further layers that carry evidence or have not been tried, the best first.
        warning: why maps at the chosen layers show nothing; None where they carry evidence.
    """

    chosen: tuple[str, ...]
    reason: str
    rejected: tuple[tuple[str, str], ...] = ()
    alternatives: tuple[str, ...] = ()
    warning: str | None = None


def choose_layer(name: str, candidates: Sequence[str], explain: ExplainAt) -> LayerChoice:
    """The first candidate that carries evidence; the first of all, with a warning, where none does.

    A candidate that carries evidence for the first photograph costs one pass; all others together cost as many passes as there
    are photographs.

    Args:
        name: the model's name, for the log.
        candidates: module paths, the best first; at least one.
        explain: explains photographs; a photograph is only explained when its result is asked for.
    """
    first, *others = candidates
    reason = find_blank(1, explain((first,)))[0]
    if reason is None:
        return LayerChoice(chosen=(first,), reason="the deepest grid that carries evidence", alternatives=tuple(others))
    reasons: list[str | None] = [reason] * len(candidates)
    if others and reason not in {CONSTANT, NOT_FINITE}:
        reasons[1:] = find_blank(len(others), explain(tuple(others)))
    chosen = next((index for index, reason in enumerate(reasons) if reason is None), None)
    if chosen is None:
        log.warning("default_layer", model=name, layer=first, evidence=False, reasons=[reason])
        return LayerChoice(
            chosen=(first,), reason="no layer carries evidence; this is the deepest", alternatives=tuple(others), warning=reason
        )
    rejected = tuple((layer, reason or "") for layer, reason in zip(candidates[:chosen], reasons, strict=False))
    alternatives = tuple(layer for layer, reason in zip(candidates, reasons, strict=True) if reason is None)[1:]
    layer = candidates[chosen]
    log.info("default_layer", model=name, layer=layer, rejected=[path for path, _ in rejected], reasons=reasons[:chosen])
    return LayerChoice(
        chosen=(layer,),
        reason="the deepest grid that carries evidence",
        rejected=rejected,
        alternatives=alternatives,
    )


def check_card_layers(
    name: str, layers: Sequence[str], candidates: Sequence[str], results: Iterable[EngineResult]
) -> LayerChoice:
    """The choice of a card that names its layers, with a warning where one of them carries no evidence.

    Args:
        name: the model's name, for the log.
        layers: the card's layers.
        candidates: layers that could have been chosen instead.
        results: explanations of the best class of photographs at these layers, read only until each layer has shown evidence.
    """
    blank = {
        layer: reason for layer, reason in zip(layers, find_blank(len(layers), results), strict=True) if reason is not None
    }
    for layer, reason in blank.items():
        log.warning("default_layer", model=name, layer=layer, evidence=False, reasons=[reason])
    return LayerChoice(
        chosen=tuple(layers),
        reason="the card names it",
        alternatives=tuple(layer for layer in candidates if layer not in layers),
        warning="; ".join(f"{layer}: {reason}" for layer, reason in blank.items()) or None,
    )


def read_layer_choice(entries: Entries, layers: Sequence[str]) -> LayerChoice | None:
    """The choice of an earlier start; None where there is none.

    Args:
        entries: what is kept of the network on disk.
        layers: those that the card names.
    """
    content = entries.extended(card_layers=list(layers)).read("layer_choice")
    try:
        return TypeAdapter(LayerChoice).validate_json(content) if content is not None else None
    except ValidationError as error:  # whatever is wrong with it, the choice is made anew
        log.warning("layer_choice_not_read", reason=str(error.errors()[0]["msg"]))
        return None


def write_layer_choice(entries: Entries, layers: Sequence[str], choice: LayerChoice) -> None:
    """Keeps a choice for the next start; see `read_layer_choice`."""
    entries.extended(card_layers=list(layers)).write("layer_choice", TypeAdapter(LayerChoice).dump_json(choice))


def find_blank(layers: int, results: Iterable[EngineResult]) -> list[str | None]:
    """For each layer of the results, why its maps are blank for all photographs; None for a layer that carries evidence.

    Stops at the photograph by which every layer has shown evidence, and where two photographs have the same logits.
    """
    positive = nonzero = np.zeros(layers, bool)
    logits: NDArray[np.float32] | None = None
    for result in results:
        if logits is not None and np.array_equal(logits, result.logits):
            return [None if has_evidence else CONSTANT for has_evidence in positive]
        logits = result.logits
        positive = positive | [bool((grid > 0).any()) for grid in result.maps[0]]
        nonzero = nonzero | [bool(grid.any()) for grid in result.maps[0]]
        if positive.all():
            break
    if logits is None:
        return [NOT_FINITE] * layers
    return [
        None if has_evidence else NOT_POSITIVE if is_nonzero else NO_GRADIENT
        for has_evidence, is_nonzero in zip(positive, nonzero, strict=True)
    ]
