"""Saved programs: what was exported answers again, and what a card must say of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from service.engine.cards.card import Card
from service.engine.graph.export import export
from service.engine.sources import load
from service.errors import ConfigurationError
from tests.engine.cards.test_card import GOOD, card
from tests.networks import Pooled, seeded

LOCAL = GOOD.replace('source = "timm"\nname = "resnet18"', 'source = "local"') + (
    "[preprocess]\nmean = [0.5, 0.5, 0.5]\nstd = [0.5, 0.5, 0.5]\n"
)


def saved(folder: Path, *, free_size: bool = False) -> Card:
    shape: dict[int, object] = {0: torch.export.Dim.DYNAMIC}
    if free_size:
        shape |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(seeded(Pooled), (torch.zeros(2, 3, 32, 40),), dynamic_shapes=(shape,))
    torch.export.save(program, folder / "net.pt2")
    return with_file(folder)


def with_file(folder: Path, text: str = LOCAL) -> Card:
    digest = hashlib.sha256((folder / "net.pt2").read_bytes()).hexdigest()
    return Card.read(card(folder, text.replace("random = 0", f'file = "net.pt2"\nsha256 = "{digest}"')))


def test_a_saved_program_answers_as_its_network(tmp_path: Path) -> None:
    loaded = load(saved(tmp_path))
    images = torch.rand(3, 3, 32, 40)
    assert torch.equal(loaded.module(images), seeded(Pooled)(images))
    assert (loaded.preprocessing.height, loaded.preprocessing.width) == (32, 40)
    assert not any(p.requires_grad for p in loaded.module.parameters())
    assert {"stem", "block"} <= set(export("saved", loaded.module, (3, 32, 40)).layers())


def test_a_free_size_is_the_cards_to_say(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"preprocess\.crop"):
        load(saved(tmp_path, free_size=True))
    assert load(with_file(tmp_path, LOCAL + "crop = 48\n")).preprocessing.height == 48


def test_what_a_card_must_say(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(ConfigurationError, match="mean and std"):
        load(with_file(tmp_path, LOCAL.partition("[preprocess]")[0]))
    with pytest.raises(ConfigurationError, match=r"\.pt2 file"):
        load(Card.read(card(tmp_path, LOCAL)))
    (tmp_path / "net.pt2").write_bytes(b"no program")
    with pytest.raises(ConfigurationError, match=r"torch\.export\.save"):
        load(with_file(tmp_path))
