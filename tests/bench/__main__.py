"""``python -m tests.bench``: the table of performance targets, measured side by side with the peers. No network is needed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import orjson
import structlog
from cyclopts import Parameter, run, validators
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.settings import Settings
from tests.bench import cache, codecs, engine, http, machine, protocols, start
from tests.bench.report import Row, Skipped, table
from tests.bench.timing import Schedule

GROUPS: dict[str, tuple[set[str], Callable[[Schedule, set[str]], Iterator[Row | Skipped]]]] = {
    "codecs": ({"P8"}, codecs.measure),
    "engine": ({"P1", "P2", "P3", "P9", "P11"}, engine.measure),
    "start": ({"P10"}, start.measure),
    "http": (http.IDS, http.measure),
    "protocols": ({"P12"}, protocols.measure),
    "cache": ({"P13"}, cache.measure),
}
KNOWN = set().union(*(ids for ids, _ in GROUPS.values()))


def split_rows(rows: str) -> set[str]:
    """`"p1, P4"` -> `{"P1", "P4"}`."""
    return {name.strip().upper() for name in rows.split(",") if name.strip()}


def check_rows(_: type[str], rows: str) -> None:
    """Raises ValueError where a row is not known; Cyclopts calls it with the option's type and value."""
    if unknown := split_rows(rows) - KNOWN:
        raise ValueError(f"No such row: {', '.join(sorted(unknown))}. There are {', '.join(sorted(KNOWN))}.")


def main(
    *,
    rows: Annotated[str, Parameter(validator=check_rows, help="Which rows, such as P1,P4; all if not given.")] = "",
    quick: Annotated[bool, Parameter(negative=(), help="In two minutes, for a first look; figures scatter.")] = False,
    rounds: Annotated[
        int, Parameter(validator=validators.Number(gte=0, lte=50), help="Of A B A B; 5 if not given, 2 with --quick.")
    ] = 0,
    json: Annotated[Path | None, Parameter(help="Write machine, rows and rounds to this file too.")] = None,
) -> int:
    """Measures every target of the service and prints the table. Targets are printed, never asserted."""
    wanted = split_rows(rows) or KNOWN
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    plan = Schedule(rounds or (2 if quick else 5), quick)
    out = Console(width=None if Console().is_terminal else 200)
    facts = machine.describe()
    described = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        described.add_row(name, value)
    out.print(described)
    if os.getloadavg()[0] > Settings().cores / 2:
        out.print(
            "[yellow]the machine is busy: an OpenMP thread that waits for its turn slows the whole network, on every side[/]"
        )
    began = time.perf_counter()
    failed = False
    done: list[Row | Skipped] = []
    for name, (ids, measure) in GROUPS.items():
        if wanted & ids:
            with out.status(f"measuring {name}: {', '.join(sorted(wanted & ids))}"):
                try:
                    for row in measure(plan, wanted):
                        done.append(row)
                        out.print(f"[dim]{time.perf_counter() - began:5.0f} s  {row.id} {row.what}[/]")
                except RuntimeError as error:  # a server that does not start must not cost the rows already measured
                    failed = True
                    out.print(f"[red]{name}: {escape(str(error))}[/]", highlight=False)
    out.print(table(done))
    met = [row.met for row in done if isinstance(row, Row) and row.met is not None]
    out.print(f"{sum(met)} of {len(met)} targets met, in {time.perf_counter() - began:.0f} s, {plan.rounds} rounds")
    if json is not None:
        documents = [row.document() for row in done if isinstance(row, Row)]
        json.write_bytes(orjson.dumps({"machine": facts, "rows": documents}, option=orjson.OPT_INDENT_2))
    return 1 if failed else 0


if __name__ == "__main__":
    run(main)
