"""The command line: serve, explain files without a server, list and measure models. All work is done by the other rooms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from service import __version__
from service.cli.fields import fail, with_fields
from service.errors import CamserveError, ConfigurationError
from service.explain.options import Options
from service.settings import Settings

# Torch takes seconds to import, and --help should not: commands import what they run when they run.

FAILED_START = 3  # a card, its weights or a setting is wrong; 2 is a wrong command line
OVERLAY_OPTIONS = tuple(
    name for name in Options.model_fields if name not in {"heatmap", "overlay", "format", "evaluate", "channels"}
)
MAP_OPTIONS = (
    "model", "class_id", "class_name", "versus", "top_k", "layer", "polarity", "scale", "fit",
    "clip_percent_lowerbound", "clip_percent_upperbound",
)  # fmt: skip

app = typer.Typer(
    name="camserve",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()


@contextmanager
def reasons(code: int = 1) -> Iterator[None]:
    """What stops a command is told in a line, not a traceback: with FAILED_START where it could not begin, else with `code`."""
    try:
        yield
    except ConfigurationError as error:
        fail(str(error), code=FAILED_START)
    except CamserveError as error:
        fail(error.detail, code=code)


@app.callback(invoke_without_command=True)
def root(*, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Explanations for image classifiers: over HTTP (serve) or for files (explain)."""
    if version:
        out.print(__version__)
        raise typer.Exit


@app.command()
@with_fields("settings", Settings)
def serve(settings: Settings) -> None:
    """Serve over HTTP. Every option is also an environment variable: --max-batch-size is CAMSERVE_MAX_BATCH_SIZE."""
    from service.cli.serving import run  # noqa: PLC0415

    with reasons():
        run(settings)


@app.command()
@with_fields("options", Options, *OVERLAY_OPTIONS)
@with_fields("settings", Settings, "models_dir", "device", "random_weights", "max_batch_size", "max_image_pixels", "threads")
def explain(
    paths: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", exists=True)],
    options: Options,
    settings: Settings,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the overlays and for explanations.csv.")] = Path("out"),
) -> None:
    """Explain images on this machine, without a server: an overlay for each, a table, and a CSV of what was found."""
    from service.cli.files import explain_files  # noqa: PLC0415

    with reasons(code=2):
        unexplained = explain_files(paths, out_dir, options, settings, out)
    if unexplained:
        raise typer.Exit(1)


@app.command()
@with_fields("options", Options, *MAP_OPTIONS)
@with_fields("settings", Settings, "models_dir", "device", "random_weights", "max_image_pixels", "threads")
def evaluate(
    paths: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", exists=True)],
    options: Options,
    settings: Settings,
    methods: Annotated[str, typer.Option(help="Methods to compare, with commas.")] = "gradcam,layercam,eigencam",
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for evaluation.csv and evaluation.png.")] = Path("out"),
) -> None:
    """Compare methods over images: deletion, insertion, average drop, ROAD and time, beside a random and a centre map."""
    from service.cli.evaluation import evaluate_files  # noqa: PLC0415

    names = tuple(dict.fromkeys(name.strip() for name in methods.split(",") if name.strip()))
    with reasons(code=2):
        unread = evaluate_files(paths, out_dir, names, options, settings, out)
    if unread:
        raise typer.Exit(1)


@app.command()
@with_fields("settings", Settings, "models_dir", "device", "precision", "engine", "random_weights", "max_batch_size", "threads")
def bench(
    settings: Settings,
    model: Annotated[str | None, typer.Option(help="Name of a model card; the first served if not given.")] = None,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Measurements of each kind; medians are shown.")] = 20,
) -> None:
    """Measure a model on this machine: how long it takes to load, to predict and to explain."""
    from service.cli.benchmark import run  # noqa: PLC0415

    with reasons():
        run(settings.model_copy(update={"models": (model,)}) if model else settings, rounds, out)


@app.command()
@with_fields("settings", Settings, "models_dir")
def models(settings: Settings) -> None:
    """List the model cards."""
    from service.engine.cards.card import read_cards  # noqa: PLC0415

    with reasons():
        cards = read_cards(settings.models_dir)
    name = Column("name", no_wrap=True)  # what is typed must be readable, however narrow the terminal
    table = Table(name, "architecture", "weights", "layer", "description", title=str(settings.models_dir), title_justify="left")
    for card in cards.values():
        architecture = f"{card.architecture.source} {card.architecture.name}"
        table.add_row(card.name, architecture, str(card.weights), ", ".join(card.explain.layer), card.description)
    out.print(table)


def main() -> None:
    """Entry point of the `camserve` command."""
    app(prog_name="camserve")
