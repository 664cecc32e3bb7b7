"""Class names: found however a caller may write them, and never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.engine.cards.card import Card
from service.engine.cards.labels import LabelSet, read_labels
from service.errors import ClassNotFound, ConfigurationError
from tests.engine.cards.test_card import GOOD, card


def labels_of(card: Card) -> LabelSet:
    labels = read_labels(card)
    assert labels is not None
    return labels


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> LabelSet:
    return labels_of(Card.read(card(tmp_path_factory.mktemp("cards"), GOOD)))


@pytest.mark.parametrize("name", ["tabby", "Tabby, tabby cat", "  TABBY ", "n02123045", "tabby,  tabby cat"])
def test_one_class_by_any_of_its_names(imagenet: LabelSet, name: str) -> None:
    assert imagenet.find(name) == 281


def test_labels_and_wordnet_ids(imagenet: LabelSet) -> None:
    assert len(imagenet) == 1000
    assert imagenet.wordnet_ids is not None
    assert len(imagenet.wordnet_ids) == len(imagenet.labels) == 1000
    assert (imagenet.labels[0], imagenet.wordnet_ids[0]) == ("tench", "n01440764")


def test_an_ambiguous_name_lists_the_ids(imagenet: LabelSet) -> None:
    with pytest.raises(ClassNotFound, match=r"134, 517"):
        imagenet.find("crane")
    with pytest.raises(ClassNotFound, match=r"638, 639"):
        imagenet.find("maillot")


def test_an_unknown_name_is_not_echoed(imagenet: LabelSet) -> None:
    with pytest.raises(ClassNotFound) as raised:
        imagenet.find("grumpycat")
    assert "grumpycat" not in raised.value.detail


def test_class_zero_is_a_class_and_others_are_not(imagenet: LabelSet) -> None:
    assert imagenet.check(0) == 0
    for wrong in (-1, 1000):
        with pytest.raises(ClassNotFound, match="0 to 999"):
            imagenet.check(wrong)


def with_file(folder: Path, text: str) -> Card:
    (folder / "names.txt").write_text(text, encoding="utf-8")
    return Card.read(card(folder, GOOD.replace('dataset = "imagenet-1k"', 'file = "names.txt"')))


def test_a_file_of_labels(tmp_path: Path) -> None:
    labels = labels_of(with_file(tmp_path, "cat\ndog, hound\n\n"))
    assert (len(labels), labels.labels[1], labels.find("dog, hound"), labels.wordnet_ids) == (2, "dog", 1, None)


def test_a_file_of_labels_with_wordnet_ids(tmp_path: Path) -> None:
    labels = labels_of(with_file(tmp_path, "n00000001\tcat\nn00000002\tdog\n"))
    assert (labels.find("n00000002"), labels.labels[0]) == (1, "cat")


def test_a_hole_in_a_file_of_labels(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"line 2"):
        labels_of(with_file(tmp_path, "cat\n\ndog\n"))


def test_no_file_of_labels(tmp_path: Path) -> None:
    made = with_file(tmp_path, "cat\n")
    (tmp_path / "names.txt").unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        labels_of(made)
