"""Loads the network of a card: one module per source, imported when the first card names it.

Each module also gives its library's preprocessing of images. This package selects the source and the origin of the weights; the
source's module builds the network.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Final, cast

import torch
from torch import Tensor, nn

from service.engine.cards.card import Card
from service.engine.cards.labels import LabelSet
from service.engine.device import BUILD_LOCK
from service.engine.sources.base import Source, SourceNetwork, returning
from service.engine.sources.checkpoint import checkpoint, state_digest
from service.errors import ConfigurationError
from service.vocabulary import Activation, Preprocessing

OPTIONAL: Final = {"transformers", "keras"}  # sources that need the extra of the same name


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedNetwork:
    """A network on the CPU in eval mode with frozen parameters; its input is float32 ``[N, C, height, width]``.

    C is the length of the preprocessing's mean.

    Attributes:
        digest: "sha256:..." of the checkpoint, or of all parameters and buffers for weights without a file.
        activation: the function from logits to probabilities.
        labels: the classes as the source states them; None where it does not.
        revision: the commit of the repository that the weights come from; None for other weights.
        weights_name: the source's own name of weights of a hub, such as a1_in1k; None for other weights.
    """

    module: nn.Module
    preprocessing: Preprocessing
    digest: str
    activation: Activation = "softmax"
    labels: LabelSet | None = None
    revision: str | None = None
    weights_name: str | None = None


def load(card: Card, *, random_weights: bool = False) -> LoadedNetwork:
    """Builds the card's network and loads its weights.

    Args:
        card: the card of the model.
        random_weights: whether to use seeded random weights in place of weights from a hub.

    Raises:
        ConfigurationError: the architecture is unknown, a library is missing, or the weights are missing, changed or do not
            fit.
    """
    path, digest = checkpoint(card) if card.weights.file is not None else (None, None)
    try:
        with BUILD_LOCK:
            source = _source(card)
            if path is not None:
                network = source.from_file(card, path)
            elif card.weights.from_hub and not random_weights:
                network = _from_hub(source, card)
            else:
                torch.manual_seed(card.weights.random or 0)
                network = source.from_architecture(card)
    except (ConfigurationError, MemoryError):
        raise
    except Exception as error:  # a library's own: KeyError, AttributeError, ... depending on what does not fit
        raise ConfigurationError(
            f"card {card.name}: architecture: {card.architecture.source} cannot build {card.architecture.name!r} like this: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    for module in network.module.modules():
        module.training = False  # eval() would do the same, but an exported program refuses it
    module = network.module.requires_grad_(requires_grad=False)
    if card.labels.activation == "sigmoid" and network.activation is None:
        module = returning(module, _two_class_logits)
    return LoadedNetwork(
        module=module,
        preprocessing=_override_preprocessing(card, network.preprocessing),
        digest=digest or _check_state(card, module),
        activation=card.labels.activation or network.activation or "softmax",
        labels=network.labels,
        revision=network.revision,
        weights_name=network.weights_name,
    )


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


def _check_state(card: Card, module: nn.Module) -> str:
    """The digest of parameters and buffers, which is that of the card if the card states one for weights without a file."""
    digest = state_digest(module)
    if card.weights.sha256 is not None and digest != f"sha256:{card.weights.sha256}":
        raise ConfigurationError(
            f"card {card.name}: weights.sha256: {card.weights} has {digest.removeprefix('sha256:')}, the card says "
            f"{card.weights.sha256}; correct the card if these are the weights that you mean"
        )
    return digest


def _two_class_logits(logits: Tensor) -> Tensor:
    """The logits (-z, z) ``[N, 2]`` of two classes for the logit z ``[N, 1]`` of a binary network; other logits unchanged.

    sigmoid(-z) is 1 - sigmoid(z), the probability of class 0.
    """
    return torch.cat([-logits, logits], dim=1) if logits.shape[1] == 1 else logits


def _override_preprocessing(card: Card, source: Preprocessing) -> Preprocessing:
    """The source's preprocessing with the overrides of the card. If only the crop is overridden, the crop ratio stays."""
    overrides = card.preprocess
    crop = overrides.crop if overrides.crop is not None else (source.height, source.width)
    height, width = (crop, crop) if isinstance(crop, int) else crop
    short_side = source.resize if source.resize is not None else min(source.height, source.width)
    return replace(
        source,
        height=height,
        width=width,
        resize=overrides.resize or round(short_side * min(height, width) / min(source.height, source.width)),
        interpolation=overrides.interpolation or source.interpolation,
        mean=overrides.mean or source.mean,
        std=overrides.std or source.std,
        fit=overrides.fit or source.fit,
    )


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:400]
