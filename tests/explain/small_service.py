"""A whole explainer around a network of two convolutions: real cards, registry, workers and threads, loaded in no time."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.engine.cards.card import Card
from service.engine.device import Device
from service.engine.disk_cache import DiskCache
from service.engine.network import Network
from service.engine.runtimes import TORCH_FP32, RuntimeOptions
from service.explain.explainer import Explainer
from service.explain.model import Model
from service.explain.options import ExplainOptions, InspectOptions
from service.explain.plan import ImageInput
from service.explain.registry import Registry
from service.explain.results import Answer, ExplainResult
from service.explain.scheduler import Deadline
from service.settings import Settings
from service.telemetry import Metrics
from service.vocabulary import CachePolicy, Delivery
from tests.model_cards import CLASSES, write_card
from tests.networks import Pooled, network, seeded

SIDE = 32  # of the network's input
LAYER = ('layer = "layer3"', 'layer = "block"')


@functools.cache
def small_network() -> Network:
    """Its input is 32x32, its layer's grid 8x8; it keeps nothing between calls, so that all tests may share it."""
    return network(seeded(Pooled, CLASSES, seed=1), "block", size=SIDE, name="tiny")


def small_settings(folder: Path, **settings: Any) -> Settings:
    """Settings for a folder that has the card `tiny`; every answer is the network's own unless told otherwise."""
    write_card(folder, "tiny", LAYER)
    given: dict[str, Any] = {"models_dir": folder, "models": ("tiny",), "cache_entries": 0} | settings
    return Settings(**given)


async def until(happened: Callable[[], Awaitable[bool]]) -> None:
    """Waits, but not for ever."""
    for _ in range(3000):
        if await happened():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def load_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every card with random weights gets the small network instead of its own; others are loaded as ever."""
    load_really = Network.load

    def load(
        card: Card,
        device: Device,
        options: RuntimeOptions = TORCH_FP32,
        *,
        random_weights: bool = False,
        cache: DiskCache | None = None,
    ) -> Network:
        random = random_weights or card.weights.random is not None
        return small_network() if random else load_really(card, device, options, random_weights=random_weights, cache=cache)

    monkeypatch.setattr(Network, "load", load)


def small_model(folder: Path, monkeypatch: pytest.MonkeyPatch, *changes: tuple[str, str]) -> Model:
    """The model of a card; its workers are not running."""
    load_small(monkeypatch)
    settings = small_settings(folder)
    write_card(folder, "tiny", LAYER, *changes)
    return Model.load(Card.read(folder / "tiny.toml"), Device("cpu"), settings, Metrics())


@dataclass(frozen=True)
class SmallService:
    explainer: Explainer
    registry: Registry
    codecs: ThreadPoolExecutor
    metrics: Metrics

    async def explain(
        self,
        *images: bytes,
        delivery: Delivery = "json",
        within_s: float = 30,
        policy: CachePolicy = "use",
        **options: Any,
    ) -> Answer:
        """Every image with the same options, as a route asks: the deadline is enforced around it."""
        asked, deadline = ExplainOptions(**options), Deadline(within_s)
        async with deadline.enforce():
            inputs = [ImageInput(image, asked) for image in images]
            return await self.explainer.explain(inputs, asked, delivery, deadline, policy)

    async def predict(self, *images: bytes, within_s: float = 30, **options: Any) -> Answer:
        """As `explain`, for predictions."""
        asked, deadline = ExplainOptions(**options), Deadline(within_s)
        async with deadline.enforce():
            return await self.explainer.predict([ImageInput(image, asked) for image in images], asked, deadline)

    async def inspect(self, *images: bytes, delivery: Delivery = "json", within_s: float = 30, **options: Any) -> Answer:
        """As `explain`, for layers."""
        asked, deadline = InspectOptions(**options), Deadline(within_s)
        async with deadline.enforce():
            return await self.explainer.inspect([ImageInput(image, asked) for image in images], asked, delivery, deadline)


def explained(answer: Answer) -> tuple[ExplainResult, ...]:
    """The results of an answer of `explain`."""
    results = tuple(result for result in answer.results if isinstance(result, ExplainResult))
    assert len(results) == len(answer.results)
    return results


@asynccontextmanager
async def small_service(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> AsyncIterator[SmallService]:
    """An explainer with the small network, ready."""
    load_small(monkeypatch)
    chosen, metrics = small_settings(folder, **settings), Metrics()
    registry = Registry(chosen, metrics)
    with ThreadPoolExecutor(2) as codecs:
        await registry.start()
        try:
            yield SmallService(Explainer(registry, chosen, codecs, metrics), registry, codecs, metrics)
        finally:
            await registry.close()
