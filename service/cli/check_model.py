"""`camserve check`: loads a model as the service would, and says on one screen what its owner must know before it serves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic_core import to_json
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from service.cli.benchmark import measure
from service.cli.explain_files import find_images
from service.engine.device import memory_use
from service.engine.layer_choice import LayerChoice
from service.engine.runtimes.choice import RuntimeChoice
from service.engine.runtimes.precision import PHOTOGRAPHS
from service.errors import CamserveError, ConfigurationError
from service.explain.model import Model, check_path
from service.explain.model_check import check_model, methods_to_check, problems
from service.explain.preprocess import PreparedImage, preprocess
from service.explain.registry import Registry
from service.explain.results import FaithfulnessScores, ModelCheck, ModelInfo
from service.imaging.headers import Limits
from service.settings import Settings
from service.telemetry import Metrics

ROUNDS: Final = 10  # measurements of the time of a prediction and an explanation
ALTERNATIVES: Final = 4  # other layers that are named


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """Everything that a check tells, as `--json` prints it.

    Attributes:
        info: what `GET /models/{model}` tells.
        weights: where they came from.
        labels: where they came from, and how many of them differ from the source's own.
        layer_choice: why the default layer is the default, what was tried before, what else could be named.
        runtime_choice: engine and precision, what was gained, what was refused and why.
        load_s: seconds until the model was ready to serve.
        memory_bytes: in use with the model loaded, see `memory_use`.
        parameter_bytes: of the network's parameters and buffers.
        predict_ms, explain_ms: milliseconds of one image through the network, medians.
        inapplicable: methods that do not fit -> why.
        check: of the methods.
        problems: why it would not serve well.
    """

    info: ModelInfo
    weights: str
    labels: str
    layer_choice: LayerChoice
    runtime_choice: RuntimeChoice
    load_s: float
    memory_bytes: int
    parameter_bytes: int
    predict_ms: float
    explain_ms: float
    inapplicable: dict[str, str]
    check: ModelCheck
    problems: tuple[str, ...]


def check_files(
    model: str | None,
    paths: Iterable[Path],
    evaluated: Sequence[str],
    settings: Settings,
    out: Console,
    *,
    every: bool = False,
    keep: bool = False,
    as_json: bool = False,
) -> CheckReport:
    """Checks one model and prints what was found.

    Args:
        model: a card's name or a reference; None for the first model of the settings.
        paths: images or folders of images; none for the photographs that come with the service.
        evaluated: methods whose faithfulness is measured.
        settings: as the service would have them.
        out: where to print.
        every: whether methods of many passes are checked too.
        keep: whether the check is kept beside the card, where `GET /models/{model}` finds it.
        as_json: whether JSON is printed in place of tables.

    Raises:
        ConfigurationError: the model cannot be loaded, or it has no card beside which to keep the check.
        CamserveError: an image cannot be read, or the network fails.
    """
    if model is not None:
        settings = settings.model_copy(update={"models": (model,)})
    files = find_images(paths) if (paths := tuple(paths)) else sorted(PHOTOGRAPHS.glob("*.jpg"))
    return asyncio.run(_check(files, evaluated, settings, out, every=every, keep=keep, as_json=as_json))


async def _check(
    files: Sequence[Path], evaluated: Sequence[str], settings: Settings, out: Console, *, every: bool, keep: bool, as_json: bool
) -> CheckReport:
    registry = Registry(settings, Metrics())
    err = Console(stderr=True, quiet=as_json)
    started = time.perf_counter()
    with err.status("loading the model"):
        await registry.start()
    loaded_s = time.perf_counter() - started
    served = registry.get(None)
    try:
        if keep and served.card.reference is not None and not served.card.weights.file:
            raise ConfigurationError(
                f"model {served.card.reference}: a reference has no card beside which to keep the check; write one with "
                f"camserve card {served.card.reference} --out {settings.models_dir}/{served.card.name}.toml"
            )
        report = await asyncio.to_thread(_report, served, files, evaluated, err, loaded_s, every=every)
    finally:
        await registry.close()
    if keep:
        check_path(served.card).write_bytes(to_json(report.check, indent=1))
    if as_json:
        out.out(to_json(report, indent=2).decode(), highlight=False)
    else:
        _print(report, served, out)
    return report


def _report(
    model: Model, files: Sequence[Path], evaluated: Sequence[str], console: Console, loaded_s: float, *, every: bool
) -> CheckReport:
    network, card = model.network, model.card
    memory = memory_use(network.device)
    timing = measure(network, 1, ROUNDS)
    images = [_read(file, model) for file in files]
    methods = methods_to_check(model, every=every)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("checking methods", total=len(methods) + len(images))
        check = check_model(model, images, methods, evaluated, lambda: progress.advance(task))
    return CheckReport(
        info=model.describe(),
        weights=str(card.weights),
        labels=_labels(model),
        layer_choice=network.layer_choice,
        runtime_choice=network.runtime_choice,
        load_s=loaded_s,
        memory_bytes=memory,
        parameter_bytes=network.parameter_bytes,
        predict_ms=1000 * timing.predict_s,
        explain_ms=1000 * timing.explain_s,
        inapplicable=dict(network.inapplicable),
        check=check,
        problems=tuple(problems(check, network.layer_choice.warning)),
    )


def _read(file: Path, model: Model) -> PreparedImage:
    """One image as the network sees it.

    Raises:
        ImageInvalid: it cannot be read; the message names the file.
    """
    own = model.network.preprocessing
    try:
        return preprocess(file.read_bytes(), Limits(), own, own.fit)
    except CamserveError as error:
        raise type(error)(f"{file}: {error.detail}") from error


def _labels(model: Model) -> str:
    """Where the labels came from, and how many of them the source calls otherwise."""
    card, stated = model.card.labels, model.network.labels
    origin = card.dataset or card.file or (f"{len(card.names)} in the card" if card.names else "")
    if not origin:
        return "the source's own" if stated is not None and len(stated) == len(model.labels) else "none stated: numbers"
    if stated is None or len(stated) != len(model.labels):
        return origin
    pairs = zip(model.labels.labels, stated.labels, strict=True)
    differing = [index for index, (own, other) in enumerate(pairs) if own.casefold() != other.casefold()]
    if not differing:
        return f"{origin}, all as the source states them"
    first = differing[0]
    return (
        f"{origin}; {len(differing)} differ from the source's, such as {first}: "
        f"{model.labels.labels[first]!r}, there {stated.labels[first]!r}"
    )


def _print(report: CheckReport, model: Model, out: Console) -> None:
    """The report on one screen, 80 columns wide or more."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for name, text in _facts(report, model):
        facts.add_row(name, Text(text))
    out.print(facts)
    out.print(_method_table(report.check))
    out.print(
        Text(
            f"{report.check.images} images, best class. sanity: rank correlation of maps after the head's weights are shuffled."
        )
    )
    if report.inapplicable:
        out.print(Text(f"do not fit: {', '.join(report.inapplicable)}"))
    for problem in report.problems:
        out.print(Text.assemble(("would not serve well: ", "bold red"), problem))
    if not report.problems:
        out.print(Text(f"{report.info.name} would serve well", style="bold green"))


def _facts(report: CheckReport, model: Model) -> Iterator[tuple[str, str]]:
    info, own, parameters = report.info, model.network.preprocessing, report.parameter_bytes / 4e6
    yield "model", " · ".join(part for part in (info.name, info.reference, info.description) if part)
    yield "weights", " · ".join(part for part in (report.weights, info.revision, str(info.digest)) if part)
    yield (
        "input",
        f"{own.height} x {own.width}, {len(own.mean)} channels, {own.fit}, short side {own.resize}, {own.interpolation}",
    )
    yield "labels", f"{info.classes} classes, {report.labels}"
    for layer in (model.network.layers[name] for name in info.default_layer):
        size = f"{layer.channels} channels on {layer.grid[0]} x {layer.grid[1]} ({layer.layout})"
        yield "layer", f"{layer.name}: {size}; {report.layer_choice.reason}"
    for rejected, reason in report.layer_choice.rejected:
        yield "not", f"{rejected}: {reason}"
    others = ", ".join(report.layer_choice.alternatives[:ALTERNATIVES]) or "none"
    yield "others", f"{others}; {len(model.network.layers)} layers can be named"
    yield "engine", _engine(report)
    yield "load", f"{report.load_s:.1f} s"
    yield "memory", f"{report.memory_bytes / 1e6:.0f} MB in use, {parameters:.1f} million parameters"
    yield "one image", f"predict {report.predict_ms:.1f} ms, explain {report.explain_ms:.1f} ms"


def _engine(report: CheckReport) -> str:
    """Engine, precision and device; what bfloat16 gained or why it was refused."""
    info, choice = report.info, report.runtime_choice
    text = f"{info.engine} in {info.precision} on {info.device}"
    if choice.precision == "bf16" and choice.gain is not None:
        text += f", {choice.gain:.2f} times as fast as fp32"
    for name, reason in (("bf16", choice.bf16_refused), ("openvino", choice.openvino_refused)):
        text += f"; {name} refused: {reason}" if reason is not None else ""
    return text


def _method_table(check: ModelCheck) -> Table:
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("ms", "sanity", "deletion", "insertion")]
    table = Table(
        Column("method", no_wrap=True), *numbers, Column("here the map", no_wrap=True), box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for one in check.methods:
        sanity = "" if one.sanity is None else f"{one.sanity:.2f}"
        table.add_row(one.method, f"{one.ms:.0f}", sanity, *_scores(one.faithfulness), one.verdict)
    for name, scores in (("random map", check.random), ("centre map", check.center)):
        if scores is not None:
            table.add_row(name, "", "", *_scores(scores), "is a baseline", style="dim")
    return table


def _scores(scores: FaithfulnessScores | None) -> tuple[str, str]:
    return ("", "") if scores is None else (f"{scores.deletion:.3f}", f"{scores.insertion:.3f}")
