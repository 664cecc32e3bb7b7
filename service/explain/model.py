"""One served model: a card brought to life, with its labels, its worker, and what it says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.engine.cards.card import Activation, Card
from service.engine.cards.labels import LabelSet, read_labels
from service.engine.device import Device
from service.engine.network import Network
from service.engine.runtimes import RuntimeOptions
from service.engine.types import EngineRequest, EngineResult, LayerStatisticsResult
from service.errors import ConfigurationError, ParameterInvalid
from service.explain.batcher import Batcher
from service.explain.cache import Cache
from service.explain.calls import BatchResult
from service.explain.options import Targets
from service.explain.results import ModelIdentity, ModelInfo, Prediction
from service.imaging.geometry import InputSpec
from service.settings import Settings
from service.telemetry import Metrics

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSelection:
    """The classes of one image, found: `classes` in order, or the `best` so many where none was named."""

    classes: tuple[int, ...]
    best: int
    versus: int | None
    listed: int


class ClassScores:
    """An image's logits, float32 ``[classes]``, read with the model's labels.

    Args:
        logits: of one image.
        labels: of the model.
        activation: `softmax`: one of the classes is true; `sigmoid`: each is or is not, for itself.
    """

    def __init__(self, logits: NDArray[np.float32], labels: LabelSet, activation: Activation = "softmax") -> None:
        wide = logits.astype(np.float64)
        if activation == "softmax":
            powers = np.exp(wide - wide.max())
            self._probabilities = powers / powers.sum()
        else:
            self._probabilities = np.exp(-np.logaddexp(0, -wide))  # 1 / (1 + exp(-z)) that no z overflows
        self._logits = logits
        self._labels = labels

    def of(self, class_id: int) -> Prediction:
        """What the network says of one class."""
        return Prediction(
            class_id=class_id,
            label=self._labels.label(class_id),
            wordnet_id=self._labels.wordnet_id(class_id),
            probability=float(self._probabilities[class_id]),
            logit=float(self._logits[class_id]),
        )

    def best(self, count: int) -> tuple[Prediction, ...]:
        """The `count` best classes, best first."""
        return tuple(self.of(int(class_id)) for class_id in np.argsort(-self._logits, kind="stable")[:count])


class Model:
    """A network, its labels and its worker.

    Attributes:
        spec, fit, fill: how an image becomes the network's input; the colour of padding is the card's mean.
        batcher, slow_batcher: the workers; started by `start`, ended by `close`.
        cache: what the network has said already.
    """

    def __init__(self, card: Card, network: Network, labels: LabelSet, settings: Settings, metrics: Metrics) -> None:
        self.card = card
        self.network = network
        self.labels = labels
        pre = network.preprocessing
        self.spec = InputSpec(height=pre.height, width=pre.width, resize=pre.resize, interpolation=pre.interpolation)
        self.fit = pre.fit
        red, *others = (round(255 * mean) for mean in pre.mean)
        green, blue = others or (red, red)
        self.fill = (red, green, blue)
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
        self.batcher: Batcher[EngineRequest, EngineResult] = Batcher(
            network.run,
            name=card.name,
            max_batch_size=self.max_batch_size,
            max_queue_size=settings.max_queue_size,
            max_delay_s=settings.max_queue_delay_ms / 1000,
            workers=settings.replicas,
            on_batch=lambda size, seconds: self._observe(metrics, size, seconds),
            on_depth=metrics.queue_depth.labels(card.name).set,
        )
        self._users = 0
        self._idle = asyncio.Event()
        # What takes long runs one at a time, beside the batches, and steps aside for them.
        self.slow_batcher: Batcher[EngineRequest, EngineResult] = Batcher(
            network.run_slowly, name=f"{card.name} slow", max_batch_size=1, max_queue_size=settings.max_queue_size
        )

        self._jobs: Batcher[Callable[[], Any], Any] = Batcher(
            lambda jobs: [job() for job in jobs],
            name=f"{card.name} aside",
            max_batch_size=1,
            max_queue_size=settings.max_queue_size,
        )

    @classmethod
    def load(cls, card: Card, device: Device, settings: Settings, metrics: Metrics) -> Model:
        """Loads, exports and warms; blocks for seconds.

        Raises:
            ConfigurationError: the card cannot be fulfilled.
        """
        labels = read_labels(card)
        plan = RuntimeOptions(
            engine=settings.engine, precision=settings.precision, threads=settings.engine_threads, calls=settings.replicas
        )
        network = Network.load(card, device, plan, random_weights=settings.random_weights)
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
        await self.batcher.start()
        await self.slow_batcher.start()
        await self._jobs.start()
        blank = np.zeros((self.spec.height, self.spec.width, 3), np.uint8)
        try:
            await self.batcher.submit([EngineRequest(pixels=blank)], deadline=asyncio.get_running_loop().time() + 60)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Answers everything accepted, then ends the workers."""
        while self._users:
            self._idle.clear()
            await self._idle.wait()
        await asyncio.gather(self.batcher.close(), self.slow_batcher.close(), self._jobs.close())

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """Keeps the workers for a request that is on its way to them: `close` waits for its end."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._idle.set()

    @property
    def alive(self) -> bool:
        """Whether the workers are there to answer."""
        return self.batcher.alive and self.slow_batcher.alive and self._jobs.alive

    async def aside(self, jobs: Sequence[Callable[[], T]], deadline: float) -> list[BatchResult[T]]:
        """Runs what is no batch, one at a time in a thread of its own; as `Batcher.submit`, with the same errors."""
        done: list[BatchResult[T]] = await self._jobs.submit(jobs, deadline=deadline)
        return done

    def wanted(self, targets: Targets, *, explain: bool, most: int) -> ClassSelection:
        """Which classes an image's targets mean.

        Raises:
            ClassNotFound: an id or name that this model does not have.
            ParameterInvalid: more than `most` classes.
        """
        listed = min(targets.top_k or 5, len(self.labels))
        if not explain:
            return ClassSelection(classes=(), best=0, versus=None, listed=listed)
        classes = (*map(self.labels.check, targets.class_id), *map(self.labels.find, targets.class_name))
        best = 0 if classes else min(targets.top_k or 1, len(self.labels))
        if max(len(classes), best) > most:
            raise ParameterInvalid(f"class_id, class_name, top_k: at most {most} classes of an image are explained at once.")
        against = targets.versus
        if against is None:
            return ClassSelection(classes=classes, best=best, versus=None, listed=listed)
        return ClassSelection(
            classes=classes,
            best=best,
            versus=self.labels.find(against) if isinstance(against, str) else self.labels.check(against),
            listed=listed,
        )

    def identity_of(self, outcomes: Sequence[EngineResult | LayerStatisticsResult]) -> ModelIdentity:
        """The model's identity, with what computed these outcomes; images of several sizes may have met several engines."""
        engine, precision = (
            ", ".join(sorted({getattr(outcome, name) for outcome in outcomes})) for name in ("engine", "precision")
        )
        return replace(self.identity, engine=engine, precision=precision)

    def describe(self) -> ModelInfo:
        """What `GET /models/{model}` tells of a loaded model; the state is the registry's to say."""
        return ModelInfo(
            name=self.card.name,
            version=self.card.version,
            description=self.card.description,
            state="ready",
            error=None,
            device=self.network.device,
            precision=self.network.precision,
            engine=self.network.engine,
            input_size=(self.spec.height, self.spec.width),
            classes=self.network.classes,
            default_layer=self.network.default_layers,
            layers=tuple(self.network.layers.values()),
            methods=self.network.methods,
            digest=self.network.digest,
        )

    def _observe(self, metrics: Metrics, size: int, seconds: float) -> None:
        metrics.batch_size.labels(self.card.name).observe(size)
        metrics.batch_seconds.labels(self.card.name).observe(seconds)
