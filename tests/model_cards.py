"""Folders of model cards, written by tests: networks that are small, have random weights and load in a second."""

from __future__ import annotations

from pathlib import Path

CLASSES = 10
TINY = """
description = "A small network that knows nothing"
[architecture]
source = "timm"
name = "test_resnet"
args = {num_classes = 10}
[weights]
random = 0
[labels]
file = "labels.txt"
[preprocess]
crop = 64
[explain]
layer = "layer3"
"""


def write_card(folder: Path, name: str, *changes: tuple[str, str], labels: int = CLASSES) -> None:
    """A card beside its labels, `class 0` and so on; `changes` replace text of `TINY`."""
    text = TINY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / f"{name}.toml").write_text(text)
    (folder / "labels.txt").write_text("".join(f"class {number}\n" for number in range(labels)))
