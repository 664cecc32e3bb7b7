"""Finds checkpoints, checks their digests, reads them without running code from them, and maps names to the source's names."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from service.engine.cards.card import Card
from service.errors import ConfigurationError

StateDict = dict[str, Tensor]


def checkpoint_path(card: Card) -> Path:
    """The path of a card's checkpoint: beside the card, or inside an installed package.

    Raises:
        ConfigurationError: the package or the file is missing.
    """
    assert card.weights.file is not None
    if card.weights.package is None:
        path = card.folder / card.weights.file
    else:
        package = importlib.util.find_spec(card.weights.package)
        if package is None or not package.submodule_search_locations:
            raise ConfigurationError(
                f"card {card.name}: weights.package: the package {card.weights.package!r} is not installed; install it with "
                f"pip install {card.weights.package.replace('_', '-')}"
            )
        path = Path(package.submodule_search_locations[0]) / card.weights.file
    if not path.is_file():
        raise ConfigurationError(f"card {card.name}: weights.file: there is no file {path}")
    return path


def checkpoint(card: Card) -> tuple[Path, str]:
    """The path of a card's checkpoint and its "sha256:..." digest, which is checked before any byte of the file is parsed.

    A card that is made of a path states no digest: the operator named the file itself.

    Raises:
        ConfigurationError: the file is missing or its digest differs.
    """
    path = checkpoint_path(card)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if card.weights.sha256 is not None and digest != card.weights.sha256:
        raise ConfigurationError(
            f"card {card.name}: weights.sha256: {path} has {digest}, the card says {card.weights.sha256}; "
            "fetch the file again, or correct the card if the file is the one you mean"
        )
    return path, f"sha256:{digest}"


def read_state(card: Card, path: Path) -> StateDict:
    """The tensors of a `.safetensors` file or of a PyTorch checkpoint, with the source's parameter names.

    Only tensors are read (`weights_only`), so no code in a file is run.

    Raises:
        ConfigurationError: the file is not a plain state dict.
    """
    try:
        if path.suffix == ".safetensors":
            state: object = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigurationError(
            f"card {card.name}: weights.file: {path} is not a plain PyTorch state dict: {error}"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigurationError(f"card {card.name}: weights.file: {path} must hold one flat mapping of names to tensors")
    if card.weights.keys == "efficientnet_lite":
        return _efficientnet_lite_keys(state)
    return dict(state)


def load_into(card: Card, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies a state dict into a module, strictly.

    Raises:
        ConfigurationError: names or shapes differ; the message lists the first of them.
    """
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        differences = "; ".join(line.strip() for line in str(error).splitlines()[1:5])
        raise ConfigurationError(
            f"card {card.name}: weights do not fit architecture {card.architecture.name!r}: {differences[:600]}"
        ) from error


def state_digest(module: nn.Module) -> str:
    """Digest, "sha256:...", over names, dtypes, shapes and bytes of all parameters and buffers, for weights without a file."""
    return f"sha256:{digest_tensors(module.state_dict())}"


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names; 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def _efficientnet_lite_keys(state: Mapping[str, Tensor]) -> StateDict:
    """Parameter names of the original EfficientNet-Lite checkpoints -> those of timm's `tf_efficientnet_lite*`.

    The original numbers its blocks consecutively, timm by stage and repeat; a new stage begins where the output width of the
    blocks changes.
    """
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    depthwise = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inverted_residual = {
        "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }  # fmt: skip
    blocks = sorted({int(match[1]) for match in (re.match(r"_blocks\.(\d+)\.", key) for key in state) if match})
    positions = _stages(state, blocks)
    timm_state: StateDict = {}
    for key, value in state.items():
        names = key.split(".")
        if names[0] != "_blocks":
            timm_state[".".join([outer[names[0]], *names[1:]])] = value
            continue
        block = int(names[1])
        inner = inverted_residual if f"_blocks.{block}._expand_conv.weight" in state else depthwise
        timm_state[".".join(["blocks", *map(str, positions[block]), inner[names[2]], *names[3:]])] = value
    return timm_state


def _stages(state: Mapping[str, Tensor], blocks: list[int]) -> dict[int, tuple[int, int]]:
    """Number of a block -> (stage, repeat). Each of EfficientNet-Lite's stages has an output width of its own."""
    positions: dict[int, tuple[int, int]] = {}
    stage, repeat, width = -1, 0, 0
    for block in blocks:
        out_channels = state[f"_blocks.{block}._project_conv.weight"].shape[0]
        stage, repeat = (stage, repeat + 1) if out_channels == width else (stage + 1, 0)
        positions[block], width = (stage, repeat), out_channels
    return positions
