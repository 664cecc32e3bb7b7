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
from service.engine.sources import LoadedNetwork
from service.engine.sources.checkpoint import digest_tensors

LIBRARIES: Final = ("torch", "torchvision", "timm", "transformers", "keras", "openvino")


def network_identity(card: Card, loaded: LoadedNetwork, device: torch.device) -> dict[str, object]:
    """What the export of a network depends on beside the size of its input.

    Args:
        card: the card of the network.
        loaded: the network, with the hooks of its source.
        device: the device that it will run on.
    """
    module = loaded.module
    return {
        "weights": loaded.digest,
        "architecture": card.architecture.model_dump(),
        "activation": loaded.activation,
        "modules": repr(module),
        "buffers": _digest_of_buffers(module),
        # A checkpoint may bring a configuration of its own, and an image processor that decides about hooks.
        "config": str(getattr(module, "config", "")),
        "hooks": [getattr(hook, "__qualname__", "") for hook in module._forward_pre_hooks.values()],
        "device": str(device),
        "versions": {"camserve": __version__, "python": platform.python_version(), **dict(_versions())},
    }


def _digest_of_buffers(module: nn.Module) -> str:
    """Digest of the buffers that the digest of the weights leaves out, such as the texts' features of a zero-shot network."""
    kept = module.state_dict().keys()
    return digest_tensors({name: buffer for name, buffer in module.named_buffers() if name not in kept})


def _versions() -> Iterator[tuple[str, str]]:
    for library in LIBRARIES:
        try:
            yield library, importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
