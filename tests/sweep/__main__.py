"""``python -m tests.sweep``: every family of networks, loaded and explained, against plain hooks. No network is needed."""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter, validators
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.sweep.check import send_row
from tests.sweep.families import FAMILIES, SOURCES, Family
from tests.sweep.rows import Row, document, read_rows, summary, table

ROOT = Path(__file__).resolve().parents[2]

# Processes are forks of one that has imported the libraries, which takes longer than to explain most networks.
PROCESSES = multiprocessing.get_context("forkserver")
PRELOADED = ["tests.sweep.check", "timm", "torch._dynamo", "torch.export", "torchvision", "transformers"]

app = App(name="python -m tests.sweep", help_format="plaintext")


def select_third(families: list[Family], third: str) -> list[Family]:
    """Every third family, from the first, second or third on: "1/3", "2/3", "3/3"; all for ""."""
    return families[int(third[0]) - 1 :: 3] if third else families


def select(names: tuple[str, ...], source: str | None, third: str) -> list[Family]:
    """The families of the command line.

    Args:
        names: networks, families or keys (`timm:coat`); () for all.
        source: only this library's.
        third: see `select_third`.

    Raises:
        ValueError: a name is not known.
    """
    known = {name for family in FAMILIES.values() for name in (family.network, family.family, family.key)}
    if unknown := set(names) - known:
        raise ValueError(f"No such network: {', '.join(sorted(unknown))}. docs/families.md lists them.")
    families = select_third([family for family in FAMILIES.values() if source in {None, family.source}], third)
    return [family for family in families if not names or {family.network, family.family, family.key} & set(names)]


def run(family: Family, timeout_s: float) -> Row:
    """The row of one network, from a process of its own: one that hangs or takes all memory hurts no other."""
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=send_row, args=(family.key, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if receiver.poll(timeout_s):
            row: Row = receiver.recv()
            return row
        failure = f"not done in {timeout_s:.0f} s"
    except EOFError:
        process.join()
        failure = f"its process ended with exit status {process.exitcode}"
    finally:
        process.kill()
        process.join()
        receiver.close()
    return Row(key=family.key, failure=failure)


@app.default
def sweep(
    *names: str,
    family: Annotated[Literal["timm", "torchvision", "transformers"] | None, Parameter(help="Only this library's.")] = None,
    third: Annotated[Literal["1/3", "2/3", "3/3", ""], Parameter(help="Every third network: 1/3, 2/3 or 3/3.")] = "",
    timeout: Annotated[float, Parameter(validator=validators.Number(gt=0), help="Seconds for one network.")] = 180.0,
    resume: Annotated[bool, Parameter(negative=(), help="Leave out networks of which the results file has a row.")] = False,
    results: Annotated[Path, Parameter(help="Rows of all runs, one JSON object a line.")] = ROOT / "build" / "sweep.jsonl",
    report: Annotated[Path, Parameter(help="Written anew after the run, from all rows.")] = ROOT / "docs" / "families.md",
) -> int:
    """Loads one network of every family, compares its Grad-CAM with plain hooks and writes docs/families.md.

    Networks run one after the other, each in a process of its own. The whole takes an hour on two cores; rows of earlier runs
    are kept, so it can be run in pieces.

    Parameters
    ----------
    names
        Networks, families or keys, such as coat_tiny, cvt or timm:coat; all if none is given.
    """
    out = Console(width=None if Console().is_terminal else 200)
    try:
        families = select(names, family, third)
    except ValueError as error:
        out.print(str(error), style="red", highlight=False)
        return 2
    PROCESSES.set_forkserver_preload(PRELOADED)
    rows = read_rows(results)
    if resume:
        families = [one for one in families if one.key not in rows]
    results.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out) as progress, results.open("a", encoding="utf-8") as file:
        task = progress.add_task("", total=len(families))
        for one in families:
            progress.update(task, description=one.title)
            rows[one.key] = row = run(one, timeout)
            file.write(row.to_json() + "\n")
            file.flush()
            progress.advance(task)
            if row.outcome != "explained":
                progress.print(f"{one.title}: {row.outcome}: {row.refusal or row.failure}", highlight=False, markup=False)
    swept = [rows[one.key] for one in families]
    out.print(table(swept))
    for source in SOURCES:
        out.print(f"{source}: {summary(rows, source)}", highlight=False)
    report.write_text(document(rows, f"{os.cpu_count()} cores of {platform.machine()}"), encoding="utf-8")
    return 1 if any(row.outcome == "failed" for row in swept) else 0


if __name__ == "__main__":
    sys.exit(app())
