"""The text of a card: what `camserve card` writes, complete, so that the model is the same wherever and whenever it is read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from service import __version__
from service.engine.cards.card import Card
from service.engine.cards.labels import LabelSet, fit_labels, imagenet_labels, read_labels
from service.engine.cards.repository import read_cards, select_cards
from service.engine.device import prepare_device
from service.engine.network import Network
from service.settings import Settings

ALTERNATIVES = 5  # other layers that the card tells


def write_card(model: str, settings: Settings, target: Path | None) -> str:
    """Loads a model and writes its card.

    Args:
        model: a reference, or the name of a card, of which what it leaves out is filled in.
        settings: for the models folder and `random_weights`.
        target: the card's path, to which the path of a checkpoint is relative; None makes that path absolute.

    Raises:
        ConfigurationError: the model cannot be loaded.
    """
    cards = read_cards(settings.models_dir)
    (card,) = select_cards([model], cards).values()
    network = Network.load(card, prepare_device("cpu", settings.engine_threads), random_weights=settings.random_weights)
    return card_text(card, network, target)


def card_text(card: Card, network: Network, target: Path | None = None) -> str:
    """The card of a loaded network, in TOML; see `write_card`."""
    lines = [
        f"# {card.reference or card.name}, written by `camserve card` (camserve {__version__}).",
        f"version = {_value(card.version)}",
        f"description = {_value(card.description)}",
        *_table("architecture", _architecture_lines(card)),
        *_table("weights", _weights_lines(card, network, target)),
        *_table("labels", _labels_lines(card, network)),
        *_table("preprocess", _preprocess_lines(network)),
        *_table("explain", _explain_lines(card, network)),
        *_table("runtime", _runtime_lines(card)),
    ]
    return "\n".join(lines) + "\n"


def _table(name: str, lines: Iterable[str]) -> list[str]:
    return ["", f"[{name}]", *lines]


def _value(value: object) -> str:
    """A value in TOML; strings, numbers, arrays and booleans are written as in JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _architecture_lines(card: Card) -> list[str]:
    lines = [f"source = {_value(card.architecture.source)}"]
    lines += [f"name = {_value(card.architecture.name)}"] if card.architecture.name else []
    return lines + ([f"args = {_value(card.architecture.args)}"] if card.architecture.args else [])


def _weights_lines(card: Card, network: Network, target: Path | None) -> list[str]:
    weights, digest = card.weights, network.digest.removeprefix("sha256:")
    if weights.random is not None:
        return [f"random = {weights.random} # random weights: what the model answers means nothing"]
    if weights.package is not None or weights.file is not None:
        lines = [f"package = {_value(weights.package)}"] if weights.package else []
        lines += [f"file = {_value(weights.file if weights.package else _file(card, target))}"]
        lines += [f"keys = {_value(weights.keys)}"] if weights.keys else []
        return [*lines, f"sha256 = {_value(digest)} # of the file"]
    lines = [f"hub = {_value(weights.hub)}"] if weights.hub else [f"name = {_value(network.weights_name or weights.name)}"]
    lines += [f"revision = {_value(network.revision)} # the commit"] if network.revision else []
    return [*lines, f"sha256 = {_value(digest)} # of all parameters and buffers"]


def _file(card: Card, target: Path | None) -> str:
    path = (card.folder / str(card.weights.file)).resolve()
    return str(path) if target is None else os.path.relpath(path, target.resolve().parent)


def _labels_lines(card: Card, network: Network) -> list[str]:
    labels = fit_labels(read_labels(card) or network.labels, network.classes)
    lines = ['dataset = "imagenet-1k"'] if labels == imagenet_labels("imagenet-1k") else _names_lines(labels)
    lines += [f"prompt = {_value(card.labels.prompt)}"] if card.labels.prompt else []
    return [*lines, f"activation = {_value(network.activation)} # softmax: one class is true; sigmoid: each for itself"]


def _names_lines(labels: LabelSet) -> list[str]:
    return ["names = [ # in the order of class ids", *(f"  {_value(name)}," for name in labels.descriptions), "]"]


def _preprocess_lines(network: Network) -> list[str]:
    own = network.preprocessing
    return [
        f"fit = {_value(own.fit)} # crop: short side to `resize`, then the centre; squash, pad, native",
        f"resize = {own.resize}",
        f"crop = {_value((own.height, own.width))} # the input, height and width",
        f"interpolation = {_value(own.interpolation)}",
        f"mean = {_value(own.mean)} # for values 0..1",
        f"std = {_value(own.std)}",
    ]


def _explain_lines(card: Card, network: Network) -> list[str]:
    lines = []
    for layer in network.default_layers:
        info = network.layers[layer]
        lines.append(f"# {layer}: {info.channels} channels on a grid of {info.grid[0]} x {info.grid[1]} ({info.layout})")
    others = [layer for layer in reversed(network.layers) if layer not in network.default_layers][:ALTERNATIVES]
    lines += [f"# others near the end: {', '.join(others)}"] if others else []
    lines.append(f"layer = {_value(network.default_layers[0] if len(network.default_layers) == 1 else network.default_layers)}")
    lines += [f"layout = {_value(card.explain.layout)}"] if card.explain.layout else []
    return lines + ([f"prefix_tokens = {card.explain.prefix_tokens}"] if card.explain.prefix_tokens is not None else [])


def _runtime_lines(card: Card) -> list[str]:
    """The overrides of the card; those that it leaves to the service's settings as comments."""
    values = card.runtime.model_dump()
    examples = {"max_batch_size": 8, "engine": "auto", "precision": "auto"}
    return [
        f"{name} = {_value(value)}" if value is not None else f"# {name} = {_value(examples[name])}"
        for name, value in values.items()
    ]
