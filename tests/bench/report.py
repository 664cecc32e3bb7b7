"""Rows of the table: what was measured, its target, whether it was met, and both sides' own figures. Nothing is asserted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

from tests.bench.timing import Spread

Unit = Literal["x", "ms", "s", "/s", "kB"]


@dataclass(frozen=True)
class Target:
    """What the median should be: at most, or at least, `bound`."""

    sense: Literal["<=", ">="]
    bound: float

    def met(self, value: float) -> bool:
        """Whether a value fulfils it."""
        return value <= self.bound if self.sense == "<=" else value >= self.bound

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g}"


@dataclass(frozen=True)
class Side:
    """One side's own figure, in each round."""

    name: str
    rounds: tuple[float, ...]
    unit: Unit

    def __str__(self) -> str:
        return f"{self.name} {figure(Spread.of(self.rounds).median)} {self.unit}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        id: of the target (P1 to P12; P13 is the cache's own, and has none).
        what: is measured.
        rounds: the figure of each round; a ratio where `unit` is "x".
        unit: of the figure.
        target: None where the row only informs.
        sides: what the figure was made of.
        note: whatever else a reader should know, such as sizes or percentiles.
    """

    id: str
    what: str
    rounds: tuple[float, ...]
    unit: Unit
    target: Target | None
    sides: tuple[Side, ...] = ()
    note: str = ""

    @property
    def spread(self) -> Spread:
        """Median, lowest and highest round."""
        return Spread.of(self.rounds)

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        return None if self.target is None else self.target.met(self.spread.median)

    def document(self) -> dict[str, Any]:
        """The row as JSON has it."""
        return {
            "id": self.id,
            "what": self.what,
            "median": self.spread.median,
            "rounds": self.rounds,
            "unit": self.unit,
            "target": None if self.target is None else str(self.target),
            "met": self.met,
            "sides": [{"name": side.name, "rounds": side.rounds, "unit": side.unit} for side in self.sides],
            "note": self.note,
        }


@dataclass(frozen=True)
class Skipped:
    """A row that could not be measured here, and why."""

    id: str
    what: str
    reason: str


def figure(value: float) -> str:
    """Three digits, and no exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def table(rows: Sequence[Row | Skipped]) -> Table:
    """The rows in order of their targets."""
    made = Table("", "what", "measured", "min-max", "target", "met", "sides", title_justify="left")
    for row in sorted(rows, key=lambda row: int(row.id[1:])):
        if isinstance(row, Skipped):
            made.add_row(row.id, row.what, "[dim]skipped[/]", "", "", "", f"[dim]{row.reason}[/]")
            continue
        spread = row.spread
        measured = f"{figure(spread.median)} {row.unit}" if row.unit != "x" else f"{figure(spread.median)}x"
        met = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[row.met]
        sides = "; ".join([*map(str, row.sides), *([row.note] if row.note else [])])
        made.add_row(
            row.id, row.what, measured, f"{figure(spread.low)}-{figure(spread.high)}", str(row.target or ""), met, sides
        )
    return made
