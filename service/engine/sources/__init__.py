"""From a card to a network in memory: one small loader per source library, imported when a card asks for it.

Each loader also says how its library preprocesses images. Knows which sources there are and where the weights come from; how
a library builds a network is the loader's own business.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Final, cast

import torch
from torch import Tensor, nn

from service.engine.cards.card import Card
from service.engine.device import BUILD_LOCK
from service.engine.sources.base import Source, SourceNetwork, returning
from service.engine.sources.checkpoint import checkpoint, state_digest
from service.errors import ConfigurationError
from service.vocabulary import Preprocessing

OPTIONAL: Final = {"transformers", "keras"}  # installed as extras of the same name


@dataclass(frozen=True, slots=True)
class LoadedNetwork:
    """A network on the CPU in eval mode with frozen parameters, taking float32 ``[N, C, height, width]``.

    C is the length of the preprocessing's mean. `digest` is "sha256:..." of the checkpoint, or of all parameters and buffers
    where there is no file.
    """

    module: nn.Module
    preprocessing: Preprocessing
    digest: str


def load(card: Card, *, random_weights: bool = False) -> LoadedNetwork:
    """Builds the card's network and fills in its weights.

    Args:
        card: what to load.
        random_weights: give hub weights up for seeded random ones.

    Raises:
        ConfigurationError: the architecture is unknown, a library is missing, or the weights are missing, changed or do not
            fit.
    """
    path, digest = checkpoint(card) if card.weights.file is not None else (None, None)
    try:
        with BUILD_LOCK:
            source = _source(card)
            if path is not None:
                built = source.from_file(card, path)
            elif card.weights.from_hub and not random_weights:
                built = _from_hub(source, card)
            else:
                torch.manual_seed(card.weights.random or 0)
                built = source.from_architecture(card)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"card {card.name}: architecture: {card.architecture.source} cannot build {card.architecture.name!r} like this: "
            f"{_first_line(error)}"
        ) from error
    for module in built.module.modules():
        module.training = False  # what eval() does, which an exported program refuses
    module = built.module.requires_grad_(requires_grad=False)
    if card.labels.activation == "sigmoid":
        module = returning(module, _both_sides)
    return LoadedNetwork(module, _overridden(card, built.preprocessing), digest or state_digest(module))


def _source(card: Card) -> Source:
    name = card.architecture.source
    try:
        return cast("Source", importlib.import_module(f"{__name__}.{name}"))
    except ModuleNotFoundError as error:
        if name not in OPTIONAL:
            raise
        raise ConfigurationError(
            f"card {card.name}: architecture.source: {name} is not installed; pip install 'camserve[{name}]'"
        ) from error


def _from_hub(source: Source, card: Card) -> SourceNetwork:
    try:
        return source.from_hub(card)
    except (OSError, RuntimeError) as error:
        raise ConfigurationError(
            f"card {card.name}: weights: {card.weights} cannot be fetched: {_first_line(error)}; connect once to fill "
            "the cache, or set CAMSERVE_RANDOM_WEIGHTS=1 to try the service without them"
        ) from error


def _both_sides(logits: Tensor) -> Tensor:
    """One logit z of a binary network, ``[N, 1]``, as those of its two classes, (-z, z): sigmoid(-z) is 1 - sigmoid(z)."""
    return torch.cat([-logits, logits], dim=1) if logits.shape[1] == 1 else logits


def _overridden(card: Card, source: Preprocessing) -> Preprocessing:
    """The source's preprocessing with what the card says instead. A new crop alone keeps the source's crop ratio."""
    own = card.preprocess
    crop = own.crop if own.crop is not None else (source.height, source.width)
    height, width = (crop, crop) if isinstance(crop, int) else crop
    short_side = source.resize if source.resize is not None else min(source.height, source.width)
    return replace(
        source,
        height=height,
        width=width,
        resize=own.resize or round(short_side * min(height, width) / min(source.height, source.width)),
        interpolation=own.interpolation or source.interpolation,
        mean=own.mean or source.mean,
        std=own.std or source.std,
        fit=own.fit or source.fit,
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:400]
