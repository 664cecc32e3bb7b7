"""Networks of torchvision, with the weights of its own hub: each file's name carries its digest, which torchvision checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from service.engine.cards.card import Card
from service.engine.sources.base import SourceNetwork
from service.engine.sources.checkpoint import load_into, read_state
from service.errors import ConfigurationError
from service.vocabulary import Preprocessing


def from_architecture(card: Card) -> SourceNetwork:
    """See `Source`."""
    return SourceNetwork(_build(card, None), _preprocessing(card))


def from_file(card: Card, path: Path) -> SourceNetwork:
    """See `Source`."""
    built = from_architecture(card)
    load_into(card, built.module, read_state(card, path))
    return built


def from_hub(card: Card) -> SourceNetwork:
    """See `Source`; the card's weights are the name of a member of the network's weights enum."""
    return SourceNetwork(_build(card, _weights(card)), _preprocessing(card))


def _build(card: Card, weights: Any) -> nn.Module:
    module: nn.Module = torchvision.models.get_model(_known(card), weights=weights, **card.architecture.args)
    return module


def _known(card: Card) -> str:
    name = card.architecture.name
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ConfigurationError(f"card {card.name}: architecture.name: torchvision has no classifier {name!r}")
    return name


def _weights(card: Card) -> Any:
    """The member that the card names, or the network's default."""
    name = _known(card)
    offered: Any = torchvision.models.get_model_weights(name)
    chosen = card.weights.name or offered.DEFAULT.name
    if chosen not in offered.__members__:
        raise ConfigurationError(f"card {card.name}: weights.name: {name} has {', '.join(offered.__members__)}, not {chosen!r}")
    return offered[chosen]


def _preprocessing(card: Card) -> Preprocessing:
    transforms: Any = _weights(card).transforms()
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    return Preprocessing(
        height=crop,
        width=crop,
        resize=resize,
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )
