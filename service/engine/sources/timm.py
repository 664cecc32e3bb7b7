"""Networks of timm, with the weights it names: a tag such as `a1_in1k`, or any repository of a hub at a pinned revision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import timm.data.config
from torch import nn

from service.engine.cards.card import Card
from service.engine.sources.base import SourceNetwork
from service.engine.sources.checkpoint import load_into, read_state
from service.errors import ConfigurationError
from service.vocabulary import Preprocessing

# timm is only partly typed.
_create_model: Any = timm.create_model
_pretrained_config: Any = timm.get_pretrained_cfg
_data_config: Any = timm.data.config.resolve_data_config


def from_architecture(card: Card) -> SourceNetwork:
    """See `Source`."""
    return _built(card, _create_model(_known(card), pretrained=False, **card.architecture.args))


def from_file(card: Card, path: Path) -> SourceNetwork:
    """See `Source`."""
    built = from_architecture(card)
    load_into(card, built.module, read_state(card, path))
    return built


def from_hub(card: Card) -> SourceNetwork:
    """See `Source`."""
    name, weights = _known(card), card.weights
    # timm leaves a classifier of another size than the one it knows of at random, without a word.
    overlay: dict[str, Any] = {key: value for key, value in card.architecture.args.items() if key == "num_classes"}
    if weights.hub is not None:
        overlay |= {"hf_hub_id": f"{weights.hub}@{weights.revision}", "url": "", "custom_load": False}
    full_name = f"{name}.{weights.name}" if weights.name else name
    return _built(card, _create_model(full_name, pretrained=True, pretrained_cfg_overlay=overlay, **card.architecture.args))


def _known(card: Card) -> str:
    name = card.architecture.name
    if not timm.is_model(name):
        raise ConfigurationError(f"card {card.name}: architecture.name: timm has no network {name!r}")
    if card.weights.name and _pretrained_config(f"{name}.{card.weights.name}") is None:
        raise ConfigurationError(f"card {card.name}: weights.name: timm has no weights {card.weights.name!r} of {name}")
    return name


def _built(card: Card, module: nn.Module) -> SourceNetwork:
    name = f"{card.architecture.name}.{card.weights.name}" if card.weights.name else card.architecture.name
    config: dict[str, Any] = _pretrained_config(name).to_dict()
    asked = {key: value for key, value in card.architecture.args.items() if key == "img_size"}
    data: dict[str, Any] = _data_config(asked, pretrained_cfg=config)
    _, height, width = data["input_size"]
    mean, std = tuple(data["mean"]), tuple(data["std"])
    if card.architecture.args.get("in_chans") == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    resize = int(min(height, width) / data["crop_pct"])
    return SourceNetwork(
        module,
        Preprocessing(height=height, width=width, resize=resize, interpolation=data["interpolation"], mean=mean, std=std),
    )
