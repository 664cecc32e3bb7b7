"""Compares methods over the images of folders: how faithful their maps are, how long they take. Table, CSV, plot."""

from __future__ import annotations

import asyncio
import csv
import statistics
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from service.cli.files import DEADLINE_S, find_images
from service.errors import ImageError, ParameterInvalid
from service.explain.explainer import Explainer
from service.explain.options import Options
from service.explain.registry import Registry
from service.explain.results import Evaluation, ImageInput
from service.imaging.encode import encode_image
from service.imaging.plots import INKS, Axes, Line, plot
from service.settings import Settings
from service.telemetry import Metrics

FIGURES = ("deletion", "insertion", "average_drop", "road")
COLUMNS = ("file", "class_id", "label", "map", *FIGURES, "ms")
BASELINES = {"random": "random map", "center": "map of the centre"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One method on one class of one file; `infer_ms` is of the network, for all of the file's classes."""

    file: Path
    method: str
    class_id: int
    label: str
    infer_ms: float
    evaluation: Evaluation


def evaluate_files(
    paths: Iterable[Path], folder: Path, methods: Sequence[str], options: Options, settings: Settings, out: Console
) -> int:
    """Measures every method on every image, writes `folder/evaluation.csv` and `folder/evaluation.png`, prints a table.

    Returns:
        How many files could not be read as images.

    Raises:
        ConfigurationError: the model cannot be loaded.
        CamserveError: a method or an option does not fit the model.
    """
    files = find_images(paths)
    measured, failed = asyncio.run(_measure_all(files, methods, options, settings, out))
    for unread, reason in failed.items():
        out.print(f"[red]{unread.name}: {reason}[/]")
    if not measured:
        raise ParameterInvalid("None of the files is an image that can be explained.")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "evaluation.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(_rows(measured))
    (folder / "evaluation.png").write_bytes(encode_image(_plot(measured), "png"))
    out.print(_table(measured))
    out.print(f"{folder / 'evaluation.csv'}, {folder / 'evaluation.png'}", soft_wrap=True)
    return len(failed)


async def _measure_all(
    files: Sequence[Path], methods: Sequence[str], options: Options, settings: Settings, out: Console
) -> tuple[list[Measured], dict[Path, str]]:
    models = (options.model,) if options.model else settings.models
    settings = settings.model_copy(update={"models": models, "cache_entries": 0})  # what is timed must be done
    metrics = Metrics()
    registry = Registry(settings, metrics)
    measured: list[Measured] = []
    failed: dict[Path, str] = {}
    with ThreadPoolExecutor(settings.codec_threads) as codecs:
        with out.status("loading the model"):
            await registry.start()
        explainer = Explainer(registry, settings, codecs, metrics)
        for method in methods:
            registry.get(None).network.method(method)  # better now than after an hour
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=out, transient=True) as progress:
            task = progress.add_task("measuring", total=len(files) * len(methods))
            # One at a time, for they are timed.
            for file in files:
                for method in methods:
                    try:
                        measured += await _measure(explainer, file, method, options)
                    except ImageError as error:
                        failed[file] = error.detail
                    except OSError as error:
                        failed[file] = error.strerror or "cannot be read"
                    progress.advance(task)
        await registry.close()
    return measured, failed


async def _measure(explainer: Explainer, file: Path, method: str, options: Options) -> list[Measured]:
    asked = options.model_copy(update={"method": method, "evaluate": True, "heatmap": "none"})
    subject = ImageInput(await asyncio.to_thread(file.read_bytes), options.targets)
    answer = await explainer.explain([subject], asked, "json", asyncio.get_running_loop().time() + DEADLINE_S)
    return [
        Measured(
            file=file,
            method=method,
            class_id=found.prediction.class_id,
            label=found.prediction.label,
            infer_ms=answer.timings.infer,
            evaluation=found.evaluation,
        )
        for result in answer.results
        for found in result.explanations
        if found.evaluation is not None
    ]


def _rows(measured: Sequence[Measured]) -> Iterable[tuple[object, ...]]:
    for one in measured:
        for name in ("map", *BASELINES):
            faithfulness = getattr(one.evaluation, name)
            figures = (f"{getattr(faithfulness, figure):.6f}" for figure in FIGURES)
            label = one.method if name == "map" else f"{BASELINES[name]} for {one.method}"
            yield one.file, one.class_id, one.label, label, *figures, f"{one.infer_ms:.1f}" if name == "map" else ""


def _groups(measured: Sequence[Measured]) -> dict[str, tuple[str, list[Measured]]]:
    """Name of a row -> (which map of an evaluation, whose evaluations): the methods, then the baselines over all of them."""
    groups = {
        method: ("map", [one for one in measured if one.method == method])
        for method in dict.fromkeys(one.method for one in measured)
    }
    return groups | {label: (name, list(measured)) for name, label in BASELINES.items()}


def _mean(kind: str, figure: str, group: Sequence[Measured]) -> float:
    return statistics.fmean(getattr(getattr(one.evaluation, kind), figure) for one in group)


def _table(measured: Sequence[Measured]) -> Table:
    label = Column("map", no_wrap=True)
    table = Table(label, "deletion (low)", "insertion (high)", "average drop (low)", "ROAD (high)", "ms per image")
    for name, (kind, group) in _groups(measured).items():
        figures = (f"{_mean(kind, figure, group):.3f}" for figure in FIGURES)
        spent = statistics.fmean(one.infer_ms for one in group)
        table.add_row(name, *figures, f"{spent:.0f}" if kind == "map" else "", style=None if kind == "map" else "dim")
    return table


def _plot(measured: Sequence[Measured]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Mean curves of every method."""

    def lines(figure: str) -> tuple[Line, ...]:
        made = []
        for place, (label, (kind, group)) in enumerate(_groups(measured).items()):
            curves = [getattr(getattr(one.evaluation, kind), f"{figure}_curve") for one in group]
            spent = f", {statistics.fmean(one.infer_ms for one in group):.0f} ms" if kind == "map" else ""
            text = f"{label}: area {_mean(kind, figure, group):.3f}{spent}"
            made.append(Line(text, tuple(np.mean(curves, axis=0).tolist()), INKS[place % len(INKS)]))
        return tuple(made)

    files = len({one.file for one in measured})
    return plot(
        (
            Axes(
                "Deletion: probability of the class, low is good",
                "part of the pixels removed, hottest first",
                lines("deletion"),
            ),
            Axes(
                "Insertion: probability of the class, high is good",
                "part of the pixels put into the blurred image, hottest first",
                lines("insertion"),
            ),
        ),
        title=f"Faithfulness, mean over {files} images",
        note="Beside each area: milliseconds of the network for one image.",
    )
