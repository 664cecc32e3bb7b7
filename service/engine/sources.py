"""From a card to a network in memory: one loader per source library, each also saying how the source prepares pictures."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import timm.data.config
import torch
import torchvision
from torch import nn

from service.engine.card import Card, Interpolation, Triple
from service.engine.weights import load_into, read_checkpoint, state_digest
from service.errors import ConfigurationError

# Random weights draw from torch's one global generator, which is seeded first: two threads must not interleave.
_seeding = threading.Lock()


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """`resize` is the short side before the centre crop of `height` x `width`; mean and std are for values 0..1."""

    height: int
    width: int
    resize: int
    interpolation: Interpolation
    mean: Triple
    std: Triple


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network on the CPU in eval mode with frozen parameters, taking float32 ``[N, 3, height, width]``."""

    module: nn.Module
    preprocessing: Preprocessing
    digest: str


def load(card: Card, *, random_weights: bool = False) -> Loaded:
    """Builds the card's network and fills in its weights.

    Args:
        card: what to load.
        random_weights: give hub weights up for seeded random ones.

    Raises:
        ConfigurationError: the architecture is unknown, or the weights are missing, changed or do not fit.
    """
    build, preprocessing = _SOURCES[card.architecture.source](card)
    weights = card.weights
    if weights.file is not None:
        state, digest = read_checkpoint(card)
        module = build(None)
        load_into(card, module, state)
    elif weights.name is not None and not random_weights:
        try:
            module = build(weights.name)
        except (OSError, RuntimeError) as error:
            raise ConfigurationError(
                f"card {card.name}: weights.name: the hub's weights {weights.name!r} could not be had: {error}; connect once "
                "to fill the cache, or set CAMSERVE_RANDOM_WEIGHTS=1 to try the service without them"
            ) from error
        digest = state_digest(module)
    else:
        with _seeding:
            torch.manual_seed(weights.random or 0)
            module = build(None)
        digest = state_digest(module)
    return Loaded(module.eval().requires_grad_(requires_grad=False), _overridden(card, preprocessing), digest)


# timm is only partly typed.
_timm_create_model: Any = timm.create_model
_timm_config: Any = timm.get_pretrained_cfg
_timm_data_config: Any = timm.data.config.resolve_data_config

Build = Callable[[str | None], nn.Module]


def _torchvision(card: Card) -> tuple[Build, Preprocessing]:
    name = card.architecture.name
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ConfigurationError(f"card {card.name}: architecture.name: torchvision has no classifier {name!r}")
    offered = torchvision.models.get_model_weights(name)
    chosen = card.weights.name or offered.DEFAULT.name
    if chosen not in offered.__members__:
        raise ConfigurationError(f"card {card.name}: weights.name: {name} has {', '.join(offered.__members__)}, not {chosen!r}")
    transforms: Any = offered[chosen].transforms()
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    mode: Any = transforms.interpolation.value
    preprocessing = Preprocessing(crop, crop, resize, mode, tuple(transforms.mean), tuple(transforms.std))

    def build(weights: str | None) -> nn.Module:
        chosen_weights = offered[weights] if weights else None
        module: nn.Module = torchvision.models.get_model(name, weights=chosen_weights, **card.architecture.args)
        return module

    return build, preprocessing


def _timm(card: Card) -> tuple[Build, Preprocessing]:
    name = card.architecture.name
    if not timm.is_model(name):
        raise ConfigurationError(f"card {card.name}: architecture.name: timm has no network {name!r}")
    config = _timm_config(f"{name}.{card.weights.name}" if card.weights.name else name)
    if config is None:
        raise ConfigurationError(f"card {card.name}: weights.name: timm has no weights {card.weights.name!r} of {name}")
    data: dict[str, Any] = _timm_data_config({}, pretrained_cfg=config.to_dict())
    _, height, width = data["input_size"]
    resize = int(min(height, width) / data["crop_pct"])
    preprocessing = Preprocessing(height, width, resize, data["interpolation"], tuple(data["mean"]), tuple(data["std"]))

    def build(weights: str | None) -> nn.Module:
        full_name = f"{name}.{weights}" if weights else name
        module: nn.Module = _timm_create_model(full_name, pretrained=weights is not None, **card.architecture.args)
        return module

    return build, preprocessing


_SOURCES: dict[str, Callable[[Card], tuple[Build, Preprocessing]]] = {"torchvision": _torchvision, "timm": _timm}


def _overridden(card: Card, source: Preprocessing) -> Preprocessing:
    """The source's preprocessing with what the card says instead. A new crop alone keeps the source's crop ratio."""
    own = card.preprocess
    crop = own.crop if own.crop is not None else (source.height, source.width)
    height, width = (crop, crop) if isinstance(crop, int) else crop
    resize = own.resize or round(source.resize * min(height, width) / min(source.height, source.width))
    return Preprocessing(
        height, width, resize, own.interpolation or source.interpolation, own.mean or source.mean, own.std or source.std
    )
