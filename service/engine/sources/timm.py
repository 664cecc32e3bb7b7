"""Networks of timm, with weights by timm's tag, such as `a1_in1k`, or of any repository of a hub at a pinned revision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import timm
import timm.data.config
from torch import nn

from service.engine.cards.card import Card
from service.engine.sources.base import SourceNetwork
from service.engine.sources.checkpoint import load_into, read_state
from service.errors import ConfigurationError
from service.vocabulary import Fit, Preprocessing

FITS: Final[dict[str, Fit]] = {"center": "crop", "squash": "squash", "border": "pad"}  # of timm's crop modes
# timm is only partly typed.
_create_model: Any = timm.create_model
_pretrained_config: Any = timm.get_pretrained_cfg
_data_config: Any = timm.data.config.resolve_data_config


def from_architecture(card: Card) -> SourceNetwork:
    """See `Source`."""
    return _source_network(card, _create_model(_check_name(card), pretrained=False, **card.architecture.args))


def from_file(card: Card, path: Path) -> SourceNetwork:
    """See `Source`."""
    network = from_architecture(card)
    load_into(card, network.module, read_state(card, path))
    return network


def from_hub(card: Card) -> SourceNetwork:
    """See `Source`."""
    name, weights = _check_name(card), card.weights
    # Without the number of classes in the configuration, timm would silently leave a classifier of another size random.
    overlay: dict[str, Any] = {key: value for key, value in card.architecture.args.items() if key == "num_classes"}
    if weights.hub is not None:
        overlay |= {"hf_hub_id": f"{weights.hub}@{weights.revision}", "url": "", "custom_load": False}
    full_name = f"{name}.{weights.name}" if weights.name else name
    module = _create_model(full_name, pretrained=True, pretrained_cfg_overlay=overlay, **card.architecture.args)
    return _source_network(card, module)


def _check_name(card: Card) -> str:
    """The card's name of a network, which timm must have."""
    name = card.architecture.name
    if not timm.is_model(name):
        raise ConfigurationError(f"card {card.name}: architecture.name: timm has no network {name!r}")
    if card.weights.name and _pretrained_config(f"{name}.{card.weights.name}") is None:
        raise ConfigurationError(f"card {card.name}: weights.name: timm has no weights {card.weights.name!r} of {name}")
    return name


def pretrained_config(name: str) -> dict[str, Any] | None:
    """What timm knows of a network's weights (input size, mean, std, ...); None where it has no such network."""
    config = _pretrained_config(name)
    return None if config is None else config.to_dict()


def timm_preprocessing(data: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that is equal to the evaluation transform of a data configuration of timm.

    timm's crop mode `squash` resizes each side to 1 / crop_pct of the input's and crops; `border` pads the whole image with
    the mean colour.

    Raises:
        ValueError: another crop mode, or a border around an image that is then cropped; none of timm's own weights has these.
    """
    _, height, width = data["input_size"]
    mode, crop = data.get("crop_mode") or "center", data["crop_pct"]
    if mode not in FITS or (mode == "border" and crop != 1):
        raise ValueError(f"no fit prepares images as timm does with crop_mode {mode!r} and crop_pct {crop}")
    return Preprocessing(
        height=height,
        width=width,
        resize=int(min(height, width) / data["crop_pct"]),
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        fit=FITS[mode],
        squash_crop=crop if mode == "squash" else 1.0,
    )


def _source_network(card: Card, module: nn.Module) -> SourceNetwork:
    name = f"{card.architecture.name}.{card.weights.name}" if card.weights.name else card.architecture.name
    size_args = {key: value for key, value in card.architecture.args.items() if key == "img_size"}
    preprocessing = timm_preprocessing(_data_config(size_args, pretrained_cfg=pretrained_config(name)))
    if card.architecture.args.get("in_chans") == 1:
        mean, std = preprocessing.mean, preprocessing.std
        preprocessing = replace(preprocessing, mean=(sum(mean) / len(mean),), std=(sum(std) / len(std),))
    return SourceNetwork(module, preprocessing)
