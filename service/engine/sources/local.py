"""Networks saved by `torch.export.save` (`.pt2`): one file with the program and its weights.

Such a file is code: reading it may unpickle objects in it, and running it runs its operations. The digest in the card is
checked first, so the file is the one that the operator named; the operator decides whether to trust it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor, nn

from service.engine.cards.card import Card
from service.engine.cards.reference import IMAGENET
from service.engine.sources.base import SourceNetwork
from service.errors import ConfigurationError
from service.vocabulary import Preprocessing

log = structlog.get_logger(__name__)


def from_architecture(card: Card) -> SourceNetwork:
    """Raises an error, for there is no architecture without the file; see `Source`."""
    raise _no_file(card)


def from_hub(card: Card) -> SourceNetwork:
    """Raises an error, for there is no hub of saved programs; see `Source`."""
    raise _no_file(card)


def from_file(card: Card, path: Path) -> SourceNetwork:
    """See `Source`; the card states mean and std, and the size if the program takes any size.

    A card that is made of a path has the mean and std of ImageNet, which are a guess that the log tells.

    Raises:
        ConfigurationError: the file is not a saved program of one image tensor, or the card lacks mean or std.
    """
    if card.preprocess.mean is None or card.preprocess.std is None:
        raise ConfigurationError(f"card {card.name}: preprocess: a saved program has no mean and std; the card must state them")
    if card.reference is not None and (card.preprocess.mean, card.preprocess.std) == (IMAGENET["mean"], IMAGENET["std"]):
        log.warning("assumed_preprocessing", model=card.name, mean=card.preprocess.mean, std=card.preprocess.std,
                    remedy="give ?mean=...&std=... with the reference, or write a card")  # fmt: skip
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise ConfigurationError(
            f"card {card.name}: weights.file: {path} is not a program saved by torch.export.save (.pt2): {error}"
        ) from error
    height, width = _size(card, program)
    module: Any = program.module(check_guards=False)
    assert isinstance(module, nn.Module)
    preprocessing = Preprocessing(
        height=height,
        width=width,
        resize=min(height, width),
        interpolation="bilinear",
        mean=card.preprocess.mean,
        std=card.preprocess.std,
    )
    return SourceNetwork(module=module, preprocessing=preprocessing)


def _size(card: Card, program: torch.export.ExportedProgram) -> tuple[int, int]:
    """Height and width of the program's image; where it takes any size, those of the card's crop."""
    names = set(program.graph_signature.user_inputs)
    shapes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names and isinstance(node.meta.get("val"), Tensor)
    ]
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise ConfigurationError(f"card {card.name}: weights.file: the program must take one tensor [N, C, height, width]")
    height, width = shapes[0][2:]
    crop = card.preprocess.crop
    if isinstance(height, int) and isinstance(width, int):
        return height, width
    if crop is None:
        raise ConfigurationError(f"card {card.name}: preprocess.crop: the program takes any size; the card must state one")
    return (crop, crop) if isinstance(crop, int) else crop


def _no_file(card: Card) -> ConfigurationError:
    return ConfigurationError(
        f"card {card.name}: weights.file: source local is a saved program; give the .pt2 file and its sha256"
    )
