"""Class labels: the conversion from class id to label and back. This module knows no network."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from service.engine.cards.card import Card
from service.errors import ClassNotFound, ConfigurationError

WORDNET_ID = re.compile(r"^n\d{8}$")


@dataclass(frozen=True)
class LabelSet:
    """Descriptions ("tabby, tabby cat") and WordNet ids, one per class, in order of class ids."""

    descriptions: tuple[str, ...]
    wordnet_ids: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.descriptions)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """First lemma of each class's description: "tabby" of "tabby, tabby cat"."""
        return tuple(description.split(",")[0].strip() for description in self.descriptions)

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = defaultdict(list)
        for class_id, description in enumerate(self.descriptions):
            for name in {description.casefold(), self.labels[class_id].casefold()}:
                ids[name].append(class_id)
            if self.wordnet_ids:
                ids[self.wordnet_ids[class_id]].append(class_id)
        return ids

    def find(self, name: str) -> int:
        """The class id of a label (case-insensitive; first lemma or whole description) or of a WordNet id.

        Raises:
            ClassNotFound: no class has that name, or several do; the message lists their ids.
        """
        ids = self._by_name.get(" ".join(name.split()).casefold(), [])
        if len(ids) == 1:
            return ids[0]
        if ids:
            raise ClassNotFound(f"class_name: several classes have this name: {', '.join(map(str, ids))}; use class_id.")
        raise ClassNotFound(
            "class_name: no class has this name. Give the label as predictions show it, its whole description, a WordNet id, "
            "or use class_id."
        )

    def check(self, class_id: int) -> int:
        """Returns the class id if there is such a class.

        Raises:
            ClassNotFound: the id is out of range.
        """
        if 0 <= class_id < len(self):
            return class_id
        raise ClassNotFound(f"class_id: this model has {len(self)} classes, 0 to {len(self) - 1}.")


def read_labels(card: Card) -> LabelSet | None:
    """The label set that a card names; None for a card that leaves the labels to the source.

    Raises:
        ConfigurationError: the file cannot be read or a line is not a label.
    """
    if card.labels.dataset is not None:
        return imagenet_labels(card.labels.dataset)
    if card.labels.names is not None:
        return LabelSet(card.labels.names)
    return _read_file(card.folder / card.labels.file) if card.labels.file is not None else None


def fit_labels(stated: LabelSet | None, classes: int) -> LabelSet:
    """The labels that are stated, if they are so many; else numbers."""
    if stated is not None and len(stated) == classes:
        return stated
    return LabelSet(tuple(f"class {number}" for number in range(classes)))


def imagenet_labels(subset: str) -> LabelSet:
    """Labels and WordNet ids of a subset of ImageNet, such as "imagenet-1k", as timm lists them."""
    import timm.data.imagenet_info  # noqa: PLC0415 (timm imports torch; labels files need neither)

    info: Any = timm.data.imagenet_info.ImageNetInfo(subset)
    ids = range(info.num_classes())
    return LabelSet(tuple(info.index_to_description(i) for i in ids), tuple(info.index_to_label_name(i) for i in ids))


def _read_file(path: Path) -> LabelSet:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: labels cannot be read: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    pairs = [line.split("\t", 1) if WORDNET_ID.match(line.split("\t", 1)[0]) else [line] for line in lines]
    for number, pair in enumerate(pairs, 1):
        if not pair[-1].strip():
            raise ConfigurationError(
                f"{path}: line {number}: a label is missing; the file needs one label a line, in order of class ids"
            )
    if all(len(pair) == 2 for pair in pairs) and pairs:
        return LabelSet(tuple(pair[1].strip() for pair in pairs), tuple(pair[0] for pair in pairs))
    return LabelSet(tuple(pair[-1].strip() for pair in pairs))
