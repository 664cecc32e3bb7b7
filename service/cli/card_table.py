"""The table of model cards that `camserve models` prints, as wide as the terminal allows."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from service.engine.cards.card import Card
from service.engine.cards.repository import read_cards

DESCRIPTION_WIDTH = 40  # characters; a longer description is wrapped


def print_cards(folder: Path, out: Console) -> None:
    """Prints the cards of a folder, by name: network and weights, and where the terminal is wide enough layer and description.

    Weights that do not fit end with an ellipsis, so that names and networks stay whole.

    Raises:
        ConfigurationError: the folder holds no card, or one of its cards is invalid.
    """
    cards = read_cards(folder).values()
    table = _make_table(cards, with_details=True)
    unlimited = out.options.update(max_width=sys.maxsize)
    is_wide_enough = out.measure(table, options=unlimited).maximum <= out.width
    out.print(str(folder), style="italic", markup=False, highlight=False, soft_wrap=True)
    out.print(table if is_wide_enough else _make_table(cards, with_details=False))
    if not is_wide_enough:
        out.print("A wider terminal shows layers and descriptions too.")


def _make_table(cards: Iterable[Card], *, with_details: bool) -> Table:
    # What is typed must be readable, however narrow the terminal: rich takes width from the other columns first.
    table = Table(Column("name", no_wrap=True), Column("network", no_wrap=True), "weights")
    if with_details:
        table.add_column("layer", no_wrap=True)
        table.add_column("description", max_width=DESCRIPTION_WIDTH)
    for card in cards:
        network = f"{card.architecture.source} {card.architecture.name}"
        weights = Text(str(card.weights), no_wrap=True, overflow="ellipsis")
        details = (", ".join(card.explain.layer), Text(card.description)) if with_details else ()
        table.add_row(card.name, network, weights, *details)
    return table
