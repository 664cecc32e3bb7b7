"""Measures one model card on this machine: how long it takes to load, to predict and to explain. No server, no images.

Predictions and explanations are measured in turn, round by round, so that a machine that slows down slows both.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from service.engine.batch import EngineRequest
from service.engine.network import Network
from service.explain.registry import Registry
from service.settings import Settings
from service.telemetry import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTiming:
    """Medians over the rounds of one batch size. `ratio` is of explain over predict, taken in each round."""

    batch_size: int
    predict_s: float
    explain_s: float
    ratio: float

    @property
    def explanations_per_s(self) -> float:
        """With the engine alone: a server also decodes, draws and encodes."""
        return self.batch_size / self.explain_s


def run(settings: Settings, rounds: int, out: Console) -> list[BatchTiming]:
    """Loads the first model of the settings, measures it at batch 1 and at its largest, and prints a table.

    Raises:
        ConfigurationError: the model cannot be loaded.
    """
    return asyncio.run(_run(settings.model_copy(update={"models": settings.models[:1]}), rounds, out))


async def _run(settings: Settings, rounds: int, out: Console) -> list[BatchTiming]:
    registry = Registry(settings, Metrics())
    started = time.perf_counter()
    with out.status("loading the model"):
        await registry.start()
    loaded_s = time.perf_counter() - started
    model = registry.get(None)
    with out.status("measuring"):
        sizes = sorted({1, model.max_batch_size})
        timings = [await asyncio.to_thread(measure, model.network, size, rounds) for size in sizes]
    await registry.close()
    identity = model.identity
    out.print(
        f"{identity.name}: {identity.engine} {identity.precision} on {identity.device}, {settings.engine_threads} threads, "
        f"loaded and warmed in {loaded_s:.1f} s",
        highlight=False,
    )
    out.print(_table(timings))
    return timings


def measure(network: Network, batch_size: int, rounds: int) -> BatchTiming:
    """Times both kinds of work on one batch of noise, the whole way from pixels to logits and maps.

    Raises:
        CamserveError: the network failed.
    """
    height, width = network.preprocessing.height, network.preprocessing.width
    noise = np.random.default_rng(0).integers(0, 256, (batch_size, height, width, 3), np.uint8)
    predictions, explanations = (
        [EngineRequest(pixels=pixels) for pixels in noise],
        [EngineRequest(pixels=pixels, best=1) for pixels in noise],
    )
    _seconds(network, explanations)
    taken = [(_seconds(network, predictions), _seconds(network, explanations)) for _ in range(rounds)]
    return BatchTiming(
        batch_size=batch_size,
        predict_s=statistics.median(predict for predict, _ in taken),
        explain_s=statistics.median(explain for _, explain in taken),
        ratio=statistics.median(explain / predict for predict, explain in taken),
    )


def _seconds(network: Network, works: Sequence[EngineRequest]) -> float:
    started = time.perf_counter()
    answers = network.run(works)
    seconds = time.perf_counter() - started
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return seconds


def _table(timings: Sequence[BatchTiming]) -> Table:
    table = Table("batch", "predict", "explain", "explain / predict", "explanations per second")
    for timing in timings:
        table.add_row(
            str(timing.batch_size), f"{1000 * timing.predict_s:.1f} ms", f"{1000 * timing.explain_s:.1f} ms",
            f"{timing.ratio:.2f}", f"{timing.explanations_per_s:.1f}",
        )  # fmt: skip
    return table
