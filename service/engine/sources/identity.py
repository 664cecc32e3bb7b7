"""What decides the graph and the weights of a card's network: the key under which its exports are kept on disk."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from typing import Final

import torch
from torch import nn

from service import __version__
from service.engine.cards.card import Card

LIBRARIES: Final = ("torch", "torchvision", "timm", "transformers", "keras", "openvino")


def network_identity(card: Card, module: nn.Module, digest: str, device: torch.device) -> dict[str, object]:
    """What the export of a network depends on beside the size of its input.

    Args:
        card: the card of the network.
        module: the network, with the hooks of its source.
        digest: of its weights.
        device: the device that it will run on.
    """
    return {
        "weights": digest,
        "architecture": card.architecture.model_dump(),
        "activation": card.labels.activation,
        "modules": repr(module),
        # A checkpoint may bring a configuration of its own, and an image processor that decides about hooks.
        "config": str(getattr(module, "config", "")),
        "hooks": [getattr(hook, "__qualname__", "") for hook in module._forward_pre_hooks.values()],
        "device": str(device),
        "versions": {"camserve": __version__, "python": platform.python_version(), **dict(_versions())},
    }


def _versions() -> Iterator[tuple[str, str]]:
    for library in LIBRARIES:
        try:
            yield library, importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
