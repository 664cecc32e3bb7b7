"""The command line: serve, explain files without a server, list and measure models. All work is done by the other rooms."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

from cyclopts import App, Parameter
from cyclopts.types import ExistingFile, ExistingPath
from cyclopts.validators import Number
from pydantic import ValidationError
from rich.console import Console

from service import __version__
from service.cli.parameters import (
    COMMAND,
    FIELDS_AS_OPTIONS,
    BenchSettings,
    CardSettings,
    EvaluateCommandOptions,
    EvaluateSettings,
    ExplainCommandOptions,
    ExplainSettings,
    ModelsSettings,
    ServeSettings,
    describe_refused_fields,
    format_error,
    format_message,
)
from service.cli.platform_arguments import adapt_arguments
from service.errors import CamserveError, ConfigurationError
from service.settings import Settings

# Torch takes seconds to import, and --help should not: commands import what they run when they run.

SOME_FAILED = 1
WRONG_COMMAND_LINE = 2
FAILED_START = 3  # a card, its weights or a setting is wrong

# Imports and exports create millions of objects that stay; at Python's own threshold of 700 the collector walks them so often
# that the start takes a second longer. See `tests/bench/NOTES.md`.
COLLECTION_THRESHOLDS = (10_000, 10, 10)

SettingsT = TypeVar("SettingsT", bound=Settings)

out = Console()
err = Console(stderr=True, soft_wrap=True)
app = App(
    name="camserve",
    help="Explanations for image classifiers: over HTTP (serve) or for files (explain).",
    version=__version__,
    help_format="plaintext",  # descriptions as they are written, and no parser of Markdown to import
    console=out,
    error_console=err,
    error_formatter=format_error,
    group_parameters=COMMAND,
    # Of an option with one value the last counts, so that a script's options can be changed by what is written behind them.
    default_parameter=Parameter(negative_iterable=(), allow_repeating=True),
)


def fail(message: str, *, code: int) -> NoReturn:
    """Says what is wrong on standard error and ends the command."""
    err.print(format_message(message))
    sys.exit(code)


@contextmanager
def report_errors(code: int = 1) -> Iterator[None]:
    """What stops a command is told in a line, not a traceback: with FAILED_START where it could not begin, else with `code`."""
    try:
        yield
    except ConfigurationError as error:
        fail(str(error), code=FAILED_START)
    except CamserveError as error:
        fail(error.detail, code=code)


def read_environment(settings: type[SettingsT]) -> SettingsT:
    """The settings of a command that was given none of its options for them. A wrong value ends the command."""
    try:
        return settings()
    except ValidationError as error:
        fail(describe_refused_fields(error, {}), code=WRONG_COMMAND_LINE)


def _names(text: str) -> tuple[str, ...]:
    """The names in a list with commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def configure_command_logging(settings: Settings) -> None:
    """Logs go to standard error, and of a command that answers with a table only warnings, unless CAMSERVE_LOG_LEVEL is set."""
    from service.telemetry import configure_logging  # noqa: PLC0415

    level = settings.log_level if "log_level" in settings.model_fields_set else "warning"
    configure_logging(settings.model_copy(update={"log_level": level}))


@app.command(sort_key=1)
def serve(*, settings: Annotated[ServeSettings | None, FIELDS_AS_OPTIONS] = None) -> None:
    """Serve over HTTP. Every option is also an environment variable: --max-batch-size is CAMSERVE_MAX_BATCH_SIZE."""
    from service.cli.server import run  # noqa: PLC0415

    with report_errors():
        run(settings or read_environment(ServeSettings))


@app.command(sort_key=2)
def explain(
    *paths: Annotated[ExistingPath, Parameter(help="Images, or folders of images.", required=True)],
    out_dir: Annotated[Path, Parameter(name="--out", help="Folder for the overlays and for explanations.csv.")] = Path("out"),
    options: Annotated[ExplainCommandOptions | None, FIELDS_AS_OPTIONS] = None,
    settings: Annotated[ExplainSettings | None, FIELDS_AS_OPTIONS] = None,
) -> int:
    """Explain images on this machine, without a server: an overlay for each, a table, and a CSV of what was found."""
    from service.cli.explain_files import explain_files  # noqa: PLC0415

    settings = settings or read_environment(ExplainSettings)
    configure_command_logging(settings)
    with report_errors(code=WRONG_COMMAND_LINE):
        unexplained = explain_files(paths, out_dir, options or ExplainCommandOptions(), settings, out)
    return SOME_FAILED if unexplained else 0


@app.command(sort_key=3)
def evaluate(
    *paths: Annotated[ExistingPath, Parameter(help="Images, or folders of images.", required=True)],
    methods: Annotated[str, Parameter(help="Methods to compare, with commas.")] = "gradcam,layercam,eigencam",
    out_dir: Annotated[Path, Parameter(name="--out", help="Folder for evaluation.csv and evaluation.png.")] = Path("out"),
    options: Annotated[EvaluateCommandOptions | None, FIELDS_AS_OPTIONS] = None,
    settings: Annotated[EvaluateSettings | None, FIELDS_AS_OPTIONS] = None,
) -> int:
    """Compare methods over images: deletion, insertion, average drop, ROAD and time, beside a random and a centre map."""
    from service.cli.evaluate_files import evaluate_files  # noqa: PLC0415

    settings = settings or read_environment(EvaluateSettings)
    configure_command_logging(settings)
    with report_errors(code=WRONG_COMMAND_LINE):
        unread = evaluate_files(paths, out_dir, _names(methods), options or EvaluateCommandOptions(), settings, out)
    return SOME_FAILED if unread else 0


@app.command(sort_key=4)
def models(*, settings: Annotated[ModelsSettings | None, FIELDS_AS_OPTIONS] = None) -> None:
    """List the model cards."""
    from service.cli.card_table import print_cards  # noqa: PLC0415

    settings = settings or read_environment(ModelsSettings)
    with report_errors():
        print_cards(settings.models_dir, out)


@app.command(sort_key=5)
def card(
    model: Annotated[
        str, Parameter(help="A reference, such as timm/resnet50.a1_in1k or the path of a folder; or a card's name.")
    ],
    *,
    target: Annotated[Path | None, Parameter(name="--out", help="File to write; standard output if not given.")] = None,
    settings: Annotated[CardSettings | None, FIELDS_AS_OPTIONS] = None,
) -> None:
    """Write the complete card of a model: digest, labels, preprocessing, layer. Kept, it makes the model reproducible."""
    from service.cli.card_text import write_card  # noqa: PLC0415

    settings = settings or read_environment(CardSettings)
    configure_command_logging(settings)
    with report_errors():
        text = write_card(model, settings, target)
    if target is None:
        sys.stdout.write(text)
    else:
        target.write_text(text, encoding="utf-8")


@app.command(sort_key=6)
def check(
    model: Annotated[str | None, Parameter(help="A card's name or a reference; the first model served if not given.")] = None,
    *paths: Annotated[ExistingPath, Parameter(help="Images, or folders of images; photographs of the service if none.")],
    methods: Annotated[
        str, Parameter(help="Methods whose faithfulness is measured beside random and centre maps, with commas.")
    ] = "gradcam,layercam,eigencam",
    every: Annotated[bool, Parameter(name="--all", negative=(), help="Check methods of many passes too: minutes.")] = False,
    keep: Annotated[bool, Parameter(negative=(), help="Keep the scores beside the card, for GET /models/{model}.")] = False,
    json: Annotated[bool, Parameter(negative=(), help="Print everything as JSON.")] = False,
    settings: Annotated[BenchSettings | None, FIELDS_AS_OPTIONS] = None,
) -> int:
    """Check a model before it serves: where it came from, its layer, speed, and whether its maps depend on the class.

    Ends with code 1 where it would not serve well.
    """
    from service.cli.check_model import check_files  # noqa: PLC0415

    settings = settings or read_environment(BenchSettings)
    configure_command_logging(settings)
    with report_errors():
        report = check_files(model, paths, _names(methods), settings, out, every=every, keep=keep, as_json=json)
    return SOME_FAILED if report.problems else 0


@app.command(sort_key=7)
def show(*files: Annotated[ExistingFile, Parameter(help="PNG, JPEG or WebP images.", required=True)]) -> int:
    """Show what overlays say of themselves: model, class, probability, method and request, kept inside the file.

    Ends with code 1 where a file says nothing.
    """
    from service.cli.show_files import show_files  # noqa: PLC0415

    return SOME_FAILED if show_files(files, out, err) else 0


@app.command(sort_key=8)
def bench(
    *,
    model: Annotated[str | None, Parameter(help="Name of a model card; the first served if not given.")] = None,
    rounds: Annotated[
        int, Parameter(validator=Number(gte=1, lte=10_000), help="Measurements of each kind; medians are shown.")
    ] = 20,
    settings: Annotated[BenchSettings | None, FIELDS_AS_OPTIONS] = None,
) -> None:
    """Measure a model on this machine: how long it takes to load, to predict and to explain."""
    from service.cli.benchmark import run  # noqa: PLC0415

    settings = settings or read_environment(BenchSettings)
    configure_command_logging(settings)
    with report_errors():
        run(settings.model_copy(update={"models": (model,)}) if model else settings, rounds, out)


def main() -> None:
    """Entry point of the `camserve` command."""
    gc.set_threshold(*COLLECTION_THRESHOLDS)
    arguments, ignored = adapt_arguments(sys.argv[1:])
    if not arguments:
        app.help_print()
        sys.exit(WRONG_COMMAND_LINE)
    if ignored:
        err.print(format_message(f"these arguments of a platform mean nothing here and are ignored: {', '.join(ignored)}"))
    app(arguments)
