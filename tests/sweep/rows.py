"""Rows of the sweep: what was found out about each network, as JSON, in a terminal's table and in docs/families.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

from rich.markup import escape
from rich.table import Table

from tests.sweep.families import FAMILIES, SOURCES, Family

Outcome = Literal["explained", "refused", "failed"]

TITLES: Final = {"timm": "timm", "torchvision": "torchvision", "transformers": "transformers"}
INTRODUCTION: Final = """# Networks that camserve explains

`make sweep` writes this file. It takes the smallest classification network of every module of timm, of every family of
torchvision and of every photograph classifier of transformers, with seeded random weights; loads it as the service does; lets
it choose the layer itself; and compares its Grad-CAM map of a photograph with the map by plain PyTorch hooks. Nothing is tuned
for a network.

`difference` is the largest difference of the two maps over the largest magnitude of the second. It is at most 1e-4, or, where
float32 itself is less exact in an untrained network, at most three times the error of the plain hooks in float32 against
float64. `load` is building, exporting and choosing the layer, in torch on {machine}, beside other work. `rejected` counts the
layers that were tried before and carry no evidence.
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network of the sweep.

    Attributes:
        key: of the family.
        layer, grid, layout: the layer that the network chose.
        difference: from the map by plain hooks.
        seconds: to load.
        rejected: how many layers without evidence were tried before.
        refusal: the message of the ConfigurationError.
        failure: anything else that went wrong.
    """

    key: str
    layer: str = ""
    grid: tuple[int, int] = (0, 0)
    layout: str = ""
    difference: float | None = None
    seconds: float | None = None
    rejected: int = 0
    refusal: str | None = None
    failure: str | None = None

    @property
    def outcome(self) -> Outcome:
        """Whether the network is explained, refused with a reason, or neither."""
        return "refused" if self.refusal is not None else "failed" if self.failure is not None else "explained"

    def with_difference(self, difference: float, bound: float) -> Row:
        """The row with the difference of the maps, a failure where it exceeds the bound."""
        wrong = None if difference <= bound else f"the map differs from plain hooks by {difference:.1e} of its peak"
        return replace(self, difference=difference, failure=self.failure or wrong)

    def with_failure(self, failure: str) -> Row:
        """The row with a failure."""
        return replace(self, failure=self.failure or failure)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Row:
        """The row of one line."""
        fields = json.loads(line)
        return cls(**{**fields, "grid": tuple(fields["grid"])})


def read_rows(path: Path) -> dict[str, Row]:
    """The rows of a results file, by key; the last of a key counts, and keys that are no longer swept are left out."""
    if not path.exists():
        return {}
    rows = [Row.from_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row.key: row for row in rows if row.key in FAMILIES}


def cells(family: Family, row: Row) -> list[str]:
    """The columns of a table: network, layer, grid, layout, difference, seconds; a reason in place of the layer."""
    reason = row.refusal or row.failure
    if reason is not None:
        return [family.title, f"{row.outcome}: {reason}", "", "", "", ""]
    grid = f"{row.grid[0]} x {row.grid[1]}"
    tried = f"{row.layer} ({row.rejected} rejected)" if row.rejected else row.layer
    return [family.title, tried, grid, row.layout, f"{row.difference:.0e}", f"{row.seconds:.1f}"]


def table(rows: Sequence[Row]) -> Table:
    """The rows as a terminal shows them."""
    result = Table("network", "layer", "grid", "layout", "difference", "load s", title_justify="left")
    for row in rows:
        color = {"explained": "", "refused": "yellow", "failed": "red"}[row.outcome]
        result.add_row(*(f"[{color}]{escape(cell)}[/]" if color else escape(cell) for cell in cells(FAMILIES[row.key], row)))
    return result


def summary(rows: Mapping[str, Row], source: str) -> str:
    """How many networks of a source are explained, refused, failed, not run."""
    families = [family for family in FAMILIES.values() if family.source == source]
    outcomes = [rows[family.key].outcome if family.key in rows else "not run" for family in families]
    counts = [f"{outcomes.count(name)} {name}" for name in ("refused", "failed", "not run") if name in outcomes]
    return ", ".join([f"{outcomes.count('explained')} of {len(families)} explained", *counts])


def document(rows: Mapping[str, Row], machine: str) -> str:
    """The text of docs/families.md."""
    lines = [INTRODUCTION.format(machine=machine)]
    for source in SOURCES:
        lines += [f"## {TITLES[source]}", "", f"{summary(rows, source)}.", ""]
        lines += ["| network | layer | grid | layout | difference | load, s |", "| --- | --- | --- | --- | --- | --- |"]
        for family in FAMILIES.values():
            if family.source != source:
                continue
            if family.key not in rows:
                lines.append(f"| {family.title} | not run | | | | |")
                continue
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells(family, rows[family.key]))} |")
        lines.append("")
    return "\n".join(lines)
