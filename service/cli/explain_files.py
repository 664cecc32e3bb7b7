"""Explains the images of folders with the service's own explainer, in process: overlays, a table and a CSV."""

from __future__ import annotations

import asyncio
import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from service.errors import DeadlineExceeded, EngineError, ImageError, ParameterInvalid
from service.explain.explainer import Explainer
from service.explain.options import ExplainOptions
from service.explain.plan import ImageInput
from service.explain.registry import Registry
from service.explain.results import ExplainResult, Explanation
from service.explain.scheduler import Deadline
from service.settings import Settings
from service.telemetry import Metrics

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".mpo"}
DEADLINE_S = 3600.0  # no client waits at a connection
SHOWN_ROWS = 40
COLUMNS = (
    "file",
    "overlay",
    "class_id",
    "label",
    "wordnet_id",
    "probability",
    "logit",
    "raw_max",
    "raw_unit",
    "blank",
    "error",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationRecord:
    """The explanation of one class of one file, or why the file has none: a row of the table and of the CSV."""

    file: Path
    overlay: Path | None = None
    explanation: Explanation | None = None
    error: str = ""

    def cells(self) -> tuple[str, ...]:
        """The record's values in order of `COLUMNS`."""
        if self.explanation is None:
            return (str(self.file), *[""] * (len(COLUMNS) - 2), self.error)
        prediction = self.explanation
        return (
            str(self.file), str(self.overlay or ""), str(prediction.class_id), prediction.label, prediction.wordnet_id or "",
            f"{prediction.probability:.6f}", f"{prediction.logit:.6f}", f"{prediction.raw_max:.6g}", prediction.raw_unit,
            str(self.explanation.blank).lower(), "",
        )  # fmt: skip


def find_images(paths: Iterable[Path]) -> list[Path]:
    """The files named, and every image below the folders named, by suffix, in order of their names.

    Raises:
        ParameterInvalid: there is none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        below = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()) if path.is_dir() else [path]
        found.update(dict.fromkeys(below))
    if not found:
        raise ParameterInvalid(f"No images there. Folders are searched for {', '.join(sorted(SUFFIXES))}.")
    return list(found)


def name_overlays(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """A PNG file in `folder` for each image file, called as the image is called: `dog.png` for `dog.jpg`.

    The name gets a number, `dog-2.png`, where an earlier overlay has the plain one already (upper and lower case are the same,
    as in some file systems) or where the plain one is the path of an image to be explained, which must not be overwritten.
    """
    plain_names = {f"{file.stem}.png".casefold() for file in files}
    images = {str(file.resolve()).casefold() for file in files}
    root = folder.resolve()
    numbers: Counter[str] = Counter()
    overlays = {}
    for file in files:
        while True:
            numbers[file.stem.casefold()] += 1
            number = numbers[file.stem.casefold()]
            name = f"{file.stem}.png" if number == 1 else f"{file.stem}-{number}.png"
            is_for_another = number > 1 and name.casefold() in plain_names
            if not is_for_another and str(root / name).casefold() not in images:
                break
        overlays[file] = folder / name
    return overlays


def explain_files(paths: Iterable[Path], folder: Path, options: ExplainOptions, settings: Settings, out: Console) -> int:
    """Explains every image, writes its overlay (see `name_overlays`) and `folder/explanations.csv`, prints a table.

    Returns:
        How many files could not be explained; each is told in the table and the CSV.

    Raises:
        ConfigurationError: the model cannot be loaded.
        CamserveError: the options do not fit the model.
    """
    files = find_images(paths)
    folder.mkdir(parents=True, exist_ok=True)
    overlays = name_overlays(files, folder)
    records = asyncio.run(_explain_all(overlays, options, settings, out))
    with (folder / "explanations.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(record.cells() for record in records)
    _print(records, folder, out)
    return len({record.file for record in records if record.error})


class RateColumn(ProgressColumn):
    """Images per second, once the first are done."""

    def render(self, task: Task) -> Text:
        """The rate as text, or nothing."""
        return Text(f"{task.speed:.1f} a second" if task.speed else "", style="progress.data.speed")


def image_progress(out: Console) -> Progress:
    """A progress bar with what is done, how fast, and how long the rest will take."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    return Progress(*columns, console=out, transient=True)


async def _explain_all(
    overlays: Mapping[Path, Path], options: ExplainOptions, settings: Settings, out: Console
) -> list[ExplanationRecord]:
    if options.model:  # a reference too; the model that it names is then the only one, and the default
        settings = settings.model_copy(update={"models": (options.model,)})
        options = options.model_copy(update={"model": None})
    metrics = Metrics()
    registry = Registry(settings, metrics)
    with ThreadPoolExecutor(settings.codec_threads) as codecs:
        with out.status("loading the model"):
            await registry.start()
        explainer = Explainer(registry, settings, codecs, metrics)
        # Enough at once to fill a batch while the next is being decoded, no more: images are held in memory.
        at_once = asyncio.Semaphore(2 * settings.max_batch_size)
        with image_progress(out) as progress:
            task = progress.add_task("explaining", total=len(overlays))

            async def explain(file: Path, overlay: Path) -> list[ExplanationRecord]:
                async with at_once:
                    records = await _explain_file(explainer, file, overlay, options)
                progress.advance(task)
                return records

            records_of_files = await asyncio.gather(*(explain(file, overlay) for file, overlay in overlays.items()))
        await registry.close()
    return [record for records in records_of_files for record in records]


async def _explain_file(explainer: Explainer, file: Path, target: Path, options: ExplainOptions) -> list[ExplanationRecord]:
    """One image: its overlay, or where several classes are asked for a sheet with a row each."""
    try:
        data = await asyncio.to_thread(file.read_bytes)
    except OSError as error:
        return [ExplanationRecord(file=file, error=error.strerror or "cannot be read")]
    several = len(options.class_id) + len(options.class_name) > 1 or (options.top_k or 1) > 1
    rendering = options.model_copy(update={"overlay_type": "panel"}) if several else options
    try:
        async with (deadline := Deadline(DEADLINE_S)).enforce():
            answer = await explainer.explain([ImageInput(data, options)], rendering, "png", deadline)
    except (ImageError, EngineError, DeadlineExceeded) as error:  # what is wrong with the options is wrong for every file
        return [ExplanationRecord(file=file, error=error.detail)]
    assert answer.media is not None
    await asyncio.to_thread(target.write_bytes, answer.media.data)
    return [
        ExplanationRecord(file=file, overlay=target, explanation=explanation)
        for result in answer.results
        if isinstance(result, ExplainResult)
        for explanation in result.explanations
    ]


def _print(records: Sequence[ExplanationRecord], folder: Path, out: Console) -> None:
    table = Table("file", "class", "probability", "overlay")
    for record in records[:SHOWN_ROWS]:
        if record.explanation is None:
            table.add_row(record.file.name, f"[red]{record.error}[/]", "", "")
        else:
            prediction = record.explanation
            overlay = record.overlay.name if record.overlay else ""
            table.add_row(
                record.file.name, f"{prediction.class_id} {prediction.label}", f"{prediction.probability:.1%}", overlay
            )
    out.print(table)
    if len(records) > SHOWN_ROWS:
        out.print(f"... and {len(records) - SHOWN_ROWS} more")
    out.print(f"{len(records)} explanations in {folder / 'explanations.csv'}", soft_wrap=True)
