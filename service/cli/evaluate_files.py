"""Compares methods over the images of folders: how faithful their maps are, how long they take. Table, CSV, plot."""

from __future__ import annotations

import asyncio
import csv
import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from service.cli.explain_files import DEADLINE_S, find_images, image_progress
from service.engine.types import Evaluation
from service.errors import ImageError, ParameterInvalid
from service.explain.explainer import Explainer
from service.explain.options import ExplainOptions
from service.explain.plan import ImageInput
from service.explain.registry import Registry
from service.explain.results import ExplainResult
from service.explain.scheduler import Deadline
from service.imaging.encode import encode_image
from service.imaging.plots import GREY, OKABE_ITO, Curve, CurveChart, LineStyle, plot_curves
from service.settings import Settings
from service.telemetry import Metrics

FIGURES = ("deletion", "insertion", "average_drop", "road")
COLUMNS = ("file", "class_id", "label", "map", *FIGURES, "ms")
BASELINES = {"random": "random map", "center": "map of the centre"}
BASELINE_LINES: Final[dict[str, LineStyle]] = {"random": "dashed", "center": "dotted"}
METHOD_LINES: Final[tuple[LineStyle, ...]] = (
    "solid",
    "dashdot",
    "dashed",
)  # the next one each time that the colours are used up


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodEvaluation:
    """One method on one class of one file; `infer_ms` is of the network, for all of the file's classes."""

    file: Path
    method: str
    class_id: int
    label: str
    infer_ms: float
    evaluation: Evaluation


def evaluate_files(
    paths: Iterable[Path], folder: Path, methods: Sequence[str], options: ExplainOptions, settings: Settings, out: Console
) -> int:
    """Measures every method on every image, writes `folder/evaluation.csv` and `folder/evaluation.png`, prints a table.

    Returns:
        How many files could not be read as images.

    Raises:
        ConfigurationError: the model cannot be loaded.
        CamserveError: a method or an option does not fit the model.
    """
    files = find_images(paths)
    evaluations, failed = asyncio.run(_measure_all(files, methods, options, settings, out))
    for unread, reason in failed.items():
        out.print(f"[red]{unread.name}: {reason}[/]")
    if not evaluations:
        raise ParameterInvalid("None of the files is an image that can be explained.")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "evaluation.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(_rows(evaluations))
    (folder / "evaluation.png").write_bytes(encode_image(_plot(evaluations), "png"))
    out.print(_table(evaluations))
    out.print(f"{folder / 'evaluation.csv'}, {folder / 'evaluation.png'}", soft_wrap=True)
    return len(failed)


async def _measure_all(
    files: Sequence[Path], methods: Sequence[str], options: ExplainOptions, settings: Settings, out: Console
) -> tuple[list[MethodEvaluation], dict[Path, str]]:
    models = (options.model,) if options.model else settings.models
    options = options.model_copy(update={"model": None})  # the only model, and the default
    settings = settings.model_copy(update={"models": models, "cache_entries": 0})  # what is timed must be done
    metrics = Metrics()
    registry = Registry(settings, metrics)
    evaluations: list[MethodEvaluation] = []
    failed: dict[Path, str] = {}
    with ThreadPoolExecutor(settings.codec_threads) as codecs:
        with out.status("loading the model"):
            await registry.start()
        explainer = Explainer(registry, settings, codecs, metrics)
        for method in methods:
            registry.get(None).network.resolve_method(method)  # better now than after an hour
        runs = [(file, method) for file in files for method in methods]
        with image_progress(out) as progress:
            task = progress.add_task("measuring", total=len(runs))
            started = time.perf_counter()
            # One at a time, for they are timed.
            for number, (file, method) in enumerate(runs):
                try:
                    evaluations += await _measure(explainer, file, method, options)
                except ImageError as error:
                    failed[file] = error.detail
                except OSError as error:
                    failed[file] = error.strerror or "cannot be read"
                progress.advance(task)
                if number == 0:
                    _print_estimate(files, methods, time.perf_counter() - started, out)
        await registry.close()
    return evaluations, failed


def _print_estimate(files: Sequence[Path], methods: Sequence[str], seconds: float, out: Console) -> None:
    """How long all of it will take, from the time of the first image and method."""
    total = seconds * len(files) * len(methods)
    length = f"{total / 60:.0f} minutes" if total > 90 else f"{total:.0f} seconds"
    out.print(f"images: {len(files)}, methods: {len(methods)}, together about {length}", highlight=False)


async def _measure(explainer: Explainer, file: Path, method: str, options: ExplainOptions) -> list[MethodEvaluation]:
    asked = options.model_copy(update={"method": method, "evaluate": True, "heatmap": "none"})
    image = ImageInput(await asyncio.to_thread(file.read_bytes), options)
    async with (deadline := Deadline(DEADLINE_S)).enforce():
        answer = await explainer.explain([image], asked, "json", deadline)
    return [
        MethodEvaluation(
            file=file,
            method=method,
            class_id=explanation.class_id,
            label=explanation.label,
            infer_ms=answer.timings.infer,
            evaluation=explanation.evaluation,
        )
        for result in answer.results
        if isinstance(result, ExplainResult)
        for explanation in result.explanations
        if explanation.evaluation is not None
    ]


def _rows(evaluations: Sequence[MethodEvaluation]) -> Iterable[tuple[object, ...]]:
    for item in evaluations:
        for name in ("map", *BASELINES):
            faithfulness = getattr(item.evaluation, name)
            figures = (f"{getattr(faithfulness, figure):.6f}" for figure in FIGURES)
            label = item.method if name == "map" else f"{BASELINES[name]} for {item.method}"
            yield item.file, item.class_id, item.label, label, *figures, f"{item.infer_ms:.1f}" if name == "map" else ""


def _groups(evaluations: Sequence[MethodEvaluation]) -> dict[str, tuple[str, list[MethodEvaluation]]]:
    """Name of a row -> (which map of an evaluation, whose evaluations): the methods, then the baselines over all of them."""
    groups = {
        method: ("map", [item for item in evaluations if item.method == method])
        for method in dict.fromkeys(item.method for item in evaluations)
    }
    return groups | {label: (name, list(evaluations)) for name, label in BASELINES.items()}


def _mean(kind: str, figure: str, group: Sequence[MethodEvaluation]) -> float:
    return statistics.fmean(getattr(getattr(item.evaluation, kind), figure) for item in group)


def _table(evaluations: Sequence[MethodEvaluation]) -> Table:
    label = Column("map", no_wrap=True)
    table = Table(label, "deletion (low)", "insertion (high)", "average drop (low)", "ROAD (high)", "ms per image")
    for name, (kind, group) in _groups(evaluations).items():
        figures = (f"{_mean(kind, figure, group):.3f}" for figure in FIGURES)
        mean_ms = statistics.fmean(item.infer_ms for item in group)
        table.add_row(name, *figures, f"{mean_ms:.0f}" if kind == "map" else "", style=None if kind == "map" else "dim")
    return table


def _plot(evaluations: Sequence[MethodEvaluation]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Mean curves of every method and of the baselines."""

    def curves(figure: str) -> tuple[Curve, ...]:
        made = []
        for place, (label, (kind, group)) in enumerate(_groups(evaluations).items()):
            means = np.mean([getattr(getattr(one.evaluation, kind), f"{figure}_curve") for one in group], axis=0)
            turn, color = divmod(place, len(OKABE_ITO))
            spent = f", {statistics.fmean(one.infer_ms for one in group):.0f} ms" if kind == "map" else ""
            made.append(
                Curve(
                    label=label,
                    note=f"area {_mean(kind, figure, group):.3f}{spent}",
                    values=tuple(means.tolist()),
                    color=OKABE_ITO[color] if kind == "map" else GREY,
                    line_style=METHOD_LINES[turn % len(METHOD_LINES)] if kind == "map" else BASELINE_LINES[kind],
                )
            )
        return tuple(made)

    files = len({one.file for one in evaluations})
    return plot_curves(
        (
            CurveChart(
                title="Deletion: lower is better",
                x_label="fraction of the pixels removed, hottest first",
                y_label="probability of the class",
                curves=curves("deletion"),
            ),
            CurveChart(
                title="Insertion: higher is better",
                x_label="fraction of the pixels put into the blurred image, hottest first",
                y_label="probability of the class",
                curves=curves("insertion"),
            ),
        ),
        title=f"Faithfulness, mean over {files} {'image' if files == 1 else 'images'}",
        note="In brackets: the area under the curve, and milliseconds of the network for one image.",
    )
