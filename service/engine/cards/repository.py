"""The models folder: its cards, and its folders that hold a model each; and the cards of the models that the operator names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from service.engine.cards.card import Card
from service.engine.cards.reference import FORMS, card_of_folder, card_of_reference, is_reference
from service.errors import ConfigurationError


def read_cards(folder: Path) -> dict[str, Card]:
    """Every model of a folder, by name: the cards (`*.toml`) in it, then the folders in it that hold a model.

    A card describes a folder of its own name, which may hold its weights, so that such a folder is no model of its own.
    A folder without either that holds one model itself, as platforms mount it, is that model.

    Raises:
        ConfigurationError: the folder holds no model, two of them have one name, or a card is invalid.
    """
    cards = {path.stem: Card.read(path) for path in sorted(folder.glob("*.toml"))}
    described = set(cards)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        card = card_of_folder(path) if path.is_dir() else None
        if card is None or card.name in described:
            continue
        if card.name in cards:
            raise ConfigurationError(f"{folder}: two models are named {card.name!r}; rename the folder {path.name}")
        cards[card.name] = card
    if not cards and folder.is_dir() and (only := card_of_folder(folder)) is not None:
        cards[only.name] = only
    if not cards:
        raise ConfigurationError(
            f"{folder}: no model cards (*.toml) here, and no folder with a model; set CAMSERVE_MODELS_DIR to the folder that "
            f"has them, or name a model by reference: {FORMS}"
        )
    return cards


def select_cards(names: Iterable[str], cards: Mapping[str, Card]) -> dict[str, Card]:
    """The cards of the models that an operator names, in that order; a card made of a reference replaces one of its name.

    Args:
        names: names of cards, or references.
        cards: those of the models folder.

    Raises:
        ConfigurationError: there is no such card, a reference is wrong, or two of the models have one name.
    """
    selected: dict[str, Card] = {}
    for name in names:
        if name not in cards and not is_reference(name):
            raise ConfigurationError(
                f"models: there is no card {name!r}; cards: {', '.join(cards) or 'none'}; or give a reference: {FORMS}"
            )
        card = cards[name] if name in cards else card_of_reference(name)
        if card.name in selected:
            raise ConfigurationError(f"models: two models are named {card.name!r}; name one of them: NAME={name}")
        selected[card.name] = card
    return selected
