"""One served model: a card brought to life, with its labels, its scheduler, its cache, and what it says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from service.engine.batch import EngineRequest
from service.engine.cards.card import Card
from service.engine.cards.labels import LabelSet, read_labels
from service.engine.device import Device
from service.engine.network import Network
from service.engine.runtimes import RuntimeOptions
from service.engine.types import EngineResult, LayerStatisticsResult
from service.errors import ConfigurationError
from service.explain.cache import Cache
from service.explain.class_scores import ClassScores
from service.explain.deadline import Deadline
from service.explain.results import ModelIdentity, ModelInfo
from service.explain.scheduler import Scheduler
from service.settings import Settings
from service.telemetry import Metrics

START_S = 60.0  # for the first prediction of a model that is warm


class Model:
    """A network, its labels and its scheduler.

    Attributes:
        scheduler: runs the network; started by `start`, ended by `close`.
        cache: what the network has said.
    """

    def __init__(self, card: Card, network: Network, labels: LabelSet, settings: Settings, metrics: Metrics) -> None:
        self.card = card
        self.network = network
        self.labels = labels
        self.max_batch_size = card.runtime.max_batch_size or settings.max_batch_size
        self.identity = ModelIdentity(
            name=card.name,
            version=card.version,
            digest=network.digest,
            precision=network.precision,
            engine=network.engine,
            device=network.device,
        )
        self.cache = Cache(settings.cache_entries, settings.cache_bytes)
        self.scheduler: Scheduler[EngineRequest, EngineResult] = Scheduler(
            network.run,
            name=card.name,
            metrics=metrics,
            max_batch_size=self.max_batch_size,
            max_queue_size=settings.max_queue_size,
            max_delay_s=settings.max_queue_delay_ms / 1000,
            workers=settings.replicas,
        )

    @classmethod
    def load(cls, card: Card, device: Device, settings: Settings, metrics: Metrics) -> Model:
        """Loads, exports and warms; blocks for seconds.

        Raises:
            ConfigurationError: the card cannot be fulfilled.
        """
        labels = read_labels(card)
        options = RuntimeOptions(
            engine=settings.engine, precision=settings.precision, threads=settings.engine_threads, calls=settings.replicas
        )
        network = Network.load(card, device, options, random_weights=settings.random_weights)
        if network.classes == 1:
            raise ConfigurationError(
                f"card {card.name}: labels.activation: the network has one logit, of which a softmax makes 1 whatever it sees; "
                "say sigmoid, and give two labels: what a low logit means, and what a high one means"
            )
        if len(labels) != network.classes:
            raise ConfigurationError(
                f"card {card.name}: labels: there are {len(labels)} labels, but the network has {network.classes} classes"
            )
        model = cls(card, network, labels, settings, metrics)
        network.warm([1, model.max_batch_size])
        return model

    async def start(self) -> None:
        """Starts the workers and sends one prediction through; ends them again if it fails."""
        await self.scheduler.start()
        preprocessing = self.network.preprocessing
        blank = np.zeros((preprocessing.height, preprocessing.width, 3), np.uint8)
        deadline = Deadline(START_S)
        try:
            async with deadline.enforce():
                await self.scheduler.fast.submit([EngineRequest(pixels=blank)], deadline)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Answers everything accepted, then ends the workers."""
        await self.scheduler.close()

    def scores(self, result: EngineResult | LayerStatisticsResult) -> ClassScores:
        """The logits of a result, read with the model's labels."""
        return ClassScores(result.logits, self.labels, self.card.labels.activation)

    def identity_of(self, results: Sequence[EngineResult | LayerStatisticsResult]) -> ModelIdentity:
        """The model's identity, with what computed these results; images of several sizes may have met several engines."""
        engine, precision = (
            ", ".join(sorted({getattr(result, name) for result in results})) for name in ("engine", "precision")
        )
        return replace(self.identity, engine=engine, precision=precision)

    def describe(self) -> ModelInfo:
        """What `GET /models/{model}` tells of a loaded model; the state is the registry's to say."""
        preprocessing = self.network.preprocessing
        return ModelInfo(
            name=self.card.name,
            version=self.card.version,
            description=self.card.description,
            state="ready",
            error=None,
            device=self.network.device,
            precision=self.network.precision,
            engine=self.network.engine,
            input_size=(preprocessing.height, preprocessing.width),
            classes=self.network.classes,
            default_layer=self.network.default_layers,
            layers=tuple(self.network.layers.values()),
            methods=self.network.methods,
            digest=self.network.digest,
        )
