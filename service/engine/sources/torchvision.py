"""Networks of torchvision, with the weights of its own hub: each file's name contains its digest, which torchvision checks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from service.engine.cards.card import Card
from service.engine.cards.labels import LabelSet
from service.engine.sources.base import SourceNetwork
from service.engine.sources.checkpoint import load_into, read_state
from service.errors import ConfigurationError
from service.vocabulary import Preprocessing


def from_architecture(card: Card) -> SourceNetwork:
    """See `Source`."""
    return _source_network(card, _build(card, None))


def from_file(card: Card, path: Path) -> SourceNetwork:
    """See `Source`."""
    network = from_architecture(card)
    load_into(card, network.module, read_state(card, path))
    return network


def from_hub(card: Card) -> SourceNetwork:
    """See `Source`; the name of the card's weights is a member of the network's weights enum."""
    weights = _weights(card)
    return replace(_source_network(card, _build(card, weights)), weights_name=weights.name)


def _build(card: Card, weights: Any) -> nn.Module:
    module: nn.Module = torchvision.models.get_model(_check_name(card), weights=weights, **card.architecture.args)
    return module


def _check_name(card: Card) -> str:
    """The card's name of a network, which torchvision must have."""
    name = card.architecture.name
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ConfigurationError(f"card {card.name}: architecture.name: torchvision has no classifier {name!r}")
    return name


def _weights(card: Card) -> Any:
    """The member of the weights enum that the card names, or the network's default."""
    name = _check_name(card)
    enum: Any = torchvision.models.get_model_weights(name)
    member = enum.DEFAULT.name if card.weights.name in {None, "default"} else card.weights.name
    if member not in enum.__members__:
        raise ConfigurationError(f"card {card.name}: weights.name: {name} has {', '.join(enum.__members__)}, not {member!r}")
    return enum[member]


def _source_network(card: Card, module: nn.Module) -> SourceNetwork:
    weights = _weights(card)
    return SourceNetwork(
        module=module, preprocessing=_preprocessing(weights), labels=LabelSet(tuple(weights.meta["categories"]))
    )


def _preprocessing(weights: Any) -> Preprocessing:
    transforms: Any = weights.transforms()
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    return Preprocessing(
        height=crop,
        width=crop,
        resize=resize,
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )
