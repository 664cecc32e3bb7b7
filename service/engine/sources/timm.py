"""Networks of timm, with weights by timm's tag, such as `a1_in1k`, or of any repository of a hub at a pinned revision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import timm
import timm.data.config
import timm.data.imagenet_info
from torch import nn

from service.engine.cards.card import Card
from service.engine.cards.labels import LabelSet, imagenet_labels
from service.engine.sources.base import SourceNetwork
from service.engine.sources.checkpoint import load_into, read_state
from service.engine.sources.hub import resolve_commit
from service.errors import ConfigurationError
from service.vocabulary import Fit, Preprocessing

FITS: Final[dict[str, Fit]] = {"center": "crop", "squash": "squash", "border": "pad"}  # of timm's crop modes
# timm is only partly typed.
_create_model: Any = timm.create_model
_pretrained_config: Any = timm.get_pretrained_cfg
_data_config: Any = timm.data.config.resolve_data_config
_imagenet_subset: Any = timm.data.imagenet_info.infer_imagenet_subset


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
    _check_name(card)
    weights = card.weights
    # Without the number of classes in the configuration, timm would silently leave a classifier of another size random.
    overlay: dict[str, Any] = {key: value for key, value in card.architecture.args.items() if key == "num_classes"}
    commit = None
    if weights.hub is not None:
        commit = resolve_commit(card, weights.hub, weights.revision)
        overlay |= {"hf_hub_id": f"{weights.hub}@{commit}", "url": "", "custom_load": False}
    elif repository := (_pretrained_config(_full_name(card)).hf_hub_id):
        commit = resolve_commit(card, repository, weights.revision)
        overlay |= {"hf_hub_id": f"{repository}@{commit}"}
    module = _create_model(_full_name(card), pretrained=True, pretrained_cfg_overlay=overlay, **card.architecture.args)
    tag = _pretrained_config(_full_name(card)).tag if weights.hub is None else None
    return replace(_source_network(card, module), revision=commit, weights_name=tag)


def _check_name(card: Card) -> str:
    """The card's name of a network, which timm must have."""
    name = card.architecture.name
    if not timm.is_model(name):
        raise ConfigurationError(f"card {card.name}: architecture.name: timm has no network {name!r}")
    if _pretrained_config(_full_name(card)) is None:
        raise ConfigurationError(f"card {card.name}: weights.name: timm has no weights {card.weights.name!r} of {name}")
    return name


def _full_name(card: Card) -> str:
    """The network's name with the tag of the card's weights, if it names any."""
    name, tag = card.architecture.name, card.weights.name
    return name if tag in {None, "default"} else f"{name}.{tag}"


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
    config = pretrained_config(_full_name(card))
    size_args = {key: value for key, value in card.architecture.args.items() if key == "img_size"}
    preprocessing = timm_preprocessing(_data_config(size_args, pretrained_cfg=config))
    if card.architecture.args.get("in_chans") == 1:
        mean, std = preprocessing.mean, preprocessing.std
        preprocessing = replace(preprocessing, mean=(sum(mean) / len(mean),), std=(sum(std) / len(std),))
    # Another repository's classes are its own.
    labels = _labels(config or {}) if card.weights.hub is None else None
    return SourceNetwork(module=module, preprocessing=preprocessing, labels=labels)


def _labels(config: Mapping[str, Any]) -> LabelSet | None:
    """The classes of weights: those that their configuration lists, or those of the subset of ImageNet with as many classes."""
    if names := config.get("label_names"):
        descriptions = config.get("label_descriptions") or {}
        return LabelSet(tuple(str(descriptions.get(name, name)) for name in names))
    subset: str | None = _imagenet_subset(dict(config))
    return imagenet_labels(subset) if subset is not None else None
